"""Times block sizes of the attention kernels on the chip that is here, and keeps the fastest.

    python -m armd_jax.bench.attention.tune [--json=PATH] [--shapes=train_1024] [--repeats=10]

Writes the table that `tpu_blocks.choose` reads before its rule: a line per chip and named shape in
bfloat16, with the blocks of both kernels. A second run keeps the lines of other chips and shapes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax import cli
from armd_jax.attention import shapes, tpu, tpu_blocks
from armd_jax.errors import UserError
from armd_jax.files import whole
from armd_jax.flags import flag
from armd_jax.hardware import clock, device

Blocks = tpu_blocks.Blocks
# Seconds of one call: (shape, streams, blocks of all its kernels, whether backward too).
Timer = Callable[[shapes.Shape, int, Any, bool], float]


def sizes(shape: shapes.Shape, streams: int) -> tuple[int, int]:
  """Copies of a slot and slots, as the kernels see them: few rows are folded into one tile."""
  copies = shape.heads // shape.groups
  folded = streams * copies * shape.rows
  return (1, folded) if folded <= tpu.MAX_FOLDED_ROWS else (copies, shape.rows)


def candidates(num_rows: int, num_keys: int) -> list[Blocks]:
  """Distinct forward blocks that fit these rows and keys."""
  found: dict[Any, Any] = {}
  for rows, keys, unit_rows, unit_keys, join, transposed in itertools.product(
    (256, 512, 1024, 2048),
    (512, 1024, 2048),
    (256, 512, 1024),
    (256, 512, 1024),
    (1, 2),
    (False, True),
  ):
    if unit_rows > rows or unit_keys > keys:
      continue
    overlap = 8 if transposed or rows == keys == 2048 else 4  # as in the rule
    blocks = Blocks(*(rows, keys, unit_rows, unit_keys, join, transposed), overlap=overlap).fit(
      num_rows, num_keys
    )
    if join > 1 and blocks.plain == (blocks.unit_rows, blocks.unit_keys):
      continue  # the same kernel as without
    found[blocks] = None
  return list(found)


def fastest(options: Sequence, seconds: Callable[..., float]):
  """The option of least time.

  Raises:
    ValueError: none of them runs.
  """
  timed = [(seconds(option), i) for i, option in enumerate(options)]
  least, index = min(timed)
  if math.isinf(least):
    raise ValueError('the compiler refuses all candidates')
  return options[index]


def tune_shape(chip: str, shape: shapes.Shape, streams: int, timer: Timer) -> tuple[Blocks, Blocks]:
  """The fastest forward blocks, and with them the fastest backward blocks."""
  copies, num_rows = sizes(shape, streams)
  arguments = chip, copies, num_rows, shape.keys, shape.head_dim, 2
  shipped = [blocks.fit(num_rows, shape.keys) for blocks in tpu_blocks.rule(*arguments)]
  options = candidates(num_rows, shape.keys)
  forward = fastest(
    [shipped[0], *options], lambda blocks: timer(shape, streams, (blocks, shipped[1]), False)
  )
  spans = [
    dataclasses.replace(b, span=tpu_blocks.longest_span(chip, b.keys, shape.head_dim, 2))
    for b in options
    if not b.transposed  # as backward always is, in its own way
  ]
  backward = fastest(
    [shipped[1], *spans], lambda blocks: timer(shape, streams, (forward, blocks), True)
  )
  return forward, backward


def seconds_here(attend: Callable, repeats: int) -> Timer:
  """A timer of the device that is here; infinite where the compiler refuses the blocks.

  Args:
    attend: `attend(q, k, v, lengths, blocks)`.
    repeats: timed rounds.
  """

  def seconds(shape, streams, blocks, backward):
    keys = jax.random.split(jax.random.key(0), 3)
    size = (1, streams, shape.rows, shape.heads, shape.head_dim)
    q = jax.random.normal(keys[0], size, jnp.bfloat16)
    size = (1, shape.keys, shape.groups, shape.head_dim)
    k, v = (jax.random.normal(key, size, jnp.bfloat16) for key in keys[1:])
    lengths = jnp.asarray(shape.lengths(streams))

    @jax.jit
    def call(q, k, v):
      if not backward:
        return attend(q, k, v, lengths, blocks)
      out, pullback = jax.vjp(lambda q, k, v: attend(q, k, v, lengths, blocks), q, k, v)
      return pullback(out)

    try:
      taken = clock.interleaved({'call': lambda: call(q, k, v)}, repeats)
    except (jax.errors.JaxRuntimeError, ValueError):  # does not fit, according to XLA or Mosaic GPU
      return math.inf
    return clock.medians(taken)['call']

  return seconds


def write(path: pathlib.Path, table: dict) -> None:
  """JSON with an entry a line, sorted."""
  lines = (f'  {json.dumps(key)}: {json.dumps(table[key])}' for key in sorted(table))
  whole.write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def tune(path: pathlib.Path, chip: str, names: Sequence[str], timer: Timer) -> None:
  """Adds to the table at `path` a line for each of these shapes; written after each."""
  table = json.loads(path.read_text('utf-8')) if path.exists() else {}
  for name in names:
    shape = shapes.NAMED[name]
    # Training calls have two streams; decoding folds streams into rows: a shape of its own.
    for streams in (1, 2) if shape.decodes else (2,):
      copies, num_rows = sizes(shape, streams)
      found = tune_shape(chip, shape, streams, timer)
      line = tpu_blocks.name(chip, copies, num_rows, shape.keys, shape.head_dim, 2)
      table[line] = [dataclasses.asdict(blocks) for blocks in found]
      write(path, table)
      print(line, *('x'.join(map(str, (b.rows, b.keys))) for b in found), flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str | None = flag(
    'The table; left out: tpu_blocks.json of the package.', None, is_path=True, writes='JSON'
  )
  shapes: str = flag('Only shapes whose name contains this.', '')
  repeats: int = flag('Timed rounds.', 10, at_least=1)


def main(options: Options) -> None:
  here = device.current()
  if here.platform != 'tpu' or here.chip not in tpu_blocks.CHIPS:
    raise UserError(
      f'there is no TPU here that the kernels know, only {here.chip!r}; tune on one of '
      f'{", ".join(tpu_blocks.CHIPS)}'
    )
  names = [name for name in shapes.NAMED if options.shapes in name]

  def attend(q, k, v, lengths, blocks):
    return tpu.prefix_attention(q, k, v, lengths, chip=here.chip, blocks=blocks)

  tune(
    pathlib.Path(options.json or tpu_blocks.TABLE),
    here.chip,
    names,
    seconds_here(attend, options.repeats),
  )


if __name__ == '__main__':
  cli.run(main, Options)

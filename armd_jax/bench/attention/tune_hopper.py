"""Times block sizes of the attention kernels on the Hopper GPU that is here; keeps the fastest.

    python -m armd_jax.bench.attention.tune_hopper [--json=PATH] [--length=4096] [--repeats=10]

Writes the table that `hopper_blocks.choose` reads first: a line for every head dimension and number
of streams that a warpgroup computes, in bfloat16, left to right.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib

from armd_jax import cli
from armd_jax.attention import hopper, hopper_blocks, shapes
from armd_jax.bench.attention import tune
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import device

Blocks = hopper_blocks.Blocks
STAGES = (1, 2, 3, 4)
# Streams of a call and its heads: all that differ in what a warpgroup computes.
CALLS = [(1, 16, 64), (2, 16, 64), (1, 16, 128), (1, 8, 256)]


def candidates(blocks: Blocks, head_dim: int, kernel: int) -> list[Blocks]:
  """These blocks with every other choice for one kernel: 0 forward, 1 dq, 2 dk and dv.

  Those that do not fit shared memory are among them: only the compiler knows.
  """
  found = []
  for tile, columns, stages in itertools.product(
    (64, 128), sorted({64, 128, head_dim} if kernel == 0 else {0}), STAGES
  ):
    if columns > min(head_dim, 128):
      continue
    changes = [
      {'forward_keys': tile, 'forward_columns': columns},
      {'dq_keys': tile},
      {'dkv_rows': tile},
    ][kernel]
    all_stages = (*blocks.stages[:kernel], stages, *blocks.stages[kernel + 1 :])
    found.append(dataclasses.replace(blocks, stages=all_stages, **changes))
  return found


def tune_call(shape: shapes.Shape, streams: int, timer: tune.Timer) -> Blocks:
  """The fastest blocks: of the forward kernel alone, then with each of the backward ones."""
  together = hopper_blocks.streams_together(streams, shape.head_dim)
  blocks = hopper_blocks.choose(together, shape.head_dim)
  for kernel in range(3):
    blocks = tune.fastest(
      [blocks, *candidates(blocks, shape.head_dim, kernel)],
      lambda blocks, kernel=kernel: timer(shape, streams, blocks, kernel > 0),
    )
  return blocks


def run(path: pathlib.Path, length: int, timer: tune.Timer) -> None:
  """Writes the table line by line; an interrupted run is to be started again."""
  table = {}
  for streams, heads, head_dim in CALLS:
    shape = shapes.Shape(f'train_{length}', length, length, heads, heads, head_dim)
    found = tune_call(shape, streams, timer)
    together = hopper_blocks.streams_together(streams, head_dim)
    table[hopper_blocks.name(together, head_dim)] = dataclasses.asdict(found)
    tune.write(path, table)
    print(hopper_blocks.name(together, head_dim), json.dumps(dataclasses.asdict(found)), flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str | None = flag(
    'The table; left out: hopper_blocks.json of the package.', None, is_path=True, writes='JSON'
  )
  length: int = flag('Slots and keys of the calls that are timed.', 4096, at_least=1)
  repeats: int = flag('Timed rounds.', 10, at_least=1)


def main(options: Options) -> None:
  here = device.current()
  if here.chip != device.HOPPER:
    raise UserError(f'there is no Hopper GPU here, only {here.chip!r}; tune on an H100 or H200')

  def attend(q, k, v, lengths, blocks):
    return hopper.prefix_attention(q, k, v, lengths, blocks=blocks)

  run(
    pathlib.Path(options.json or hopper_blocks.TABLE),
    options.length,
    tune.seconds_here(attend, options.repeats),
  )


if __name__ == '__main__':
  cli.run(main, Options)

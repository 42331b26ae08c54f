"""What each choice of the TPU kernels' tiles is worth, by the compiler's schedule.

    python -m armd_jax.bench.attention.choices [--json=PATH] [--chips=v6e]

Needs `libtpu` and no TPU. Compiles a shape, one stream, with the blocks that it ships with, and
again with one thing changed at a time in those of both passes; the useful utilisation of each.
A second run does only what is missing, and everything after a change of the kernels.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import tempfile

import jax
import jax.numpy as jnp

from armd_jax import cli, records
from armd_jax.attention import shapes, tpu, tpu_blocks
from armd_jax.bench.attention import compile_tpu, schedule
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import cores

Blocks = tpu_blocks.Blocks
PATH = 'docs/records/attention_blocks.json'
LAYOUT = 'other layout of scores'
ALONE = 'nothing saved for backward'


def variants(blocks: Blocks) -> dict[str, Blocks]:
  """These blocks and others, each with one thing changed, by what that is."""
  changes = {
    'as shipped': {},
    LAYOUT: {'transposed': not blocks.transposed},
    'units not joined': {'join': 1},
    'units of 512 x 512': {'unit_rows': 512, 'unit_keys': 512, 'join': 1},
    'units of 256 x 256': {'unit_rows': 256, 'unit_keys': 256, 'join': 1},
    'no two units in a basic block': {'overlap': 1},
    'half the rows': {'rows': blocks.rows // 2},
    'half the keys': {'keys': blocks.keys // 2},
    'half the rows and keys': {'rows': blocks.rows // 2, 'keys': blocks.keys // 2},
  }
  found: dict[str, Blocks] = {}
  for name, change in changes.items():
    changed = dataclasses.replace(blocks, **change)
    whole = changed.rows % changed.unit_rows == changed.keys % changed.unit_keys == 0
    if whole and changed not in found.values():
      found[name] = changed
  return found


def forward_alone(folder: str, chip: str, shape: shapes.Shape, blocks: Blocks) -> float:
  """Useful utilisation of the forward pass without differentiation, which saves nothing."""
  lengths = shape.lengths(1)
  rows, keys = (
    jax.ShapeDtypeStruct(size, jnp.bfloat16, sharding=compile_tpu.sharding(chip))
    for size in (
      (1, 1, shape.rows, shape.heads, shape.head_dim),
      (1, shape.keys, shape.groups, shape.head_dim),
    )
  )
  shutil.rmtree(folder, ignore_errors=True)
  attend = lambda q, k, v: tpu.prefix_attention(q, k, v, jnp.asarray(lengths), chip=chip)
  jax.jit(attend).lower(rows, keys, keys).compile()
  grid = blocks.grid(1, shape.rows, shape.keys)
  regions = schedule.read(folder, 'prefix_attention_forward')
  copies = shape.heads // shape.groups
  cycles = schedule.cycles(regions, blocks, grid, copies, lengths, False)
  ideal = 2 * shape.head_dim * int(lengths.sum()) * copies / cores.PEAK[chip]
  return round(ideal / cycles, 3)


def measure(folder: str, chip: str, shape: shapes.Shape) -> dict[str, dict[str, float]]:
  """Useful utilisation of forward and backward by what is changed in the blocks of both.

  What the compiler refuses, because it does not fit VMEM, is left out.
  """
  copies = shape.heads // shape.groups
  shipped = tpu_blocks.choose(chip, copies, shape.rows, shape.keys, shape.head_dim, 2)
  forward, backward = map(variants, shipped)
  backward.pop(LAYOUT)  # it has one only
  found = {ALONE: {'forward': forward_alone(folder, chip, shape, shipped[0])}}
  print(chip, shape.name, found, flush=True)
  for name in forward | backward:
    pair = forward.get(name, shipped[0]), backward.get(name, shipped[1])
    found[name] = {}
    try:
      compiled = compile_tpu.measure(folder, chip, shape, 1, pair)
    except jax.errors.JaxRuntimeError as error:
      print(chip, shape.name, f'{name}: {str(error)[:200]}', flush=True)
      continue
    for kind, changed in (('forward', forward), ('backward', backward)):
      if name in changed:
        found[name][kind] = compiled[kind]['useful']
    print(chip, shape.name, name, found[name], flush=True)
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str = flag('Where results are kept.', PATH)
  chips: tuple[str, ...] = flag('Chips to compile for.', ('v6e', 'v5e'))
  shapes: tuple[str, ...] = flag('Named shapes.', ('train_4096_8x256', 'train_4096_16x128'))


def main(options: Options) -> None:
  folder = tempfile.mkdtemp(prefix='attention_blocks_')
  compile_tpu.prepare(folder)
  kept, today = records.Records(options.json), compile_tpu.stamp()
  wanted = {
    f'{chip} {n}': (chip, n) for chip, n in itertools.product(options.chips, options.shapes)
  }
  try:
    for key in kept.missing(dict.fromkeys(wanted, today)):
      chip, name = wanted[key]
      if name not in shapes.NAMED or shapes.NAMED[name].decodes:
        raise UserError(f'{name!r} is not the name of a training shape; see attention/shapes.py')
      found = measure(folder, chip, shapes.NAMED[name])
      kept.add(key, today, {'jax': jax.__version__, 'useful': found})
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  cli.run(main, Options)

"""Compiles the TPU kernels ahead of time, for every chip and named shape; reads the schedules.

    python -m armd_jax.bench.attention.compile_tpu [--json=PATH] [--chips=v5e] [--shapes=train]

Needs `libtpu` and no TPU: Mosaic and XLA's TPU compiler really run, so a kernel that does not fit
VMEM fails here. Results are kept in `armd_jax.records`: a second run does only what is missing, and
everything after a change of the code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax import cli, records
from armd_jax.attention import shapes, tiles, tpu, tpu_blocks
from armd_jax.bench.attention import schedule
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import cores

Blocks = tuple[tpu_blocks.Blocks, tpu_blocks.Blocks]
PATH = pathlib.Path('docs/records/attention_tpu.json')


def stamp() -> str:
  """A digest of what the results depend on."""
  without = 'armd_jax/cli.py', 'armd_jax/flags.py', 'armd_jax/records.py'
  tuned = json.dumps(tpu_blocks.tuned(), sort_keys=True)
  return records.digest(('armd_jax/bench/attention/compile_tpu.py',), without, tuned)


def prepare(folder: str) -> None:
  """Makes libtpu usable without a TPU and has it dump its schedules; before the first compile."""
  jax.config.update('jax_platforms', 'cpu')
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  # Two of the seventy dumps per kernel, those that schedule.py reads.
  os.environ['LIBTPU_INIT_ARGS'] = (
    f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true '
    '--xla_jf_dump_llo_pass_label_regex=(packed-bundles-post-ra|static-per-bundle)'
  )


@functools.cache
def sharding(chip: str) -> NamedSharding:
  described = topologies.get_topology_desc(cores.TOPOLOGIES[chip], 'tpu')
  return NamedSharding(Mesh(np.array(described.devices[:1]), ('one',)), PartitionSpec())


def compile_call(
  chip: str, shape: shapes.Shape, streams: int, dtype: str, blocks: Blocks | None = None
):
  """Forward and backward of one call, compiled for one chip; None takes the shipped blocks."""
  rows = jax.ShapeDtypeStruct((1, streams, shape.rows, shape.heads, shape.head_dim), dtype)
  keys = jax.ShapeDtypeStruct((1, shape.keys, shape.groups, shape.head_dim), dtype)
  lengths = jax.ShapeDtypeStruct((1, streams, shape.rows), jnp.int32)

  def forward_and_gradients(q, k, v, lengths, dout):
    out, pullback = jax.vjp(
      lambda q, k, v: tpu.prefix_attention(q, k, v, lengths, chip=chip, blocks=blocks), q, k, v
    )
    return out, *pullback(dout)

  # XLA chooses layouts in which heads need no transpose: compiling those takes most of the time.
  layouts = Format(Layout.AUTO, sharding(chip))
  call = jax.jit(forward_and_gradients, in_shardings=layouts, out_shardings=layouts)
  return call.lower(rows, keys, keys, lengths, rows).compile()


def _kernel(folder, chip, shape, streams, blocks, backward) -> dict:
  """The figures in the schedule of one compiled kernel."""
  copies = shape.heads // shape.groups
  folds = streams * copies * shape.rows <= tpu.MAX_FOLDED_ROWS
  lengths = shape.lengths(streams)
  if folds:
    lengths = np.repeat(lengths, copies, axis=1).reshape(1, 1, -1)
    copies = 1
  num_rows = lengths.shape[2]
  if blocks is None:
    blocks = tpu_blocks.choose(chip, copies, num_rows, shape.keys, shape.head_dim, 2)
  block = blocks[backward].fit(num_rows, shape.keys)
  grid = block.grid(1, num_rows, shape.keys)
  padding = grid.query_tiles * grid.rows - num_rows
  lengths = np.pad(lengths, ((0, 0), (0, 0), (0, padding)), 'edge')
  name = 'prefix_attention_' + ('backward' if backward else 'forward')
  regions = schedule.read(folder, name)
  total = schedule.cycles(regions, block, grid, copies * lengths.shape[1], lengths, backward)
  count = tiles.count(lengths, grid)
  pairs = int(shape.lengths(streams).sum()) * (shape.heads // shape.groups)
  ideal = (5 if backward else 2) * shape.head_dim * pairs / cores.PEAK[chip]
  return {
    'blocks': [block.rows, block.keys, block.unit_rows, block.unit_keys],
    'steps': count.steps,
    'active': count.active,
    'partial': count.partial,
    'cycles_per_key_head': total,
    'cycles_per_active_tile': round(total / max(count.active, 1)),
    'useful': round(ideal / total, 3),
    'key_value_bytes': count.key_value_bytes(grid, shape.head_dim, 2),
  }


def measure(
  folder: str, chip: str, shape: shapes.Shape, streams: int, blocks: Blocks | None = None
) -> dict:
  """Compiles one call in bfloat16 and reads both schedules."""
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  compiled = compile_call(chip, shape, streams, 'bfloat16', blocks)
  return {
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'forward': _kernel(folder, chip, shape, streams, blocks, False),
    'backward': _kernel(folder, chip, shape, streams, blocks, True),
  }


def compiles_in_float32(folder: str, chip: str, shape: shapes.Shape, streams: int) -> dict:
  """Compiles one call in float32, which fails unless it fits VMEM."""
  shutil.rmtree(folder, ignore_errors=True)
  compiled = compile_call(chip, shape, streams, 'float32')
  return {'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes}


def distinct(names: Iterable[str]) -> list[str]:
  """The first of each set of shapes that share their kernels: heads are a dimension of the grid."""
  found: dict[Any, str] = {}
  for name in names:
    shape = shapes.NAMED[name]
    size = shape.rows, shape.keys, shape.heads // shape.groups, shape.head_dim
    found.setdefault(size, name)
  return list(found.values())


def run(
  path: pathlib.Path, chips: Sequence[str], names: Sequence[str], streams: Sequence[int]
) -> None:
  """Measures every program that `path` does not hold yet for this code.

  In float32 only with the most streams, which need the most VMEM.

  Raises:
    UserError: the compiler refused programs; all others are measured.
  """
  kept, today = records.Records(path), stamp()
  programs: Any = itertools.product(('bfloat16', 'float32'), distinct(names), chips, streams)
  programs = {
    f'{dtype} {chip} {name} x{count}': (chip, shapes.NAMED[name], count)
    for dtype, name, chip, count in programs
    if dtype == 'bfloat16' or count == max(streams)
  }
  versions = {'jax': jax.__version__, 'libtpu': importlib.metadata.version('libtpu')}
  folder = tempfile.mkdtemp(prefix='attention_aot_')
  prepare(folder)
  failed = []
  try:
    for key in kept.missing(dict.fromkeys(programs, today)):
      function = measure if key.startswith('bfloat16') else compiles_in_float32
      try:
        found = function(folder, *programs[key])
      except jax.errors.JaxRuntimeError as error:  # does not fit: report all that do not
        failed.append(key)
        print(key, str(error)[:400], flush=True)
        continue
      kept.add(key, today, found | versions)
      print(key, found, flush=True)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  if failed:
    raise UserError(f'the TPU compiler refused {", ".join(failed)}; see its words above')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str = flag('Where results are kept.', str(PATH))
  chips: tuple[str, ...] = flag('Chips to compile for.', tuple(tpu_blocks.CHIPS))
  shapes: str = flag('Only shapes whose name contains this.', '')
  streams: tuple[int, ...] = flag('Streams per call.', (1, 2), at_least=1)


def main(options: Options) -> None:
  names = [name for name in shapes.NAMED if options.shapes in name]
  run(pathlib.Path(options.json), options.chips, names, options.streams)


if __name__ == '__main__':
  cli.run(main, Options)

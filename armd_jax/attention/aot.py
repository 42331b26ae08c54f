"""Compiles the TPU kernels ahead of time, for every chip and named shape; reads the schedules.

    python -m armd_jax.attention.aot --json=aot.json [--chips=v5e,v6e] [--shapes=train_1024]

Needs `libtpu` (see shared/ahead_of_time.md) and no TPU. Results are written after each program and
stamped with a hash of the sources they cover: a second run does only what is missing or stale.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax import attention
from armd_jax.attention import device, schedule, shapes, tiles, tpu_blocks

TOPOLOGIES = {
  'v4': 'v4:2x2x1',
  'v5e': 'v5e:2x4',
  'v5p': 'v5p:2x2x1',
  'v6e': 'v6e:2x2',
  '7x': 'tpu7x:2x2x1',
}


def prepare(folder: str) -> None:
  """Makes libtpu usable without a TPU and has it dump its schedules; before the first compile."""
  jax.config.update('jax_platforms', 'cpu')
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ['LIBTPU_INIT_ARGS'] = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'


@functools.cache
def _sharding(chip: str) -> NamedSharding:
  described = topologies.get_topology_desc(TOPOLOGIES[chip], 'tpu')
  return NamedSharding(Mesh(np.array(described.devices[:1]), ('one',)), PartitionSpec())


def compile_call(chip: str, shape: shapes.Shape, streams: int, dtype: str):
  """Forward and backward of one call, compiled for one chip."""

  def arg(size, dtype=dtype):
    return jax.ShapeDtypeStruct(size, dtype, sharding=_sharding(chip))

  rows = arg((1, streams, shape.rows, shape.heads, shape.head_dim))
  keys = arg((1, shape.keys, shape.groups, shape.head_dim))

  def forward_and_gradients(q, k, v, lengths, dout):
    out, pullback = jax.vjp(
      lambda q, k, v: attention.prefix_attention(q, k, v, lengths, backend='pallas_tpu'), q, k, v
    )
    return out, *pullback(dout)

  with device.compiling_for(chip):
    lengths = arg((1, streams, shape.rows), jnp.int32)
    return jax.jit(forward_and_gradients).lower(rows, keys, keys, lengths, rows).compile()


def _kernel(folder, chip, shape, streams, backward) -> dict:
  """What the schedule of one compiled kernel says."""
  copies = shape.heads // shape.groups
  folds = streams * copies * shape.rows <= attention.tpu.MAX_FOLDED_ROWS
  lengths = shape.lengths(streams)
  if folds:
    lengths = np.repeat(lengths, copies, axis=1).reshape(1, 1, -1)
    copies = 1
  num_rows = lengths.shape[2]
  blocks = tpu_blocks.choose(chip, copies, num_rows, shape.keys, shape.head_dim, 2)[backward]
  grid = blocks.grid(1, num_rows, shape.keys)
  padding = grid.query_tiles * grid.rows - num_rows
  lengths = np.pad(lengths, ((0, 0), (0, 0), (0, padding)), 'edge')
  name = 'prefix_attention_' + ('backward' if backward else 'forward')
  regions = schedule.read(folder, name)
  total = schedule.cycles(regions, blocks, grid, copies * lengths.shape[1], lengths, backward)
  count = tiles.count(lengths, grid)
  pairs = int(shape.lengths(streams).sum()) * (shape.heads // shape.groups)
  ideal = (5 if backward else 2) * shape.head_dim * pairs / schedule.PEAK[chip]
  return {
    'blocks': [blocks.rows, blocks.keys, blocks.unit_rows, blocks.unit_keys],
    'steps': count.steps,
    'active': count.active,
    'partial': count.partial,
    'cycles_per_key_head': total,
    'cycles_per_active_tile': round(total / max(count.active, 1)),
    'useful': round(ideal / total, 3),
    'key_value_bytes': count.key_value_bytes(grid, shape.head_dim, 2),
    'bundles': max(r.end for r in regions),
  }


def measure(folder: str, chip: str, shape: shapes.Shape, streams: int) -> dict:
  """Compiles one call in bfloat16 and reads both schedules."""
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  start = time.time()
  compiled = compile_call(chip, shape, streams, 'bfloat16')
  return {
    'compile_seconds': round(time.time() - start, 1),
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
    'forward': _kernel(folder, chip, shape, streams, False),
    'backward': _kernel(folder, chip, shape, streams, True),
  }


def run(path: pathlib.Path, chips: list[str], names: list[str], streams: list[int]) -> None:
  """Measures every program that `path` does not hold yet for these sources."""
  results = json.loads(path.read_text()) if path.exists() else {}
  if results.get('stamp') != schedule.stamp():
    results = {'stamp': schedule.stamp(), 'jax': jax.__version__, 'programs': {}}
  folder = tempfile.mkdtemp(prefix='attention_aot_')
  prepare(folder)
  try:
    for name, count, chip in itertools.product(names, streams, chips):
      key = f'{chip} {name} x{count}'
      if key in results['programs']:
        continue
      result = measure(folder, chip, shapes.NAMED[name], count)
      results['programs'][key] = result
      path.write_text(json.dumps(results, indent=1) + '\n')
      useful = (result[kind]['useful'] for kind in ('forward', 'backward'))
      print(f'{key}: useful', *useful, flush=True)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def main(_) -> None:
  names = [name for name in shapes.NAMED if _SHAPES.value in name]
  run(pathlib.Path(_JSON.value), _CHIPS.value, names, [int(s) for s in _STREAMS.value])


if __name__ == '__main__':
  _JSON = flags.DEFINE_string('json', None, 'Where results are kept.', required=True)
  _CHIPS = flags.DEFINE_list('chips', list(tpu_blocks.CHIPS), 'Chips to compile for.')
  _SHAPES = flags.DEFINE_string('shapes', '', 'Only shapes whose name contains this.')
  _STREAMS = flags.DEFINE_list('streams', ['1', '2'], 'Streams per call.')
  app.run(main)

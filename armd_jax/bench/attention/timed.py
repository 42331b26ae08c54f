"""Times of prefix attention on the chip that is here, or compilers' figures for others."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from armd_jax import attention, records
from armd_jax.attention import hopper_blocks, shapes, tiles
from armd_jax.bench.attention import compile_hopper, compile_tpu, peers
from armd_jax.errors import UserError
from armd_jax.hardware import clock, device
from armd_jax.hardware.chips import peak_flops

KERNELS = {'tpu': 'pallas_tpu', 'gpu': 'pallas_hopper'}
# The reference keeps all scores; beyond this many it is left out.
MAX_REFERENCE_SCORES = 2**30
# A measurement runs a call so often that it takes this long even at peak.
MIN_SECONDS = 0.01
COMPILED_TPU = pathlib.Path('docs/records/attention_tpu.json')
COMPILED_PEERS = pathlib.Path('docs/records/attention_peers.json')


# ---- on a device -------------------------------------------------------------------------------


def chained(attend: Callable, backward: bool, count: int) -> Callable:
  """`count` calls of `attend(q, k, v)`, each waiting for the one before, as one jitted function.

  A single call of microseconds would time the host.
  """

  def once(q, k, v):
    if not backward:
      return attend(q, k, v)
    out, pullback = jax.vjp(attend, q, k, v)
    return sum(jnp.sum(x, dtype=jnp.float32) for x in pullback(out))

  def run(q, k, v):
    # The compiler may not take a product with 0 for 0, because of NaN.
    step = lambda _, q: q + (0 * once(q, k, v)).astype(q.dtype)
    return lax.fori_loop(0, count, step, q)

  return jax.jit(run)


def attends(shape: shapes.Shape, streams: int) -> dict[str, Callable]:
  """`attend(q, k, v)` by name: our kernels, the reference, and the others that can do the mask."""
  lengths = jnp.asarray(shape.lengths(streams))

  def ours(q, k, v, backend):
    return attention.prefix_attention(q, k, v, lengths, backend=backend)

  names = [KERNELS[device.current().platform]]
  if streams * shape.rows * shape.keys * shape.heads <= MAX_REFERENCE_SCORES:
    names.append('reference')
  found: dict[str, Any] = {name: functools.partial(ours, backend=name) for name in names}
  if streams == 1 and not shape.decodes:  # they support left to right only
    found |= peers.callables(device.current().platform, shape)
  return found


def timed_rows(shape: shapes.Shape, streams: int, repeats: int) -> list[dict]:
  """One row per kernel that can run the shape here."""
  keys = jax.random.split(jax.random.key(0), 3)
  size = (1, streams, shape.rows, shape.heads, shape.head_dim)
  q = jax.random.normal(keys[0], size, jnp.bfloat16)
  size = (1, shape.keys, shape.groups, shape.head_dim)
  k, v = (jax.random.normal(key, size, jnp.bfloat16) for key in keys[1:])
  product = 2 * shape.head_dim * shape.heads * int(shape.lengths(streams).sum())
  peak: Any = peak_flops(device.current().chip)
  counts = {
    kind: max(1, round(MIN_SECONDS * peak / (products * product)))
    for kind, products in (('forward', 2), ('both', 7))
  }
  calls = {}
  for name, attend in attends(shape, streams).items():
    for kind, count in counts.items():
      call = functools.partial(chained(attend, kind == 'both', count), q, k, v)
      try:
        jax.block_until_ready(call())
      except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        if name in KERNELS.values():
          raise
        print(f'{name} cannot do {kind} of {shape.name}: {str(error).splitlines()[0]}')
        continue
      calls[name, kind] = call
  medians = clock.medians(clock.interleaved(calls, repeats))
  seconds = {(name, kind): value / counts[kind] for (name, kind), value in medians.items()}
  rows = []
  for name in dict.fromkeys(name for name, _ in calls):
    row = {'shape': shape.name, 'streams': streams, 'kernel': name}
    for kind, products in (('forward', 2), ('both', 7)):  # useful: 2 products forward, 5 backward
      taken = seconds.get((name, kind))
      row[f'{kind} ms'] = None if taken is None else 1e3 * taken
      row[f'{kind} of peak'] = None if taken is None else products * product / taken / peak
    rows.append(row)
  return rows


# ---- the compiled view -------------------------------------------------------------------------


def _read(path: pathlib.Path, program: ModuleType) -> dict[str, records.Record]:
  """The bfloat16 programs on record, by name."""
  command = f'python -m {program.__name__} --json={path}'
  programs = records.Records(path).read()
  if not programs:
    raise UserError(f'there is no TPU or Hopper GPU here and no {path}; write it with `{command}`')
  if any(found['stamp'] != program.stamp() for found in programs.values()):
    raise UserError(f'{path} was made from other sources; run `{command}` again')
  dtype = 'bfloat16 '
  return {
    key.removeprefix(dtype): found for key, found in programs.items() if key.startswith(dtype)
  }


def compiled_tpu_rows(path: pathlib.Path, peers: pathlib.Path) -> list[dict]:
  """The figures of the TPU compiler's schedules, one row per program.

  Raises:
    UserError: there are no results, or they were made from other sources.
  """
  best = records.Records(peers).read()
  rows = []
  for key, program in _read(path, compile_tpu).items():
    chip, name, streams = key.rsplit(' ', 2)
    shape, forward, backward = shapes.NAMED[name], program['forward'], program['backward']
    # Others need a call per stream, so that two streams change nothing for them.
    peer = best.get(f'{chip} {name}', {})
    rows.append(
      {
        'chip': chip,
        'shape': name,
        'streams': int(streams[1:]),
        'tile': 'x'.join(map(str, forward['blocks'][:2])),
        'active': forward['active'],
        'partial': forward['partial'],
        'GFLOP': _gflop(shape, int(streams[1:])),
        'key-value MB': forward['key_value_bytes'] * shape.groups / 1e6,
        'cycles/tile': forward['cycles_per_active_tile'],
        'backward': backward['cycles_per_active_tile'],
        'useful': forward['useful'],
        'peer': peer.get('forward', [None])[0],
        'useful backward': backward['useful'],
        'peer backward': peer.get('backward', [None])[0],
      }
    )
  return rows


def _gflop(shape: shapes.Shape, streams: int) -> float:
  return 4e-9 * shape.head_dim * shape.heads * int(shape.lengths(streams).sum())


def hopper_tiles(shape: shapes.Shape, streams: int) -> tuple[tiles.Count, tiles.Grid, int]:
  """Tiles of a query head's forward pass, their grid, and how many passes read keys and values."""
  copies = shape.heads // shape.groups
  r, h = hopper_blocks.folded(streams, copies, shape.rows)
  lengths = einops.repeat(shape.lengths(streams), '1 (R r) N -> 1 R (r h N)', r=r, h=h)
  together = hopper_blocks.streams_together(streams // r, shape.head_dim)
  passes = (copies // h) * (streams // r) // together
  keys = hopper_blocks.choose(together, shape.head_dim).forward_keys
  padding = -lengths.shape[2] % hopper_blocks.TILE_ROWS
  lengths = np.pad(lengths, ((0, 0), (0, 0), (0, padding)), 'edge')
  query_tiles = lengths.shape[2] // hopper_blocks.TILE_ROWS
  key_tiles = -(-shape.keys // keys)
  grid = tiles.Grid(1, query_tiles, 1, key_tiles, hopper_blocks.TILE_ROWS, keys)
  return tiles.count(lengths, grid), grid, passes


def compiled_hopper_rows(path: pathlib.Path) -> list[dict]:
  """The figures of ptxas for the bfloat16 programs, one row per program.

  Raises:
    UserError: there are no results, or they were made from other sources.
  """
  rows = []
  for key, program in _read(path, compile_hopper).items():
    name, streams = key.split(' ')
    shape, streams = shapes.NAMED[name], int(streams[1:])
    count, grid, passes = hopper_tiles(shape, streams)
    loaded = 4e-6 * count.active * grid.keys * shape.head_dim * passes * shape.groups
    row = {
      'chip': device.HOPPER,
      'shape': name,
      'streams': streams,
      'tile': f'{grid.rows}x{grid.keys}',
      'active': count.active,
      'partial': count.partial,
      'GFLOP': _gflop(shape, streams),
      'key-value MB': loaded,
    }
    for kernel in compile_hopper.KERNELS:
      row[f'{kernel} spills'] = program[kernel]['spill_stores']
      row[f'{kernel} wgmma'] = program[kernel]['wgmma']
    rows.append(row)
  return rows

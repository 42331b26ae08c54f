"""How many cycles the TPU compiler's own schedule gives the attention kernels.

libtpu writes the scheduled bundles of every kernel (one bundle is about one cycle, latency gaps are
kept as empty bundles) and, per bundle, the units it keeps busy. Branches are recovered from the
bundles: a jump backwards is a loop, a jump forwards a conditional region. Which regions a step runs
follows from its code, so the cycles of a whole walk are a sum over its steps. Not counted: memory
traffic, and stalls that the compiler did not schedule.
"""

from __future__ import annotations

import dataclasses
import glob
import re

import numpy as np

from armd_jax.attention import tiles, tpu_blocks


@dataclasses.dataclass(frozen=True)
class Region:
  """Bundles `start` to `end` (not included) under one branch."""

  kind: str  # 'loop' or 'if'
  start: int
  end: int
  matrix: float  # cycles for which a matrix unit is busy, on average over the units

  @property
  def bundles(self) -> int:
    return self.end - self.start


def read(folder: str, name: str) -> list[Region]:
  """Regions of the kernel whose dump names contain `name`, outermost first.

  Raises:
    FileNotFoundError: if the compiler left no schedule for it.
  """
  found = [
    path
    for path in glob.glob(f'{glob.escape(folder)}/*{name}*-packed-bundles-post-ra.txt')
    if 'schedule-analysis' not in path
  ]
  usage = glob.glob(f'{glob.escape(folder)}/*{name}*-pre-delay_hlo-static-per-bundle-*.txt')
  if not found or not usage:
    raise FileNotFoundError(f'no schedule of {name} in {folder}')
  with open(found[-1], encoding='utf-8') as file:
    jumps = _jumps(file)
  with open(usage[-1], encoding='utf-8') as file:
    lines = file.read().splitlines()
  head = next(i for i, line in enumerate(lines) if ',' in line)
  column = next(
    i for i, unit in enumerate(lines[head].split(',')) if unit.strip() in ('MXU', 'MATMUL')
  )
  capacity = int(lines[head + 1].split()[column])
  busy = [int(line.split()[column]) / capacity for line in lines[head + 3 :] if line.strip()]
  regions = []
  for address, target in jumps:
    if target <= address:
      span = ('loop', target, address + 1)
    elif target - address > 1:
      span = ('if', address + 1, target)
    else:
      continue
    regions.append(Region(*span, matrix=sum(busy[span[1] : span[2]])))
  return sorted(regions, key=lambda r: (r.start, -r.end))


def _jumps(lines) -> list[tuple[int, int]]:
  jumps, address = [], 0
  for line in lines:
    match = re.match(r'\s*(0x[0-9a-f]+|0)\s+[A-Z, ]*:', line)
    if match:
      address = int(match.group(1), 16)
    for target in re.findall(r'sbr\.\w+ (?:\([^)]*\) )?target bundleno = (\d+)', line):
      jumps.append((address, int(target)))
  return jumps


def directly_inside(regions: list[Region], outer: Region) -> list[Region]:
  """Regions directly inside another one, in order."""
  inner = [r for r in regions if r != outer and outer.start <= r.start and r.end <= outer.end]
  return [
    r for r in inner if not any(o != r and o.start <= r.start and r.end <= o.end for o in inner)
  ]


def cycles(
  regions: list[Region],
  blocks: tpu_blocks.Blocks,
  grid: tiles.Grid,
  copies: int,
  lengths_BxRxN: np.ndarray,
  backward: bool,
) -> int:
  """Cycles of one key head's walk over these (padded) lengths.

  Raises:
    ValueError: if the regions are not those of the kernels in tpu.py.
  """
  body = max((r for r in regions if r.kind == 'loop' and r.matrix), key=lambda r: r.bundles)
  inside = directly_inside(regions, body)
  while sum(r.matrix > 0 for r in inside) == 1:  # a region that merely guards the whole step
    guard = next(r for r in inside if r.matrix)
    inside = [r for r in inside if r is not guard and r.start < guard.start] + directly_inside(
      regions, guard
    )
  compute = [r for r in inside if r.matrix]
  if len(compute) != 2:
    raise ValueError(f'found {len(compute)} compute regions, not an unmasked and a masked one')
  plain, masked = compute
  before = [r for r in inside if r.end <= plain.start]
  after = [r for r in inside if r.start >= masked.end]
  # Conditions that the sizes decide are folded away; such a region runs at every step.
  if backward:
    starts = ['span', 'idle'] if grid.span_tiles * grid.query_tiles > 1 else ['idle']
  else:
    # Transposed, nothing is prepared for a query tile.
    starts = ['first'] if grid.span_tiles > 1 and not blocks.transposed else []
  ends = ['last', 'flush'] if backward else ['last']
  parts = dict(zip(reversed(starts), reversed([r.bundles for r in before]), strict=False))
  parts |= dict(zip(ends, [r.bundles for r in after], strict=False))
  every = body.bundles - plain.bundles - masked.bundles - sum(parts.values())
  query_tiles = grid.batch * grid.spans * grid.query_tiles
  count = tiles.count(lengths_BxRxN, grid)
  total = count.steps * every
  total += query_tiles * (parts.get('first', 0) + parts.get('last', 0))
  total += (count.steps - count.active) * parts.get('idle', 0)
  total += grid.batch * grid.spans * (parts.get('span', 0) + parts.get('flush', 0))
  total += (count.active - count.partial) * _plain(regions, plain, blocks, copies)
  return int(total + _masked(regions, masked, blocks, grid, copies, lengths_BxRxN))


def _plain(regions, plain, blocks, copies) -> int:
  """Cycles of an unmasked tile; mirrors `tpu_call.for_each_unit`."""
  row_units, key_units = blocks.rows // blocks.plain[0], blocks.keys // blocks.plain[1]
  trips = []
  if copies * row_units * key_units > blocks.overlap and key_units > 1:
    trips.append(key_units)
  if copies * row_units > blocks.overlap and row_units > 1:
    trips.append(row_units)
  total, region, times = 0, plain, 1
  for trip in trips:
    loops = [r for r in directly_inside(regions, region) if r.kind == 'loop']
    if not loops:  # unrolled by the compiler
      break
    total += times * (region.bundles - loops[0].bundles)
    region, times = loops[0], times * trip
  return total + times * region.bundles


def _masked(regions, masked, blocks, grid, copies, lengths) -> int:
  """Cycles of all masked tiles; mirrors `tpu_call.for_each_unit`."""
  stairs, around, any_shape = None, 0, masked
  if blocks.has_stairs(copies):
    stairs, any_shape = [r for r in directly_inside(regions, masked) if r.matrix]
    around = masked.bundles - stairs.bundles - any_shape.bundles
  rows, outside = any_shape, 0
  loops = [r for r in directly_inside(regions, any_shape) if r.kind == 'loop']
  if blocks.row_units > 1 and loops:
    rows, outside = loops[0], any_shape.bundles - loops[0].bundles
  bodies = [r for r in directly_inside(regions, rows) if r.matrix]
  overhead = rows.bundles - sum(r.bundles for r in bodies)
  if not bodies:
    raise ValueError('found no unit in the masked tile')

  batch, streams, _ = lengths.shape
  unit = lengths.reshape(batch, streams, -1, blocks.unit_rows).max((1, 3))
  tiled = lengths.reshape(batch, streams, -1, blocks.rows)
  most, least = tiled.max((1, 3)), tiled.min((1, 3))
  unit_least = lengths.reshape(batch, streams, -1, blocks.unit_rows).min((1, 3))
  stair = np.array([blocks.stair(i) for i in range(blocks.row_units)])
  total = 0
  for tile in range(grid.spans * grid.span_tiles):
    start, first = tile * blocks.keys, tile % grid.span_tiles == 0
    partial = (least < start + blocks.keys) & ((most > start) | first)
    seen = np.clip(-(-(unit - start) // blocks.unit_keys), 0, blocks.key_units)
    seen = seen.reshape(batch, -1, blocks.row_units)
    seen = np.maximum(seen, (first & (most > start))[..., None])[partial]
    total += len(seen) * around
    if stairs is not None:
      all_see = (unit_least - start).reshape(batch, -1, blocks.row_units)[partial]
      found = seen == np.arange(blocks.row_units) + 1
      found = (found & ((all_see >= stair) | (stair == 0))).all(-1)
      total += found.sum() * stairs.bundles
      seen = seen[~found]
    total += len(seen) * outside + seen.size * overhead
    if len(bodies) == blocks.key_units:
      total += sum((seen == i + 1).sum() * body.bundles for i, body in enumerate(bodies))
    else:  # a loop over the visible key units
      total += seen.sum() * bodies[0].bundles
  return total

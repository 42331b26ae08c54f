"""How large the tiles of the TPU kernels are, per chip."""

from __future__ import annotations

import dataclasses

from armd_jax.attention import tiles

LANES = 128  # width of a vector register, and of the narrowest key tile
MAX_VMEM_MIB = {'v4': 16, 'v5e': 128, 'v5p': 64, 'v6e': 128, '7x': 64}
CHIPS = tuple(MAX_VMEM_MIB)


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Tile sizes of one kernel.

  A tile is computed in units. Units in one basic block are independent chains that the compiler
  interleaves, which keeps the matrix unit busy; a masked tile goes through its rows unit by unit
  and leaves out the keys that none of them sees.

  Attributes:
    rows: slots in a query tile; each brings its streams and the query heads of its group.
    keys: keys in a key tile.
    unit_rows: slots in a unit.
    unit_keys: keys in a unit.
    span: most keys whose gradients are held in VMEM at once (backward only).
    overlap: most units in one basic block, as long as the copies of a row allow it.
  """

  rows: int
  keys: int
  unit_rows: int
  unit_keys: int
  span: int = 0
  overlap: int = 4

  def fit(self, num_rows: int, num_keys: int) -> Blocks:
    """The same blocks, no larger than these rows and keys need and evenly spread over them."""
    # Rows are sublanes of a score tile and lanes of a length tile: few rows fill one narrow tile.
    step = LANES if num_rows > LANES else 16
    units = -(-num_rows // self.unit_rows)
    unit_rows = tiles.ceil_to(-(-num_rows // units), step)
    query_tiles = -(-units // (self.rows // self.unit_rows))
    unit_keys = min(self.unit_keys, tiles.ceil_to(num_keys, LANES))
    return dataclasses.replace(
      self,
      rows=-(-units // query_tiles) * unit_rows,
      keys=min(self.keys, tiles.ceil_to(num_keys, unit_keys)),
      unit_rows=unit_rows,
      unit_keys=unit_keys,
    )

  def grid(self, batch: int, num_rows: int, num_keys: int) -> tiles.Grid:
    """The cut of padded rows and keys; without a span, all keys are one."""
    key_tiles = -(-num_keys // self.keys)
    spans = -(-key_tiles * self.keys // self.span) if self.span else 1
    return tiles.Grid(
      batch=batch,
      query_tiles=-(-num_rows // self.rows),
      spans=spans,
      span_tiles=-(-key_tiles // spans),
      rows=self.rows,
      keys=self.keys,
    )


def choose(
  chip: str, copies: int, num_rows: int, num_keys: int, head_dim: int, itemsize: int
) -> tuple[Blocks, Blocks]:
  """Forward and backward blocks.

  Streams do not matter here: were a query tile shorter for two of them, or its key tiles other
  ones, the second stream would move keys and values again.

  Args:
    chip: one of `CHIPS`.
    copies: query heads of a group.
    num_rows: slots.
    num_keys: keys.
    head_dim: D.
    itemsize: bytes per element.
  """
  vmem = MAX_VMEM_MIB[chip]
  if num_rows <= LANES:  # decoding: bound by reading the keys, so few and large steps
    forward = Blocks(rows=128, keys=2048, unit_rows=128, unit_keys=1024)
  elif copies == 1:
    small = vmem < 32 or itemsize > 2 or head_dim > 128
    forward = Blocks(rows=512 if small else 1024, keys=1024, unit_rows=512, unit_keys=512)
  else:
    rows = 512 if copies <= 4 else 256
    forward = Blocks(rows=rows, keys=512, unit_rows=256, unit_keys=512)
  # Per key: two float32 accumulators and two double-buffered outputs of `itemsize`.
  width = max(head_dim, LANES)
  span = vmem * 2**20 // 3 // (width * 2 * (4 + 2 * itemsize)) // forward.keys * forward.keys
  backward = dataclasses.replace(forward, span=max(span, forward.keys))
  return forward.fit(num_rows, num_keys), backward.fit(num_rows, num_keys)

"""How large the tiles of the TPU kernels are, per chip and shape.

A rule, justified by the compiler's schedule (docs/attention.md), and before it the table of what
`python -m armd_jax.bench.attention.tune` found fastest on a real chip.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

from armd_jax.attention import tiles
from armd_jax.hardware import cores

LANES = 128  # width of a vector register, and of the narrowest key tile
CHIPS = tuple(cores.MAX_VMEM_MIB)
TABLE = pathlib.Path(__file__).with_name('tpu_blocks.json')


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
    join: units, in each direction, that are one where no mask is needed.
    transposed: whether forward keeps scores as [keys, rows]; then what a row unit sees of a masked
      tile is one unit.
    span: most keys whose gradients are held in VMEM at once (backward only).
    overlap: most units in one basic block, as long as the copies of a row allow it.
  """

  rows: int
  keys: int
  unit_rows: int
  unit_keys: int
  join: int = 1
  transposed: bool = False
  span: int = 0
  overlap: int = 4

  @property
  def row_units(self) -> int:
    return self.rows // self.unit_rows

  @property
  def key_units(self) -> int:
    return self.keys // self.unit_keys

  @property
  def plain(self) -> tuple[int, int]:
    """Rows and keys of a unit of a tile that needs no mask."""
    rows, keys = (
      self.join if units % self.join == 0 else 1 for units in (self.row_units, self.key_units)
    )
    return rows * self.unit_rows, keys * self.unit_keys

  def has_stairs(self, copies: int) -> bool:
    """Whether a tile on a causal diagonal has a basic block of its own."""
    return self.row_units == self.key_units > 1 and 2 * copies <= self.overlap

  def stair(self, unit: int) -> int:
    """Keys of a tile on a causal diagonal that a row unit sees without a mask.

    A vector of lanes less than all before its own: there rows may see to the end of their block.
    """
    return max(0, unit * self.unit_keys - LANES) if self.transposed else 0

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
    """The cut of rows and keys, whose last tiles may overrun; without a span, all keys are one."""
    key_tiles = -(-num_keys // self.keys)
    spans = -(-key_tiles * self.keys // self.span) if self.span else 1
    span_tiles = -(-key_tiles // spans)
    return tiles.Grid(
      batch=batch,
      query_tiles=-(-num_rows // self.rows),
      spans=-(-key_tiles // span_tiles),  # none is wholly beyond the last key
      span_tiles=span_tiles,
      rows=self.rows,
      keys=self.keys,
    )


@functools.cache
def tuned() -> dict[str, list[dict]]:
  """Forward and backward blocks by `name`, from the table; empty if it was never written."""
  return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def name(chip: str, copies: int, num_rows: int, num_keys: int, head_dim: int, itemsize: int) -> str:
  """The line of the table that holds for a call."""
  return f'{chip} copies={copies} rows={num_rows} keys={num_keys} D={head_dim} bytes={itemsize}'


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
  arguments = chip, copies, num_rows, num_keys, head_dim, itemsize
  found = tuned().get(name(*arguments))
  chosen = (Blocks(**blocks) for blocks in found) if found else rule(*arguments)
  forward, backward = (blocks.fit(num_rows, num_keys) for blocks in chosen)
  return forward, backward


def longest_span(chip: str, keys: int, head_dim: int, itemsize: int, share: float = 1 / 3) -> int:
  """How many keys, in whole tiles, have gradients that fit a share of VMEM."""
  # Per key: two float32 accumulators and two double-buffered outputs of `itemsize`.
  width = max(head_dim, LANES)
  span = int(share * cores.MAX_VMEM_MIB[chip] * 2**20) // (width * 2 * (4 + 2 * itemsize))
  return max(span // keys, 1) * keys


def rule(
  chip: str, copies: int, num_rows: int, num_keys: int, head_dim: int, itemsize: int
) -> tuple[Blocks, Blocks]:
  """Forward and backward blocks that are not in the table; arguments as in `choose`."""
  narrow, small = itemsize == 2, cores.MAX_VMEM_MIB[chip] < 32
  share = 1 / 3 if narrow or not small else 1 / 4  # of VMEM, for the gradients of a span of keys
  if num_rows <= LANES:  # decoding: bound by reading the keys, so few and large steps
    keys = 2048 if narrow or not small else 512
    forward = Blocks(rows=128, keys=keys, unit_rows=128, unit_keys=min(1024, keys))
  elif small and num_keys * head_dim > 2**22:
    # Every span costs a share of dq in memory: small tiles leave room for fewer, longer ones.
    rows, keys, share = (256, 512, 2 / 5) if narrow else (128, 256, 3 / 5)
    forward = Blocks(rows=rows, keys=keys, unit_rows=rows, unit_keys=keys)
  elif not narrow:  # six passes per product: small units, or the code grows with them
    forward = Blocks(rows=256, keys=256 if small else 512, unit_rows=256, unit_keys=256)
  elif copies > (1 if small else 4):
    forward = Blocks(rows=256, keys=512, unit_rows=256, unit_keys=512)
  else:
    # A tile has a beginning and an end to pay for, which large ones share among more units.
    large = copies == 1 and num_rows >= 4096 and not small
    rows, keys, overlap = (2048, 2048, 8) if large else (512 if small else 1024, 1024, 4)
    join = 2 if chip in cores.WIDE else 1
    forward = Blocks(rows, keys, unit_rows=512, unit_keys=512, join=join, overlap=overlap)
  span = longest_span(chip, forward.keys, head_dim, itemsize, share)
  backward = dataclasses.replace(forward, span=span)
  if chip in cores.WIDE and narrow and num_rows > LANES:
    forward = dataclasses.replace(
      forward, unit_rows=256, unit_keys=256, join=2, transposed=True, overlap=8
    )
  return forward, backward

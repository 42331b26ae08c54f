"""Which key tiles a query tile needs: exact counts, and the walk that the TPU kernels follow.

Rows are cut into tiles of `rows` (all streams of a slot are in one tile), keys into tiles of
`keys`. A row of length L sees keys 0..L-1, so one comparison each decides what a tile costs:

    active   some row sees some key:     longest length in the query tile >  first key of the tile
    partial  some row misses some key:   shortest length in the query tile <  last key + 1

Active key tiles of a query tile are its first few. Only they are walked; only partial ones are
masked. `walk` lists them under `jit`, `count` counts them exactly for the tables and benchmarks.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def ceil_to(value: int, multiple: int) -> int:
  """The smallest multiple that is at least `value`."""
  return -(-value // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Grid:
  """How rows and keys are cut; every size divides the padded array it cuts.

  Attributes:
    batch: sequences with lengths of their own, 1 where all share them.
    query_tiles: query tiles of a sequence.
    spans: parts of the keys that are walked one after the other.
    span_tiles: key tiles of a span.
    rows: slots in a query tile.
    keys: keys in a key tile.
  """

  batch: int
  query_tiles: int
  spans: int
  span_tiles: int
  rows: int
  keys: int

  @property
  def size(self) -> int:
    """Steps of the walk if every tile is active: the length of `Walk.codes`."""
    return self.batch * self.spans * self.query_tiles * self.span_tiles

  # A step is one int32, most significant field first: batch, span, query tile, key tile in its
  # span, partial, last. Sorting steps therefore orders the walk.
  @property
  def _key_bits(self) -> int:
    return (self.span_tiles - 1).bit_length()

  @property
  def _query_bits(self) -> int:
    return (self.query_tiles - 1).bit_length()

  @property
  def _span_bits(self) -> int:
    return (self.spans - 1).bit_length()

  def encode(self, batch, span, query, key, partial, last):
    code = batch
    for field, bits in (
      (span, self._span_bits),
      (query, self._query_bits),
      (key, self._key_bits),
      (partial, 1),
      (last, 1),
    ):
      code = (code << bits) | field
    return code

  def last(self, code):
    """1 at the last key tile of a query tile in a span."""
    return code & 1

  def partial(self, code):
    """1 where the tile needs its mask."""
    return (code >> 1) & 1

  def key(self, code):
    """The key tile, counted within its span."""
    return (code >> 2) & ((1 << self._key_bits) - 1)

  def query(self, code):
    return (code >> (2 + self._key_bits)) & ((1 << self._query_bits) - 1)

  def span(self, code):
    return (code >> (2 + self._key_bits + self._query_bits)) & ((1 << self._span_bits) - 1)

  def batch_of(self, code):
    return code >> (2 + self._key_bits + self._query_bits + self._span_bits)


def longest(lengths_BxRxN: Array, rows: int) -> Array:
  """Longest length of each `rows` consecutive slots over all streams, `[B, N // rows]`."""
  batch, streams, slots = lengths_BxRxN.shape
  return jnp.max(lengths_BxRxN.reshape(batch, streams, slots // rows, rows), axis=(1, 3))


def shortest(lengths_BxRxN: Array, rows: int) -> Array:
  """Shortest length of each `rows` consecutive slots over all streams, `[B, N // rows]`."""
  return -longest(-lengths_BxRxN, rows)


def walk(lengths_BxRxN: Array, grid: Grid) -> tuple[Array, Array]:
  """Every step that the kernels take, and no other: active tiles, query tile by query tile.

  The first key tile of a query tile is walked even where nothing is visible, because its outputs
  still have to be written (as zeros). Lengths may be traced, hence the padded list and its count.

  Args:
    lengths_BxRxN: int32, B and N those of the grid.
    grid: the cut.
  Returns:
    steps: int32 scalar, how many steps there are.
    codes: int32 `[grid.size]`, see `Grid`; entries from `steps` on are not meant to be read.

  Examples:
    >>> grid = Grid(batch=1, query_tiles=2, spans=1, span_tiles=2, rows=2, keys=2)
    >>> steps, codes = walk(jnp.array([[[1, 2, 3, 4]]]), grid)  # left to right
    >>> [(int(grid.query(c)), int(grid.key(c)), int(grid.partial(c))) for c in codes[:int(steps)]]
    [(0, 0, 1), (1, 0, 0), (1, 1, 1)]
  """
  index = [jnp.arange(n, dtype=jnp.int32) for n in (grid.batch, grid.spans, grid.query_tiles)]
  key = jnp.arange(grid.span_tiles, dtype=jnp.int32)
  batch, span, query, key = jnp.meshgrid(*index, key, indexing='ij')
  start = (span * grid.span_tiles + key) * grid.keys
  most = longest(lengths_BxRxN, grid.rows)[:, None, :, None]
  least = shortest(lengths_BxRxN, grid.rows)[:, None, :, None]
  partial = least < start + grid.keys
  last = (most <= start + grid.keys) | (key == grid.span_tiles - 1)
  walked = (most > start) | (key == 0)
  code = grid.encode(batch, span, query, key, partial.astype(jnp.int32), last.astype(jnp.int32))
  # What is not walked gets the largest code, and so comes last.
  codes = jnp.sort(jnp.where(walked, code, jnp.iinfo(jnp.int32).max).ravel())
  return jnp.sum(walked, dtype=jnp.int32), codes


@dataclasses.dataclass(frozen=True)
class Count:
  """What one pass over a mask costs, exact; sums over the sequences of the lengths.

  Attributes:
    steps: tiles walked, empty first tiles included.
    active: tiles in which some row sees some key.
    partial: active tiles that need their mask.
    pairs: (row, key) pairs that are visible, per query head; every stream counts.
    tile_pairs: (row, key) pairs in active tiles, per query head.
    key_tiles_loaded: key tiles brought in from memory, per key head; the walk keeps a tile that
      the next step needs again.
  """

  steps: int
  active: int
  partial: int
  pairs: int
  tile_pairs: int
  key_tiles_loaded: int

  def key_value_bytes(self, grid: Grid, head_dim: int, itemsize: int) -> int:
    """Bytes of keys and values read by one pass, per key head."""
    return 2 * self.key_tiles_loaded * grid.keys * head_dim * itemsize

  def flops(self, head_dim: int, backward: bool) -> int:
    """Useful floating-point operations per query head: visible pairs, 2 or 5 products."""
    return (5 if backward else 2) * 2 * head_dim * self.pairs


def count(lengths_BxRxN: np.ndarray, grid: Grid) -> Count:
  """Counts a pass over these lengths on the host, in closed form per query tile."""
  lengths = np.asarray(lengths_BxRxN, np.int64)
  batch, streams, slots = lengths.shape
  tiled = lengths.reshape(batch, streams, slots // grid.rows, grid.rows)
  most, least = tiled.max((1, 3)), tiled.min((1, 3))
  start = np.arange(grid.spans * grid.span_tiles) * grid.keys
  active = most[..., None] > start
  partial = active & (least[..., None] < start + grid.keys)
  # [batch, span, query tile, key tile]: the order of the walk.
  walked = active.reshape(batch, grid.query_tiles, grid.spans, grid.span_tiles).swapaxes(1, 2)
  walked = walked | (np.arange(grid.span_tiles) == 0)
  place = np.stack(np.nonzero(walked))[[0, 1, 3]]
  loaded = 1 + int(np.any(place[:, 1:] != place[:, :-1], axis=0).sum())
  return Count(
    steps=int(walked.sum()),
    active=int(active.sum()),
    partial=int(partial.sum()),
    pairs=int(lengths.sum()),
    tile_pairs=int(active.sum()) * grid.rows * grid.keys * streams,
    key_tiles_loaded=loaded,
  )

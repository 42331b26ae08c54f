"""What the forward and the backward TPU kernel share: their launch and their way through a tile."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from armd_jax.attention import tiles, tpu_blocks

Array = jax.Array

ROWS_BY_KEYS = (((1,), (1,)), ((), ()))  # contract the head dimension of both
PLAIN = (((1,), (0,)), ((), ()))


def dot(a: Array, b: Array, dimensions) -> Array:
  # float32 operands go through the matrix unit in full precision, not as one bf16 pass.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def pad(x: Array, axis: int, size: int, **kwargs) -> Array:
  """`x` padded at the end of an axis, untouched where it already fits."""
  if x.shape[axis] == size:
    return x
  width = [(0, 0)] * x.ndim
  width[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, width, **kwargs)


def _first(x: Array, count) -> Array:
  """`x` with zeros after its first `count` rows, whatever stands there."""
  index = lax.broadcasted_iota(jnp.int32, x.shape, 0)
  return jnp.where(index < count, x, jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class Call:
  """One kernel launch: its walk, its block specs and its sizes.

  The last tile may overrun the rows or keys of the arrays: what is read there is arbitrary, what is
  written there is dropped.
  """

  blocks: tpu_blocks.Blocks
  grid: tiles.Grid
  batch: int
  groups: int
  copies: int
  streams: int
  num_rows: int
  num_keys: int
  head_dim: int

  @classmethod
  def make(cls, blocks, q, k, lengths) -> Call:
    batch, groups, copies, num_rows, head_dim = q.shape
    num_keys = k.shape[2]
    grid = blocks.grid(lengths.shape[0], num_rows, num_keys)
    sizes = batch, groups, copies, lengths.shape[1], num_rows, num_keys, head_dim
    return cls(blocks, grid, *sizes)

  @property
  def padded_rows(self) -> int:
    return self.grid.query_tiles * self.grid.rows

  def tile_start(self, code):
    """The first key of a tile."""
    return (self.grid.span(code) * self.grid.span_tiles + self.grid.key(code)) * self.grid.keys

  def seen(self, code, longest, unit):
    """How far beyond the start of its tile the rows of a row unit see; 0 or less: they do not."""
    tile = self.grid.batch_of(code) * self.grid.query_tiles + self.grid.query(code)
    return longest[tile * self.blocks.row_units + unit] - self.tile_start(code)

  def sees_nothing(self, code, longest):
    """Whether a tile is walked for its outputs only."""
    units = [self.seen(code, longest, i) for i in range(self.blocks.row_units)]
    return functools.reduce(jnp.maximum, units) <= 0

  def real_rows(self, x: Array, code, row) -> Array:
    """`x`, the rows of a tile from `row` on, with zeros beyond the last row there is."""
    if self.num_rows % self.grid.rows == 0:
      return x
    return _first(x, self.num_rows - self.grid.query(code) * self.grid.rows - row)

  def real_keys(self, x: Array, code, key) -> Array:
    """`x`, the keys of a tile from `key` on, with zeros beyond the last key there is."""
    if self.num_keys % self.grid.keys == 0:
      return x
    return _first(x, self.num_keys - self.tile_start(code) - key)

  def _batch(self, b, code):
    # Either all sequences share one walk, or one walk goes over all sequences.
    return b + self.grid.batch_of(code)

  def rows_spec(self) -> pl.BlockSpec:
    """`[B, G, C, M, D]`, one query tile of it."""

    def index(b, g, t, codes, _):
      code = codes[t]
      return self._batch(b, code), g, 0, self.grid.query(code), 0

    return pl.BlockSpec((1, 1, self.copies, self.grid.rows, self.head_dim), index)

  def stats_spec(self, kinds: int) -> pl.BlockSpec:
    """`[B, G, kinds, C, M]`, numbers of each row of one query tile."""

    def index(b, g, t, codes, _):
      code = codes[t]
      return self._batch(b, code), g, 0, 0, self.grid.query(code)

    return pl.BlockSpec((1, 1, kinds, self.copies, self.grid.rows), index)

  def lengths_spec(self) -> pl.BlockSpec:
    def index(b, g, t, codes, _):
      del b, g
      return self.grid.batch_of(codes[t]), 0, self.grid.query(codes[t])

    return pl.BlockSpec((1, self.streams, self.grid.rows), index)

  def keys_spec(self) -> pl.BlockSpec:
    """`[B, G, K, D]`, one key tile of it."""

    def index(b, g, t, codes, _):
      code = codes[t]
      tile = self.grid.span(code) * self.grid.span_tiles + self.grid.key(code)
      return self._batch(b, code), g, tile, 0

    return pl.BlockSpec((1, 1, self.grid.keys, self.head_dim), index)

  def span_spec(self) -> pl.BlockSpec:
    """`[B, G, K, D]`, all key tiles of a span."""

    def index(b, g, t, codes, _):
      return self._batch(b, codes[t]), g, self.grid.span(codes[t]), 0

    return pl.BlockSpec((1, 1, self.grid.span_tiles * self.grid.keys, self.head_dim), index)

  def partial_rows_spec(self) -> pl.BlockSpec:
    """`[spans, B, G, C, M, D]`, one query tile of one span."""
    inner = self.rows_spec()

    def index(b, g, t, codes, longest):
      return self.grid.span(codes[t]), *inner.index_map(b, g, t, codes, longest)

    return pl.BlockSpec((None, *inner.block_shape), index)

  def run(self, kernel, name, products, vmem_bytes, lengths, inputs, in_specs, outs, scratch):
    """Launches the kernel over the walk of `lengths`.

    `outs` are (shape, dtype, spec), or None for an output that is not wanted: the kernel gets None
    for it, and so does the caller.
    """
    lengths = pad(lengths, 2, self.padded_rows, mode='edge')
    steps, codes = tiles.walk(lengths, self.grid)
    longest = tiles.longest(lengths, self.blocks.unit_rows).ravel()
    # Under shard_map, results vary over the same mesh axes as the inputs.
    varying = jax.typeof(inputs[0]).manual_axis_type
    pairs = self.copies * self.num_rows * self.num_keys * self.batch * self.groups
    cost = pl.CostEstimate(
      # Lengths are not known to the compiler: half of all pairs are taken as visible.
      flops=products * self.head_dim * pairs,
      transcendentals=pairs // 2,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in inputs)
      + sum(math.prod(out[0]) * jnp.dtype(out[1]).itemsize for out in outs if out),
    )
    return pl.pallas_call(
      functools.partial(kernel, call=self),
      out_shape=[out and jax.ShapeDtypeStruct(*out[:2], manual_axis_type=varying) for out in outs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(self.batch // self.grid.batch, self.groups, steps),
        in_specs=[self.lengths_spec(), *in_specs],
        out_specs=[out and out[2] for out in outs],
        scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
      ),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=('parallel', 'parallel', 'arbitrary'),
        vmem_limit_bytes=vmem_bytes * 7 // 8,
        # A third of a step's fixed cost; the interpreter checks bounds in the tests.
        disable_bounds_checks=True,
      ),
      cost_estimate=cost,
      name=name,
    )(codes, longest, lengths, *inputs)


def for_each_unit(call: Call, code, longest, unit) -> None:
  """Runs `unit(copy, rows, keys, masked)` for the visible units of a tile; slices lie in the tile.

  The copies of a unit always stand in one basic block, where the compiler interleaves them; rows
  and keys join them up to `blocks.overlap` units and are looped over beyond, to bound the code.
  """
  blocks, grid, copies = call.blocks, call.grid, range(call.copies)
  row_units, key_units = blocks.row_units, blocks.key_units

  def loop(count, step, body, unroll=False):
    """`body(start)` for the first `count` multiples of step."""
    if unroll:
      for i in range(count):
        body(i * step)
    else:
      lax.fori_loop(0, count, lambda i, _: body(pl.multiple_of(i * step, step)), None)

  @pl.when(grid.partial(code) == 0)
  def _():
    size = blocks.plain
    row_count, key_count = blocks.rows // size[0], blocks.keys // size[1]
    unroll_rows = call.copies * row_count <= blocks.overlap
    unroll_keys = call.copies * row_count * key_count <= blocks.overlap

    def keys(key):
      def rows(row):
        for copy in copies:
          unit(copy, pl.ds(row, size[0]), pl.ds(key, size[1]), False)

      loop(row_count, size[0], rows, unroll_rows)

    loop(key_count, size[1], keys, unroll_keys)

  def masked(row, key):
    for copy in copies:
      unit(copy, pl.ds(row, blocks.unit_rows), pl.ds(key, blocks.unit_keys), True)

  def seen(row):
    """Key units of the tile that some row of a row unit sees.

    At least one in the first tile of a query tile, unless none of its rows sees anything.
    """
    visible = call.seen(code, longest, lax.div(row, blocks.unit_rows))
    alone = (grid.key(code) == 0) & jnp.logical_not(call.sees_nothing(code, longest))
    units = lax.div(visible + blocks.unit_keys - 1, blocks.unit_keys)
    return jnp.clip(units, alone.astype(jnp.int32), key_units)

  def any_shape():
    def rows(row):
      if call.copies * key_units > blocks.overlap // 2:
        loop(seen(row), blocks.unit_keys, functools.partial(masked, row))
        return
      # Few copies overlap little: one body for each number of visible key units.
      for count in range(1, key_units + 1):
        body = functools.partial(
          loop, count, blocks.unit_keys, functools.partial(masked, row), True
        )
        pl.when(seen(row) == count)(body)

    loop(row_units, blocks.unit_rows, rows)

  def stairs():
    for i in range(row_units):
      for j in range(i + 1):
        masked(i * blocks.unit_rows, j * blocks.unit_keys)

  @pl.when(grid.partial(code) == 1)
  def _():
    if not blocks.has_stairs(call.copies):
      any_shape()
      return
    # The tile on a causal diagonal, in one basic block.
    found = functools.reduce(
      jnp.logical_and, [seen(i * blocks.unit_rows) == i + 1 for i in range(row_units)]
    )
    pl.when(found)(stairs)
    pl.when(jnp.logical_not(found))(any_shape)

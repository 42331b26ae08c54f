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
COLUMNS_BY_COLUMNS = (((0,), (0,)), ((), ()))  # contract the first dimension of both
PLAIN = (((1,), (0,)), ((), ()))


def dot(a: Array, b: Array, dimensions) -> Array:
  # float32 operands go through the matrix unit in full precision, not as one bf16 pass.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def pad(x: Array, axis: int, size: int, **kwargs) -> Array:
  """`x` padded at the end of an axis, untouched where it already fits."""
  if x.shape[axis] == size:
    return x
  width = [(0, 0)] * x.ndim
  width[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, width, **kwargs)


def _first(x: Array, count) -> Array:
  """`x` with zeros in place of the rows after its first `count`."""
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

  def _bound(self, code, bounds, unit, shortest):
    tile = self.grid.batch_of(code) * self.grid.query_tiles + self.grid.query(code)
    tile += shortest * self.grid.batch * self.grid.query_tiles
    return bounds[tile * self.blocks.row_units + unit] - self.tile_start(code)

  def seen(self, code, bounds, unit):
    """How far beyond the start of its tile the rows of a row unit see; 0 or less: they do not."""
    return self._bound(code, bounds, unit, False)

  def all_see(self, code, bounds, unit):
    """How far beyond the start of its tile every row of a row unit sees."""
    return self._bound(code, bounds, unit, True)

  def sees_nothing(self, code, bounds):
    """Whether a tile is walked for its outputs only."""
    units = [self.seen(code, bounds, i) for i in range(self.blocks.row_units)]
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

    def index(b, g, t, codes, bounds):
      return self.grid.span(codes[t]), *inner.index_map(b, g, t, codes, bounds)

    return pl.BlockSpec((None, *inner.block_shape), index)

  def run(self, kernel, *, name, products, vmem_bytes, lengths, inputs, in_specs, outs, scratch):
    """Launches the kernel over the walk of `lengths`.

    `outs` are (shape, dtype, spec), or None for an output that is not wanted: the kernel gets None
    for it, and so does the caller.
    """
    # A padded row sees what the last real one does, and so makes no tile active or partial.
    lengths = pad(lengths, 2, self.padded_rows, mode='edge')
    steps, codes = tiles.walk(lengths, self.grid)
    bounds = [f(lengths, self.blocks.unit_rows).ravel() for f in (tiles.longest, tiles.shortest)]
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
    )(codes, jnp.concatenate(bounds), lengths, *inputs)


def for_each_unit(call: Call, code, bounds, run) -> None:
  """Runs the visible units of a tile, some at a time: `run` gets those of one basic block.

  A unit is (copy, rows, keys, plain): slices of the tile, and how many of its first keys are seen
  by all of its rows; the others need the mask.

  The copies of a unit are always in one basic block, where the compiler interleaves them; rows
  and keys join them up to `blocks.overlap` units and are looped over beyond, to bound the code.
  """
  # Three tiles of three row units by three key units: x is computed without a mask, m with one, and
  # a unit that none of its rows sees (.) not at all.
  #
  #   partial == 0     partial == 1: stairs     partial == 1: any other shape
  #      x x x            m . .                    m . .
  #      x x x            m m .                    m m m
  #      x x x            m m m                    m m m
  #   units joined     one basic block for      a loop over row units; in it a loop over the key
  #   to larger ones   a causal diagonal        units seen, or one body for each number of them
  #
  # The pipeline has filled the tile's buffers in VMEM before any unit begins, so none waits.
  blocks, grid, copies = call.blocks, call.grid, range(call.copies)
  row_units, key_units = blocks.row_units, blocks.key_units

  def starts(count, step, body, together):
    """`body` with the first `count` multiples of step, together or one by one."""
    if together:
      body([i * step for i in range(count)])
    else:
      lax.fori_loop(0, count, lambda i, _: body([pl.multiple_of(i * step, step)]), None)

  @pl.when(grid.partial(code) == 0)
  def _():
    size = blocks.plain
    row_count, key_count = blocks.rows // size[0], blocks.keys // size[1]

    def keys(key_starts):
      def rows(row_starts):
        run(
          [
            (copy, pl.ds(row, size[0]), pl.ds(key, size[1]), size[1])
            for key in key_starts
            for row in row_starts
            for copy in copies
          ]
        )

      starts(row_count, size[0], rows, call.copies * row_count <= blocks.overlap)

    starts(key_count, size[1], keys, call.copies * row_count * key_count <= blocks.overlap)

  def masked(row, key, count=1, plain=0):
    """The units of a row unit over `count` key units, of which the `plain` first keys are seen."""
    rows = pl.ds(row, blocks.unit_rows)
    if blocks.transposed:
      return [(copy, rows, pl.ds(key, count * blocks.unit_keys), plain) for copy in copies]
    keys = [key + i * blocks.unit_keys for i in range(count)]
    return [(copy, rows, pl.ds(key, blocks.unit_keys), 0) for key in keys for copy in copies]

  def seen(row):
    """Key units of the tile that some row of a row unit sees.

    At least one in the first tile of a query tile, unless none of its rows sees anything.
    """
    visible = call.seen(code, bounds, lax.div(row, blocks.unit_rows))
    alone = (grid.key(code) == 0) & jnp.logical_not(call.sees_nothing(code, bounds))
    units = lax.div(visible + blocks.unit_keys - 1, blocks.unit_keys)
    return jnp.clip(units, alone.astype(jnp.int32), key_units)

  def any_shape():
    def rows(row_starts):
      (row,) = row_starts
      if call.copies * key_units > blocks.overlap // 2:
        starts(seen(row), blocks.unit_keys, lambda keys: run(masked(row, *keys)), False)
        return
      # Few copies overlap little: one body for each number of visible key units.
      for count in range(1, key_units + 1):
        pl.when(seen(row) == count)(functools.partial(run, masked(row, 0, count)))

    starts(row_units, blocks.unit_rows, rows, False)

  def stairs():
    run(
      [
        unit
        for i in range(row_units)
        for unit in masked(i * blocks.unit_rows, 0, i + 1, blocks.stair(i))
      ]
    )

  @pl.when(grid.partial(code) == 1)
  def _():
    if not blocks.has_stairs(call.copies):
      any_shape()
      return
    # The tile on a causal diagonal, in one basic block.
    steps = [seen(i * blocks.unit_rows) == i + 1 for i in range(row_units)]
    steps += [
      call.all_see(code, bounds, i) >= blocks.stair(i) for i in range(row_units) if blocks.stair(i)
    ]
    found = functools.reduce(jnp.logical_and, steps)
    pl.when(found)(stairs)
    pl.when(jnp.logical_not(found))(any_shape)

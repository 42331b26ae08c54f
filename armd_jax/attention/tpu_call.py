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


@dataclasses.dataclass(frozen=True)
class Call:
  """One kernel launch: its walk, its block specs and its padded sizes."""

  blocks: tpu_blocks.Blocks
  grid: tiles.Grid
  batch: int
  groups: int
  copies: int
  streams: int
  head_dim: int

  @classmethod
  def make(cls, blocks, q, k, lengths) -> Call:
    batch, groups, copies, num_rows, head_dim = q.shape
    grid = blocks.grid(lengths.shape[0], num_rows, k.shape[2])
    return cls(blocks, grid, batch, groups, copies, lengths.shape[1], head_dim)

  @property
  def num_rows(self) -> int:
    return self.grid.query_tiles * self.grid.rows

  @property
  def num_keys(self) -> int:
    return self.grid.spans * self.grid.span_tiles * self.grid.keys

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
    """Launches the kernel over the walk of `lengths`; `outs` are (shape, dtype, spec)."""
    lengths = pad(lengths, 2, self.num_rows, mode='edge')
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
      + sum(math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype, _ in outs),
    )
    return pl.pallas_call(
      functools.partial(kernel, call=self),
      out_shape=[jax.ShapeDtypeStruct(s, d, manual_axis_type=varying) for s, d, _ in outs],
      grid_spec=pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(self.batch // self.grid.batch, self.groups, steps),
        in_specs=[self.lengths_spec(), *in_specs],
        out_specs=[spec for *_, spec in outs],
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
  """Runs `unit(copy, row, key, masked)` for the visible units of a tile.

  The copies of a unit always stand in one basic block, where the compiler interleaves them; rows
  and keys join them up to `blocks.overlap` units and are looped over beyond, to bound the code.
  """
  blocks, grid, copies = call.blocks, call.grid, range(call.copies)
  row_units = blocks.rows // blocks.unit_rows
  key_units = blocks.keys // blocks.unit_keys
  tile_start = (grid.span(code) * grid.span_tiles + grid.key(code)) * grid.keys

  def loop(count, step, body, unroll=False):
    """`body(start)` for the first `count` multiples of step."""
    if unroll:
      for i in range(count):
        body(i * step)
    else:
      lax.fori_loop(0, count, lambda i, _: body(pl.multiple_of(i * step, step)), None)

  @pl.when(grid.partial(code) == 0)
  def _():
    unroll_rows = call.copies * row_units <= blocks.overlap
    unroll_keys = call.copies * row_units * key_units <= blocks.overlap

    def keys(key):
      def rows(row):
        for copy in copies:
          unit(copy, row, key, False)

      loop(row_units, blocks.unit_rows, rows, unroll_rows)

    loop(key_units, blocks.unit_keys, keys, unroll_keys)

  @pl.when(grid.partial(code) == 1)
  def _():
    def rows(row):
      index = (grid.batch_of(code) * grid.query_tiles + grid.query(code)) * row_units
      visible = longest[index + lax.div(row, blocks.unit_rows)] - tile_start
      seen = jnp.clip(lax.div(visible + blocks.unit_keys - 1, blocks.unit_keys), 0, key_units)

      def keys(key):
        for copy in copies:
          unit(copy, row, key, True)

      if call.copies * key_units > blocks.overlap // 2:
        loop(seen, blocks.unit_keys, keys)
        return
      # Few copies overlap little: one body for each number of visible key units.
      for count in range(1, key_units + 1):
        pl.when(seen == count)(functools.partial(loop, count, blocks.unit_keys, keys, True))

    loop(row_units, blocks.unit_rows, rows)

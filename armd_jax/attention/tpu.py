"""Prefix attention on TPU: Pallas (Mosaic) kernels, forward and backward.

Both kernels follow the same walk (`tiles.walk`): query tile by query tile, over the key tiles that
some row of it sees. The grid is (batch, key heads, steps of the walk). The number of steps depends
on the lengths and is a *dynamic* grid bound, so a tile that nobody sees costs no step at all. A
static bound would be the dense grid: at least twice the steps for causal masks, each with its
index arithmetic. All streams and all query heads of a group form one query tile, so each key tile
that is loaded serves every one of them.

Forward keeps scores as [rows, keys] (row statistics replicated over lanes); backward keeps them
transposed, [keys, rows], where four of its five products need no transposed operand and the row
statistics are read as they lie in memory. See docs/attention.md for the derivation.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import einops
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from armd_jax.attention import tiles, tpu_blocks

Array = jax.Array

LANES = tpu_blocks.LANES
LOG2_E = math.log2(math.e)
# The score of a masked pair: finite, so that rows without a visible key stay free of NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)
# Rows of all heads and streams that are folded into one tile of rows: cached decoding.
MAX_FOLDED_ROWS = 256

HEAD_DIMS = (64, 128, 256)
DTYPES = ('bfloat16', 'float32')


@dataclasses.dataclass(frozen=True)
class Plan:
  """What both kernels know statically.

  Attributes:
    copies_per_stream: query rows per slot, stream and key head.
    forward: blocks of the forward kernel.
    backward: blocks of the backward kernel.
    vmem_bytes: VMEM of the chip.
  """

  copies_per_stream: int
  forward: tpu_blocks.Blocks
  backward: tpu_blocks.Blocks
  vmem_bytes: int


def unsupported(q: Array, k: Array, v: Array) -> str | None:
  """Why these arrays cannot go through the kernels, or None."""
  if q.shape[-1] not in HEAD_DIMS:
    return f'head dimension {q.shape[-1]} is not one of {HEAD_DIMS}'
  if len({q.dtype, k.dtype, v.dtype}) > 1:
    return f'queries, keys and values differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}'
  if q.dtype.name not in DTYPES:
    return f'dtype {q.dtype} is not one of {DTYPES}'
  if 0 in q.shape or 0 in k.shape:
    return f'queries {q.shape} or keys {k.shape} are empty'
  return None


def prefix_attention(
  q_BxRxNxHxD: Array,
  k_BxKxGxD: Array,
  v_BxKxGxD: Array,
  lengths_BxRxN: Array,
  *,
  chip: str,
  blocks: tuple[tpu_blocks.Blocks, tpu_blocks.Blocks] | None = None,
) -> Array:
  """See `armd_jax.attention.prefix_attention`.

  Args:
    q_BxRxNxHxD: queries.
    k_BxKxGxD: keys.
    v_BxKxGxD: values.
    lengths_BxRxN: int32, `[B or 1, R, N]`.
    chip: one of `tpu_blocks.CHIPS`.
    blocks: forward and backward tile sizes; None takes those of the chip.
  Returns:
    out_BxRxNxHxD.
  """
  _, streams, num_rows, heads, head_dim = q_BxRxNxHxD.shape
  _, num_keys, groups, _ = k_BxKxGxD.shape
  copies = heads // groups
  lengths = jnp.clip(lengths_BxRxN, 0, num_keys)
  folds = streams * copies * num_rows <= MAX_FOLDED_ROWS
  if folds:
    q = einops.rearrange(q_BxRxNxHxD, 'B R N (G h) D -> B G 1 (R h N) D', G=groups)
    lengths = einops.repeat(lengths, 'B R N -> B 1 (R h N)', h=copies)
  else:
    q = einops.rearrange(q_BxRxNxHxD, 'B R N (G h) D -> B G (R h) N D', G=groups)
  if blocks is None:
    blocks = tpu_blocks.choose(
      chip, 1 if folds else copies, q.shape[3], num_keys, head_dim, q.dtype.itemsize
    )
  else:
    blocks = tuple(b.fit(q.shape[3], num_keys) for b in blocks)
  plan = Plan(1 if folds else copies, *blocks, tpu_blocks.MAX_VMEM_MIB[chip] * 2**20)
  k, v = (einops.rearrange(x, 'B K G D -> B G K D') for x in (k_BxKxGxD, v_BxKxGxD))
  out = _attend(plan, q, k, v, lengths)
  if folds:
    return einops.rearrange(out, 'B G 1 (R h N) D -> B R N (G h) D', R=streams, h=copies)
  return einops.rearrange(out, 'B G (R h) N D -> B R N (G h) D', R=streams)


# From here on C are the copies of a slot, (stream, head of the group), and M its slots.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q_BxGxCxMxD, k_BxGxKxD, v_BxGxKxD, lengths_BxRxM):
  return _forward(plan, q_BxGxCxMxD, k_BxGxKxD, v_BxGxKxD, lengths_BxRxM)[0]


def _attend_forward(plan, q, k, v, lengths):
  out, stats = _forward(plan, q, k, v, lengths)
  # The names let a remat policy keep both, so that the backward pass runs no second forward one.
  out = checkpoint_name(out, 'prefix_attention_out')
  stats = checkpoint_name(stats, 'prefix_attention_stats')
  return out, (q, k, v, lengths, out, stats)


def _attend_backward(plan, residuals, dout):
  return *_backward(plan, *residuals, dout), None


_attend.defvjp(_attend_forward, _attend_backward)


# ---- what both kernels share -------------------------------------------------------------------

ROWS_BY_KEYS = (((1,), (1,)), ((), ()))  # contract the head dimension of both
PLAIN = (((1,), (0,)), ((), ()))


def _dot(a: Array, b: Array, dimensions) -> Array:
  # float32 operands go through the matrix unit in full precision, not as one bf16 pass.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _pad(x: Array, axis: int, size: int, **kwargs) -> Array:
  """`x` padded at the end of an axis, untouched where it already fits."""
  if x.shape[axis] == size:
    return x
  width = [(0, 0)] * x.ndim
  width[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, width, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Call:
  """One kernel launch: its walk, its block specs and its padded sizes."""

  blocks: tpu_blocks.Blocks
  grid: tiles.Grid
  batch: int
  groups: int
  copies: int
  streams: int
  head_dim: int

  @classmethod
  def make(cls, blocks, q, k, lengths) -> _Call:
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
    lengths = _pad(lengths, 2, self.num_rows, mode='edge')
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


def _for_each_unit(call: _Call, code, longest, unit) -> None:
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


# ---- forward -----------------------------------------------------------------------------------


def _forward(plan: Plan, q, k, v, lengths) -> tuple[Array, Array]:
  """Returns out_BxGxCxMxD and float32 stats_BxGx2xCxM.

  The statistics are the maximum of a row's raw scores and the base-2 logarithm of its sum of
  weights. Added up they are the log-sum-exp; they are kept apart because one float32 cannot hold
  a score of 1e4 and its fraction.
  """
  call = _Call.make(plan.forward, q, k, lengths)
  q_padded = _pad(q, 3, call.num_rows)
  rows = (call.copies, call.grid.rows)
  out, stats = call.run(
    functools.partial(_forward_kernel, copies_per_stream=plan.copies_per_stream),
    'prefix_attention_forward',
    2,
    plan.vmem_bytes,
    lengths,
    [q_padded, _pad(k, 2, call.num_keys), _pad(v, 2, call.num_keys)],
    [call.rows_spec(), call.keys_spec(), call.keys_spec()],
    [
      (q_padded.shape, q.dtype, call.rows_spec()),
      ((*q.shape[:2], 2, call.copies, call.num_rows), jnp.float32, call.stats_spec(2)),
    ],
    [
      ((*rows, LANES), jnp.float32),
      ((*rows, LANES), jnp.float32),
      ((*rows, call.head_dim), jnp.float32),
      ((call.streams, call.grid.rows, LANES), jnp.int32),
    ],
  )
  return out[:, :, :, : q.shape[3]], stats[..., : q.shape[3]]


def _spread(x: Array, width: int) -> Array:
  """`[rows, LANES]`, equal over lanes, as `[rows, width]`; broadcasting would cost a shuffle."""
  return x[:, :width] if width <= LANES else jnp.tile(x, (1, width // LANES))


def _diagonal(rows: int) -> tuple[int, Array]:
  size = min(rows, LANES)
  index = [lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1)]
  return size, index[0] == index[1]


def _store_column(column_ref, row_1xM: Array) -> None:
  """Stores a row vector as `[M, LANES]`, equal over lanes: cheaper so than by a transpose."""
  size, diagonal = _diagonal(row_1xM.shape[1])
  for i in range(0, row_1xM.shape[1], size):
    picked = jnp.where(diagonal, row_1xM[:, i : i + size], 0)
    column = jnp.max(picked, axis=1, keepdims=True)
    column_ref[i : i + size] = jnp.broadcast_to(column, (size, LANES)).astype(column_ref.dtype)


def _to_row(column_MxL: Array) -> Array:
  """`[M, LANES]`, equal over lanes, as a row vector `[1, M]`."""
  size, diagonal = _diagonal(column_MxL.shape[0])
  rows = [
    jnp.sum(jnp.where(diagonal, column_MxL[i : i + size, :size], 0), axis=0, keepdims=True)
    for i in range(0, column_MxL.shape[0], size)
  ]
  return jnp.concatenate(rows, axis=1)


def _reciprocal(x: Array) -> Array:
  """1 / x by an estimate and Newton steps, for x >= 1: a true division costs three times that."""
  y = pl.reciprocal(x, approx=True)
  for _ in range(2):
    y = y * (2.0 - x * y)
  return y


def _forward_kernel(
  codes,
  longest,
  lengths_ref,
  q_ref,
  k_ref,
  v_ref,
  out_ref,
  stats_ref,
  max_ref,
  sum_ref,
  acc_ref,
  column_ref,
  *,
  call: _Call,
  copies_per_stream: int,
):
  """Online softmax of one query tile over its key tiles.

  `max` is the running row maximum of the raw scores, equal over lanes; `sum` the running sum of
  weights, *per lane* (lanes are added once, at the end); `acc` the unnormalised output; `column`
  the lengths, equal over lanes.
  """
  grid, unit_rows, unit_keys = call.grid, call.blocks.unit_rows, call.blocks.unit_keys
  code = codes[pl.program_id(2)]
  first_tile = grid.key(code) == 0
  scale = LOG2_E * call.head_dim**-0.5

  @pl.when(first_tile)
  def _():
    for stream in range(call.streams):
      # Through float32, whose lane reductions are native; exact below 2^24.
      row = lengths_ref[0, stream : stream + 1].astype(jnp.float32)
      _store_column(column_ref.at[stream], row)

  def unit(copy, row, key, masked):
    rows = pl.ds(row, unit_rows)
    keys = pl.ds(key, unit_keys)
    scores = _dot(q_ref[0, 0, copy, rows], k_ref[0, 0, keys], ROWS_BY_KEYS)
    if masked:
      left = column_ref[copy // copies_per_stream, rows] - (grid.key(code) * grid.keys + key)
      index = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
      scores = jnp.where(index < _spread(left, unit_keys), scores, MASKED)
    # Nothing is carried into the first unit of a row: selecting is free here, storing zeros isn't.
    first = first_tile & (key == 0)
    old_max = jnp.where(first, MASKED, max_ref[copy, rows])
    new_max = jnp.maximum(old_max, jnp.max(scores, axis=1, keepdims=True))
    weights = jnp.exp2((scores - _spread(new_max, unit_keys)) * scale)
    decay = jnp.exp2((old_max - new_max) * scale)
    lane_sums = sum(weights[:, i : i + LANES] for i in range(0, unit_keys, LANES))
    product = _dot(weights.astype(v_ref.dtype), v_ref[0, 0, keys], PLAIN)
    acc = jnp.where(first, 0.0, acc_ref[copy, rows]) * _spread(decay, call.head_dim)
    acc_ref[copy, rows] = acc + product
    sum_ref[copy, rows] = jnp.where(first, 0.0, sum_ref[copy, rows]) * decay + lane_sums
    max_ref[copy, rows] = new_max

  _for_each_unit(call, code, longest, unit)

  @pl.when(grid.last(code) == 1)
  def _():
    for copy in range(call.copies):
      stream = copy // copies_per_stream
      total = jnp.sum(sum_ref[copy], axis=1, keepdims=True)
      total = jnp.broadcast_to(total, sum_ref.shape[1:])
      # Rows that see nothing hold what a unit of other rows, or nobody, left there.
      empty = _spread(column_ref[stream], call.head_dim) == 0
      out = acc_ref[copy] * _spread(_reciprocal(total), call.head_dim)
      out_ref[0, 0, copy] = jnp.where(empty, 0.0, out).astype(out_ref.dtype)
      empty = lengths_ref[0, stream : stream + 1] == 0
      one = slice(copy, copy + 1)
      stats_ref[0, 0, 0, one] = jnp.where(empty, 0.0, _to_row(max_ref[copy]))
      stats_ref[0, 0, 1, one] = jnp.where(empty, 0.0, jnp.log2(_to_row(total)))


# ---- backward ----------------------------------------------------------------------------------


def _backward(plan: Plan, q, k, v, lengths, out, stats, dout) -> tuple[Array, Array, Array]:
  """Gradients with respect to q, k and v."""
  call = _Call.make(plan.backward, q, k, lengths)
  # The mean of dweights under a row's weights.
  mean = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1)
  stats = _pad(jnp.concatenate([stats, mean[:, :, None]], axis=2), 4, call.num_rows)
  q_padded, dout_padded = (_pad(x, 3, call.num_rows) for x in (q, dout))
  k_padded, v_padded = (_pad(x, 2, call.num_keys) for x in (k, v))
  grid = call.grid
  span = (grid.span_tiles * grid.keys, call.head_dim)
  # Each span of keys writes its own share of dq; they are added outside, in float32.
  dq_dtype = q.dtype if grid.spans == 1 else jnp.float32
  dq, dk, dv = call.run(
    functools.partial(_backward_kernel, copies_per_stream=plan.copies_per_stream),
    'prefix_attention_backward',
    5,
    plan.vmem_bytes,
    lengths,
    [stats, q_padded, dout_padded, k_padded, v_padded],
    [call.stats_spec(3), *(call.rows_spec(),) * 2, *(call.keys_spec(),) * 2],
    [
      ((grid.spans, *q_padded.shape), dq_dtype, call.partial_rows_spec()),
      (k_padded.shape, k.dtype, call.span_spec()),
      (v_padded.shape, v.dtype, call.span_spec()),
    ],
    [
      ((call.copies, grid.rows, call.head_dim), jnp.float32),
      (span, jnp.float32),
      (span, jnp.float32),
    ],
  )
  dq = dq[0] if grid.spans == 1 else jnp.sum(dq, axis=0).astype(q.dtype)
  return dq[:, :, :, : q.shape[3]], dk[:, :, : k.shape[2]], dv[:, :, : k.shape[2]]


def _backward_kernel(
  codes,
  longest,
  lengths_ref,
  stats_ref,
  q_ref,
  dout_ref,
  k_ref,
  v_ref,
  dq_ref,
  dk_ref,
  dv_ref,
  dq_acc,
  dk_acc,
  dv_acc,
  *,
  call: _Call,
  copies_per_stream: int,
):
  """All three gradients of one tile; those of a whole span of keys are held in VMEM.

  `stats` holds maximum, log-sum and the mean of dweights of each row.
  """
  grid, unit_rows, unit_keys = call.grid, call.blocks.unit_rows, call.blocks.unit_keys
  code = codes[pl.program_id(2)]
  scale = call.head_dim**-0.5
  first_tile = grid.key(code) == 0
  last_tile = grid.last(code) == 1

  @pl.when(first_tile & (grid.query(code) == 0))
  def _():
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)

  @pl.when(first_tile)
  def _():
    dq_acc[...] = jnp.zeros_like(dq_acc)

  def unit(copy, row, key, masked):
    rows = pl.ds(row, unit_rows)
    keys = pl.ds(key, unit_keys)
    in_span = pl.ds(pl.multiple_of(grid.key(code) * grid.keys + key, unit_keys), unit_keys)
    k, v = k_ref[0, 0, keys], v_ref[0, 0, keys]
    q, dout = q_ref[0, 0, copy, rows], dout_ref[0, 0, copy, rows]
    scores = _dot(k, q, ROWS_BY_KEYS)
    if masked:
      tile = grid.span(code) * grid.span_tiles + grid.key(code)
      stream = copy // copies_per_stream
      left = lengths_ref[0, stream : stream + 1, rows] - (tile * grid.keys + key)
      index = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
      scores = jnp.where(index < left, scores, MASKED)
    one = slice(copy, copy + 1)
    maximum, log_sum, mean = (stats_ref[0, 0, kind, one, rows] for kind in range(3))
    weights = jnp.exp2((scores - maximum) * (scale * LOG2_E) - log_sum)
    dv_acc[in_span] += _dot(weights.astype(dout.dtype), dout, PLAIN)
    dweights = _dot(v, dout, ROWS_BY_KEYS)
    dscores = (weights * (dweights - mean)).astype(q.dtype)
    dk_acc[in_span] += _dot(dscores, q, PLAIN)
    dq_acc[copy, rows] += _dot(dscores.T, k, PLAIN)

  _for_each_unit(call, code, longest, unit)

  @pl.when(last_tile)
  def _():
    dq_ref[0, 0] = (dq_acc[...] * scale).astype(dq_ref.dtype)

  @pl.when(last_tile & (grid.query(code) == grid.query_tiles - 1))
  def _():
    dk_ref[0, 0] = (dk_acc[...] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_acc[...].astype(dv_ref.dtype)

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

from armd_jax.attention import tpu_blocks, tpu_call

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
  out, stats, low = _forward(plan, q, k, v, lengths, keep_low=q.dtype != jnp.float32)
  # The names let a remat policy keep them, so that the backward pass runs no second forward one.
  out = checkpoint_name(out, 'prefix_attention_out')
  stats, low = checkpoint_name((stats, low), 'prefix_attention_stats')
  return out, (q, k, v, lengths, out, stats, low)


def _attend_backward(plan, residuals, dout):
  return *_backward(plan, *residuals, dout), None


_attend.defvjp(_attend_forward, _attend_backward)


# ---- forward -----------------------------------------------------------------------------------


def _forward(
  plan: Plan, q, k, v, lengths, keep_low: bool = False
) -> tuple[Array, Array, Array | None]:
  """Returns out_BxGxCxMxD, float32 stats_BxGx2xCxM and, if asked for, low_BxGxCxMxD.

  The statistics are the maximum of a row's raw scores and the base-2 logarithm of its sum of
  weights. Added up they are the log-sum-exp; they are kept apart because one float32 cannot hold
  a score of 1e4 and its fraction. `low` is what rounding took from `out`: the backward pass takes
  a small difference of `dout . v` and `dout . out`, which the rounding would drown.
  """
  call = tpu_call.Call.make(plan.forward, q, k, lengths)
  rows = (call.copies, call.grid.rows)
  like_q = (q.shape, q.dtype, call.rows_spec())
  out, stats, low = call.run(
    functools.partial(_forward_kernel, copies_per_stream=plan.copies_per_stream),
    'prefix_attention_forward',
    2,
    plan.vmem_bytes,
    lengths,
    [q, k, v],
    [call.rows_spec(), call.keys_spec(), call.keys_spec()],
    [
      like_q,
      # Lanes, unlike rows, cannot be overrun by a narrow tile.
      ((*q.shape[:2], 2, call.copies, call.padded_rows), jnp.float32, call.stats_spec(2)),
      like_q if keep_low else None,
    ],
    [
      ((*rows, LANES), jnp.float32),
      ((*rows, LANES), jnp.float32),
      ((*rows, call.head_dim), jnp.float32),
      ((call.streams, call.grid.rows, LANES), jnp.int32),
    ],
  )
  return out, stats[..., : call.num_rows], low


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
  low_ref,
  max_ref,
  sum_ref,
  acc_ref,
  column_ref,
  *,
  call: tpu_call.Call,
  copies_per_stream: int,
):
  """Online softmax of one query tile over its key tiles.

  `max` is the running row maximum of the raw scores, equal over lanes; `sum` the running sum of
  weights, *per lane* (lanes are added once, at the end); `acc` the unnormalised output; `column`
  the lengths, equal over lanes.
  """
  grid = call.grid
  code = codes[pl.program_id(2)]
  first_tile = grid.key(code) == 0
  scale = LOG2_E * call.head_dim**-0.5

  @pl.when(first_tile)
  def _():
    for stream in range(call.streams):
      # Through float32, whose lane reductions are native; exact below 2^24.
      row = lengths_ref[0, stream : stream + 1].astype(jnp.float32)
      _store_column(column_ref.at[stream], row)

  def unit(copy, rows, keys, masked):
    key, unit_keys = keys.start, keys.size
    scores = tpu_call.dot(q_ref[0, 0, copy, rows], k_ref[0, 0, keys], tpu_call.ROWS_BY_KEYS)
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
    v = v_ref[0, 0, keys]
    if masked:
      v = call.real_keys(v, code, key)
    product = tpu_call.dot(weights.astype(v.dtype), v, tpu_call.PLAIN)
    acc = jnp.where(first, 0.0, acc_ref[copy, rows]) * _spread(decay, call.head_dim)
    acc_ref[copy, rows] = acc + product
    sum_ref[copy, rows] = jnp.where(first, 0.0, sum_ref[copy, rows]) * decay + lane_sums
    max_ref[copy, rows] = new_max

  tpu_call.for_each_unit(call, code, longest, unit)

  @pl.when(grid.last(code) == 1)
  def _():
    for copy in range(call.copies):
      stream = copy // copies_per_stream
      total = jnp.sum(sum_ref[copy], axis=1, keepdims=True)
      total = jnp.broadcast_to(total, sum_ref.shape[1:])
      # Rows that see nothing hold what a unit of other rows, or nobody, left there.
      empty = _spread(column_ref[stream], call.head_dim) == 0
      out = acc_ref[copy] * _spread(_reciprocal(total), call.head_dim)
      out = jnp.where(empty, 0.0, out)
      rounded = out.astype(out_ref.dtype)
      out_ref[0, 0, copy] = rounded
      if low_ref is not None:
        low = out - rounded.astype(jnp.float32)
        low_ref[0, 0, copy] = low.astype(low_ref.dtype)
      empty = lengths_ref[0, stream : stream + 1] == 0
      one = slice(copy, copy + 1)
      stats_ref[0, 0, 0, one] = jnp.where(empty, 0.0, _to_row(max_ref[copy]))
      stats_ref[0, 0, 1, one] = jnp.where(empty, 0.0, jnp.log2(_to_row(total)))


# ---- backward ----------------------------------------------------------------------------------


def _backward(plan: Plan, q, k, v, lengths, out, stats, low, dout) -> tuple[Array, Array, Array]:
  """Gradients with respect to q, k and v."""
  call = tpu_call.Call.make(plan.backward, q, k, lengths)
  out = out.astype(jnp.float32)
  if low is not None:
    out += low.astype(jnp.float32)
  # The mean of dweights under a row's weights.
  mean = jnp.sum(out * dout.astype(jnp.float32), axis=-1)
  stats = tpu_call.pad(jnp.concatenate([stats, mean[:, :, None]], axis=2), 4, call.padded_rows)
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
    [stats, q, dout, k, v],
    [call.stats_spec(3), *(call.rows_spec(),) * 2, *(call.keys_spec(),) * 2],
    [
      ((grid.spans, *q.shape), dq_dtype, call.partial_rows_spec()),
      (k.shape, k.dtype, call.span_spec()),
      (v.shape, v.dtype, call.span_spec()),
    ],
    [
      ((call.copies, grid.rows, call.head_dim), jnp.float32),
      (span, jnp.float32),
      (span, jnp.float32),
    ],
  )
  return dq[0] if grid.spans == 1 else jnp.sum(dq, axis=0).astype(q.dtype), dk, dv


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
  call: tpu_call.Call,
  copies_per_stream: int,
):
  """All three gradients of one tile; those of a whole span of keys are held in VMEM.

  `stats` holds maximum, log-sum and the mean of dweights of each row.
  """
  grid = call.grid
  code = codes[pl.program_id(2)]
  scale = call.head_dim**-0.5
  first_tile = grid.key(code) == 0
  last_tile = grid.last(code) == 1

  @pl.when(first_tile & (grid.query(code) == 0))
  def _():
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)

  @pl.when(first_tile & call.sees_nothing(code, longest))
  def _():
    dq_acc[...] = jnp.zeros_like(dq_acc)

  def unit(copy, rows, keys, masked):
    row, key = rows.start, keys.start
    in_span = pl.ds(pl.multiple_of(grid.key(code) * grid.keys + key, keys.size), keys.size)
    k, v = k_ref[0, 0, keys], v_ref[0, 0, keys]
    if masked:
      k, v = call.real_keys(k, code, key), call.real_keys(v, code, key)
    q = call.real_rows(q_ref[0, 0, copy, rows], code, row)
    dout = call.real_rows(dout_ref[0, 0, copy, rows], code, row)
    scores = tpu_call.dot(k, q, tpu_call.ROWS_BY_KEYS)
    if masked:
      stream = copy // copies_per_stream
      left = lengths_ref[0, stream : stream + 1, rows] - (call.tile_start(code) + key)
      index = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
      scores = jnp.where(index < left, scores, MASKED)
    one = slice(copy, copy + 1)
    maximum, log_sum, mean = (stats_ref[0, 0, kind, one, rows] for kind in range(3))
    weights = jnp.exp2((scores - maximum) * (scale * LOG2_E) - log_sum)
    dv_acc[in_span] += tpu_call.dot(weights.astype(dout.dtype), dout, tpu_call.PLAIN)
    dweights = tpu_call.dot(v, dout, tpu_call.ROWS_BY_KEYS)
    dscores = (weights * (dweights - mean)).astype(q.dtype)
    dk_acc[in_span] += tpu_call.dot(dscores, q, tpu_call.PLAIN)
    # Selecting is free here, storing zeros beforehand is not.
    old = jnp.where(first_tile & (key == 0), 0.0, dq_acc[copy, rows])
    dq_acc[copy, rows] = old + tpu_call.dot(dscores.T, k, tpu_call.PLAIN)

  tpu_call.for_each_unit(call, code, longest, unit)

  @pl.when(last_tile)
  def _():
    dq_ref[0, 0] = (dq_acc[...] * scale).astype(dq_ref.dtype)

  @pl.when(last_tile & (grid.query(code) == grid.query_tiles - 1))
  def _():
    dk_ref[0, 0] = (dk_acc[...] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_acc[...].astype(dv_ref.dtype)

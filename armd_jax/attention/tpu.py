"""Prefix attention on TPU: Pallas (Mosaic) kernels, forward and backward.

Both kernels follow the same walk (`tiles.walk`): query tile by query tile, over the key tiles that
some row of it sees. The grid is (batch, key heads, steps of the walk). The number of steps depends
on the lengths and is a *dynamic* grid bound, so a tile that no row sees costs no step. A
static bound would be the dense grid: at least twice the steps for causal masks, each with its
index arithmetic. All streams and all query heads of a group form one query tile, so each key tile
that is loaded serves every one of them.

The forward kernels are in tpu_forward.py. Backward keeps scores transposed, [keys, rows], where
four of its five products need no transposed operand and the row statistics are read as they are
stored. See docs/attention.md for the derivation.
"""

from __future__ import annotations

import dataclasses
import functools

import einops
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from armd_jax.attention import checks, tpu_blocks, tpu_call, tpu_forward
from armd_jax.attention.tpu_forward import LOG2_E, MASKED
from armd_jax.hardware import cores

Array = jax.Array

LANES = tpu_blocks.LANES
# Rows of all heads and streams that are folded into one tile of rows: cached decoding.
MAX_FOLDED_ROWS = 256

HEAD_DIMS = (64, 128, 256)
DTYPES = ('bfloat16', 'float32')


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static arguments of both kernels.

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
  return checks.unsupported(q, k, v, HEAD_DIMS, DTYPES)


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
  plan = Plan(1 if folds else copies, *blocks, cores.MAX_VMEM_MIB[chip] * 2**20)
  k, v = (einops.rearrange(x, 'B K G D -> B G K D') for x in (k_BxKxGxD, v_BxKxGxD))
  out = _attend(plan, q, k, v, lengths)
  if folds:
    return einops.rearrange(out, 'B G 1 (R h N) D -> B R N (G h) D', R=streams, h=copies)
  return einops.rearrange(out, 'B G (R h) N D -> B R N (G h) D', R=streams)


# From here on C are the copies of a slot, (stream, head of the group), and M its slots.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q_BxGxCxMxD, k_BxGxKxD, v_BxGxKxD, lengths_BxRxM):
  return _forward(plan, q_BxGxCxMxD, k_BxGxKxD, v_BxGxKxD, lengths_BxRxM, saves=False)[0]


def _attend_forward(plan, q, k, v, lengths):
  out, stats, low = _forward(plan, q, k, v, lengths, saves=True)
  # The names let a remat policy keep them, so that the backward pass runs no second forward one.
  out = checkpoint_name(out, 'prefix_attention_out')
  stats, low = checkpoint_name((stats, low), 'prefix_attention_stats')
  return out, (q, k, v, lengths, out, stats, low)


def _attend_backward(plan, residuals, dout):
  return *_backward(plan, *residuals, dout), None


_attend.defvjp(_attend_forward, _attend_backward)


# ---- forward -----------------------------------------------------------------------------------


def _forward(plan: Plan, q, k, v, lengths, saves: bool) -> tuple[Array, Array | None, Array | None]:
  """Returns out_BxGxCxMxD and, if the backward pass wants them, float32 stats_BxGx2xCxM and low.

  The statistics are the maximum of a row's raw scores and the base-2 logarithm of its sum of
  weights. Added up they are the log-sum-exp; they are kept apart because one float32 cannot hold
  a score of 1e4 and its fraction. `low`, shaped as out, is what rounding took from it (None in
  float32): the backward pass takes a small difference of `dout . v` and `dout . out`, which the
  rounding would drown.
  """
  call = tpu_call.Call.make(plan.forward, q, k, lengths)
  if plan.forward.transposed:
    kernel, scratch = tpu_forward.keys_by_rows, tpu_forward.keys_by_rows_scratch(call)
  else:
    kernel, scratch = tpu_forward.rows_by_keys, tpu_forward.rows_by_keys_scratch(call)
  like_q = (q.shape, q.dtype, call.rows_spec())
  # Lanes, unlike rows, cannot be overrun by a narrow tile.
  stats_shape = (*q.shape[:2], 2, call.copies, call.padded_rows)
  out, stats, low = call.run(
    functools.partial(kernel, copies_per_stream=plan.copies_per_stream),
    name='prefix_attention_forward',
    products=2,
    vmem_bytes=plan.vmem_bytes,
    lengths=lengths,
    inputs=[q, k, v],
    in_specs=[call.rows_spec(), call.keys_spec(), call.keys_spec()],
    outs=[
      like_q,
      (stats_shape, jnp.float32, call.stats_spec(2)) if saves else None,
      like_q if saves and q.dtype != jnp.float32 else None,
    ],
    scratch=scratch,
  )
  return out, stats[..., : call.num_rows] if saves else None, low


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
    name='prefix_attention_backward',
    products=5,
    vmem_bytes=plan.vmem_bytes,
    lengths=lengths,
    inputs=[stats, q, dout, k, v],
    in_specs=[call.stats_spec(3), *(call.rows_spec(),) * 2, *(call.keys_spec(),) * 2],
    outs=[
      ((grid.spans, *q.shape), dq_dtype, call.partial_rows_spec()),
      (k.shape, k.dtype, call.span_spec()),
      (v.shape, v.dtype, call.span_spec()),
    ],
    scratch=[
      ((call.copies, grid.rows, call.head_dim), jnp.float32),
      (span, jnp.float32),
      (span, jnp.float32),
    ],
  )
  return dq[0] if grid.spans == 1 else jnp.sum(dq, axis=0).astype(q.dtype), dk, dv


def _backward_kernel(
  codes,
  bounds,
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
  # The grid is (sequences, key heads, steps of the walk): span by span of keys, in it query tile by
  # query tile, in it key tile by key tile. DMA of the next step's tiles overlaps with this one's
  # products, as in `tpu_forward.rows_by_keys`. In VMEM, over the steps of a span of two key tiles:
  #
  #   query tile, keys   A, 0    A, 1 (last)    B, 0    B, 1 (last)   next span: A, 2
  #   DMA in, for next   k1 v1   qB doutB k0 v0 k1 v1   qA doutA k2 v2
  #   dq_acc             =       +=, out: dqA   =       +=, out: dqB  =
  #   dk_acc, dv_acc     0, +=   +=             +=      +=, out       0, +=
  #
  # dk and dv of the whole span stay in VMEM, so that they are written once; dq of a query tile is
  # written once per span, and the spans' shares are added up outside.
  grid = call.grid
  code = codes[pl.program_id(2)]
  scale = call.head_dim**-0.5
  first_tile = grid.key(code) == 0
  last_tile = grid.last(code) == 1

  @pl.when(first_tile & (grid.query(code) == 0))
  def _():
    dk_acc[...] = jnp.zeros_like(dk_acc)
    dv_acc[...] = jnp.zeros_like(dv_acc)

  @pl.when(first_tile & call.sees_nothing(code, bounds))
  def _():
    dq_acc[...] = jnp.zeros_like(dq_acc)

  def unit(copy, rows, keys, plain):
    row, key, masked = rows.start, keys.start, plain < keys.size
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

  def run(units):
    for place in units:
      unit(*place)

  tpu_call.for_each_unit(call, code, bounds, run)

  @pl.when(last_tile)
  def _():
    dq_ref[0, 0] = (dq_acc[...] * scale).astype(dq_ref.dtype)

  @pl.when(last_tile & (grid.query(code) == grid.query_tiles - 1))
  def _():
    dk_ref[0, 0] = (dk_acc[...] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv_acc[...].astype(dv_ref.dtype)

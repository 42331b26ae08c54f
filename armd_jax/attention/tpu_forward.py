"""The forward TPU kernels: online softmax of a query tile, scores as [rows, keys] or transposed.

On matrix units 128 wide, rows by keys wastes nothing. Where they are 256 wide (`cores.WIDE`),
its second product, [rows, keys] x [keys, D], fills D of 256 columns. Transposed it is
[D, keys] x [keys, rows] and fills all; maxima, sums and lengths are then rows, as they are stored
in memory, and need no reduction over lanes. See docs/attention.md for what that is worth.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from armd_jax.attention import tpu_blocks, tpu_call

Array = jax.Array

LANES = tpu_blocks.LANES
LOG2_E = math.log2(math.e)
# The score of a masked pair: finite, so that rows without a visible key stay free of NaN.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


# ---- rows by keys ------------------------------------------------------------------------------


def rows_by_keys_scratch(call: tpu_call.Call) -> list:
  """Shapes and dtypes of `max`, `sum`, `acc` and `column`, see `rows_by_keys`."""
  rows = (call.copies, call.grid.rows)
  return [
    ((*rows, LANES), jnp.float32),
    ((*rows, LANES), jnp.float32),
    ((*rows, call.head_dim), jnp.float32),
    ((call.streams, call.grid.rows, LANES), jnp.int32),
  ]


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
  """1 / x for x >= 1 by an estimate and a Newton step: a true division costs three times that."""
  y = jnp.exp2(-jnp.log2(x))
  return y * (2.0 - x * y)


def rows_by_keys(
  codes,
  bounds,
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
  """Online softmax of one query tile over its key tiles, scores as [rows, keys].

  `max` is the running row maximum of the raw scores, equal over lanes; `sum` the running sum of
  weights, *per lane* (lanes are added once, at the end); `acc` the unnormalised output; `column`
  the lengths, equal over lanes.
  """
  # The grid is (sequences, key heads, steps of the walk); a step is one key tile of a query tile.
  # The pipeline copies the next step's tiles into a second buffer while this step computes, and
  # copies nothing that stays: the index maps read the next step's code from SMEM.
  #
  #   step               t             t + 1           t + 2
  #   query tile, keys   A, 0          A, 1 (last)     B, 0
  #   DMA in, for t + 1  k1, v1        qB, k0, v0      k1, v1
  #   compute            scores, max, sum and acc of the tile, unit by unit (`for_each_unit`)
  #                                    out of A        first: selects over what A left
  #   DMA out                                          outA, statsA
  #
  # max, sum, acc and column are scratch in VMEM: they have one buffer and last from step to step.
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

  def unit(copy, rows, keys, plain):
    key, unit_keys, masked = keys.start, keys.size, plain < keys.size
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

  def run(units):
    for place in units:
      unit(*place)

  tpu_call.for_each_unit(call, code, bounds, run)

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
      if stats_ref is not None:
        empty = lengths_ref[0, stream : stream + 1] == 0
        one = slice(copy, copy + 1)
        stats_ref[0, 0, 0, one] = jnp.where(empty, 0.0, _to_row(max_ref[copy]))
        stats_ref[0, 0, 1, one] = jnp.where(empty, 0.0, jnp.log2(_to_row(total)))


# ---- keys by rows ------------------------------------------------------------------------------

SOFTMAX_KEYS = 16  # keys whose weights are computed together: few enough to stay in registers


def keys_by_rows_scratch(call: tpu_call.Call) -> list:
  """Shapes and dtypes of `max`, `sum` and `acc`, see `keys_by_rows`."""
  rows = (call.copies, call.grid.rows)
  acc = (call.copies, call.head_dim, call.grid.rows)
  return [(rows, jnp.float32), (rows, jnp.float32), (acc, jnp.float32)]


def _fold(reduce, x: Array) -> Array:
  """`[keys, rows]` reduced to `[8, rows]`, sublane by sublane: no shuffles."""
  return reduce(x.reshape(-1, 8, x.shape[1]), axis=0)


def keys_by_rows(
  codes,
  bounds,
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
  *,
  call: tpu_call.Call,
  copies_per_stream: int,
):
  """Online softmax of one query tile over its key tiles, scores as [keys, rows].

  `max` is the running maximum of a row's raw scores, `sum` of its weights, `acc` the unnormalised
  output, transposed.

  The compiler schedules about in the order of the source. So a unit goes through three stages, and
  the matrix unit computes the scores of a later unit and the product of an earlier one while the
  vector unit exponentiates.
  """
  # Grid, double buffers and scratch are those of `rows_by_keys`. Units of one basic block, in the
  # order of the source (MXU: matrix unit, VPU: vector unit):
  #
  #   i                       0    1    2    3    4
  #   VPU   weigh (i - 2)               u0   u1   u2     weights of a unit, from its scores
  #   MXU   score (i)         u0   u1   u2   u3   u4     k q^T
  #   MXU   gather (i - 3)                   u0   u1     acc += v^T weights
  #
  # Few units are between two stages at a time: VMEM must hold their scores or weights.
  grid = call.grid
  code = codes[pl.program_id(2)]
  first_tile = grid.key(code) == 0
  scale = LOG2_E * call.head_dim**-0.5

  def score(copy, rows, keys, plain):
    """Scores of a unit in parts, and their maximum per sublane."""
    scores = tpu_call.dot(k_ref[0, 0, keys], q_ref[0, 0, copy, rows], tpu_call.ROWS_BY_KEYS)
    parts = [scores[:plain]] if plain else []
    if plain < keys.size:
      stream = copy // copies_per_stream
      left = lengths_ref[0, stream : stream + 1, rows]
      left -= grid.key(code) * grid.keys + keys.start + plain
      part = scores[plain:]
      index = lax.broadcasted_iota(jnp.int32, part.shape, 0)
      parts.append(jnp.where(index < left, part, MASKED))
    top = [_fold(jnp.max, part) for part in parts]
    return parts, jnp.maximum(*top) if len(top) == 2 else top[0]

  def weigh(scored, copy, rows, keys, plain):
    """Weights of a unit, `[keys, rows]`, and the factor by which its earlier output decays."""
    del plain
    parts, top = scored
    one = slice(copy, copy + 1)
    # Nothing is carried into the first unit of a row: selecting is free here, storing zeros isn't.
    first = first_tile & (keys.start == 0)
    old_max = jnp.where(first, MASKED, max_ref[one, rows])
    new_max = jnp.maximum(old_max, jnp.max(top, axis=0, keepdims=True))
    decay = jnp.exp2((old_max - new_max) * scale)
    total, weights = 0.0, []
    for part in parts:
      for i in range(0, part.shape[0], SOFTMAX_KEYS):
        some = jnp.exp2((part[i : i + SOFTMAX_KEYS] - new_max) * scale)
        total += _fold(jnp.sum, some)
        weights.append(some.astype(v_ref.dtype))
    old = jnp.where(first, 0.0, sum_ref[one, rows]) * decay
    sum_ref[one, rows] = old + jnp.sum(total, axis=0, keepdims=True)
    max_ref[one, rows] = new_max
    return jnp.concatenate(weights), decay

  def gather(weighed, copy, rows, keys, plain):
    weights, decay = weighed
    v = v_ref[0, 0, keys]
    if plain < keys.size:
      v = call.real_keys(v, code, keys.start)
    product = tpu_call.dot(v, weights, tpu_call.COLUMNS_BY_COLUMNS)
    first = first_tile & (keys.start == 0)
    acc = jnp.where(first, 0.0, acc_ref[copy, :, rows]) * decay
    acc_ref[copy, :, rows] = acc + product

  def run(units):
    scored, weighed = {}, {}  # by unit, between its stages
    for i in range(len(units) + 3):
      if 0 <= i - 2 < len(units):
        weighed[i - 2] = weigh(scored.pop(i - 2), *units[i - 2])
      if i < len(units):
        scored[i] = score(*units[i])
      if 0 <= i - 3 < len(units):
        gather(weighed.pop(i - 3), *units[i - 3])

  tpu_call.for_each_unit(call, code, bounds, run)

  @pl.when(grid.last(code) == 1)
  def _():
    for copy in range(call.copies):
      stream, one = copy // copies_per_stream, slice(copy, copy + 1)
      # Rows that see nothing hold what a unit of other rows, or nobody, left there.
      empty = lengths_ref[0, stream : stream + 1] == 0
      total = sum_ref[one]
      out = jnp.where(empty, 0.0, acc_ref[copy] * (1.0 / total))
      rounded = out.astype(out_ref.dtype)
      out_ref[0, 0, copy] = rounded.T
      if low_ref is not None:
        low_ref[0, 0, copy] = (out - rounded.astype(jnp.float32)).astype(low_ref.dtype).T
      if stats_ref is not None:
        stats_ref[0, 0, 0, one] = jnp.where(empty, 0.0, max_ref[one])
        stats_ref[0, 0, 1, one] = jnp.where(empty, 0.0, jnp.log2(total))

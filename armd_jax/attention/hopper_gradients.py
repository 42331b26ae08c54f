"""Bodies of the Hopper kernels for dq, and for dk with dv; hopper_kernels.py explains them all."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from armd_jax.attention import hopper_blocks
from armd_jax.attention import hopper_parts as parts


def query_gradient(index, inputs, outputs, tiles, barriers, *, call: parts.Call):
  """dq_BRxNxHxD of 128 slots, all streams of them, over the key tiles that they see.

  `inputs` are `most`, `least`, `lengths`, as in `forward`; `top`, `log_total`
  and `mean`, float32 `[B R, H, T 128]`: those of `forward`, and the mean of dweights; `q`, `dout`,
  `k`, `v`.
  """
  # warpgroup 2 (loads)             | warpgroups 0 and 1 (compute), 64 slots each
  #                                 | q -> q_tile, dout -> dout_tile by TMA; wait q_ready
  # every key tile that is seen:    |
  #   wait k_free                   |   wait k_ready
  #   k -> k_tiles, then k_ready    |   weights = exp2(q k^T - top - log_total)
  #   wait v_free                   |   wait v_ready
  #   v -> v_tiles, then v_ready    |   dweights = dout v^T; arrive v_free
  #                                 |   dq += weights (dweights - mean) k; arrive k_free
  #                                 | dq -> q_tile, which is no longer read -> dq
  most, least, lengths, *statistics, q, dout, k, v = inputs
  (dq,) = outputs
  q_tile, dout_tile, k_tiles, v_tiles = tiles
  q_ready, k_ready, v_ready, k_free, v_free = barriers
  rows, keys, stages = hopper_blocks.WARPGROUP_ROWS, call.blocks.dq_keys, call.blocks.stages[1]
  batch, head, streams = index['batch'], index['head'], call.own_streams(index['stream'])
  tile = most.shape[1] - 1 - index['tile']
  warpgroup = lax.axis_index('warpgroup')
  shared = 0 if call.shares_lengths else batch
  # Both warpgroups' branches compute it anew: kept from before, it would be spilled.
  count_steps = lambda: pl.cdiv(most[shared, tile], jnp.int32(keys))

  def compute():
    plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action='increase')
    mine = pl.ds(tile * hopper_blocks.TILE_ROWS + warpgroup * rows, rows)
    for i, stream in enumerate(streams):
      row = batch * call.streams + stream
      for source, target in ((q, q_tile), (dout, dout_tile)):
        plgpu.copy_gmem_to_smem(
          source.at[row, mine, head], target.at[warpgroup, i], q_ready.at[warpgroup]
        )
    plgpu.barrier_wait(q_ready.at[warpgroup])

    shape = (rows, keys)
    unmasked = lax.div(least[shared, tile], jnp.int32(keys))

    def step(step, sums):
      slot = parts.slot(step, stages, most[shared, tile])
      own = parts.in_loop(warpgroup, step, most[shared, tile])
      plgpu.barrier_wait(k_ready.at[slot])
      plgpu.barrier_wait(v_ready.at[slot])
      results = []
      for i, total in enumerate(sums):
        row = batch * call.streams + streams[i]
        top, log_total, mean = (parts.load(x.at[row, head, mine], parts.BY_ROW) for x in statistics)
        scores, dweights = parts.products(
          [
            (q_tile.at[own, i], parts.transposed(k_tiles.at[slot])),
            (dout_tile.at[own, i], parts.transposed(v_tiles.at[slot])),
          ],
          shape,
        )
        if i == call.together - 1:
          plgpu.barrier_arrive(v_free.at[slot])

        def mask(scores, i=i):
          seen = (
            parts.load(lengths.at[call.lengths_row(batch, streams[i]), mine], parts.BY_ROW)
            - step * keys
          )
          return jnp.where(parts.positions(shape, 1) < parts.down(seen, shape), scores, -jnp.inf)

        # Two loops, as in `forward`, would need a few registers more than there are.
        scores = lax.cond(step >= unmasked, mask, lambda scores: scores, scores)
        weights = parts.softmax_weights(
          scores, parts.down(top, shape), parts.down(log_total, shape), call
        )
        dscores = (weights * (dweights - parts.down(mean, shape))).astype(k.dtype)
        results += parts.add_products([(total, dscores, k_tiles.at[slot])], call.interpreted)
      plgpu.barrier_arrive(k_free.at[slot])
      return tuple(results)

    sums = (parts.full((rows, call.head_dim), 0, parts.SCORES),) * call.together
    sums = lax.fori_loop(0, count_steps(), step, sums)
    for i, result in enumerate(sums):
      q_tile[warpgroup, i] = (result * call.scale).astype(dq.dtype)
    plgpu.commit_smem()
    for i, stream in enumerate(streams):
      target = dq.at[batch * call.streams + stream, mine, head]
      plgpu.copy_smem_to_gmem(q_tile.at[warpgroup, i], target)
    plgpu.wait_smem_to_gmem(0)

  def move():
    group = lax.div(head, jnp.int32(call.copies))

    def copy(source, target, ready):
      def run(step, slot):
        place = (batch, pl.ds(step * keys, keys), group)
        plgpu.copy_gmem_to_smem(source.at[place], target.at[slot], ready.at[slot])

      return run

    copies = (copy(k, k_tiles, k_ready), copy(v, v_tiles, v_ready))
    parts.move(count_steps(), stages, copies, (k_free, v_free))

  lax.cond(warpgroup < hopper_blocks.WARPGROUPS, compute, move)


def key_value_gradient(index, inputs, outputs, tiles, barriers, *, call: parts.Call):
  """dk and dv of a key tile, over all streams and heads of the group and the slots that see it.

  Scores are kept transposed, [keys, rows]. A warpgroup has 64 keys of its own, or, where the head
  dimension is too wide for its registers, half of the columns of the same 64 keys.

  `inputs` are `bounds`, int32 `[3, (B or 1) R, J]`: for each key tile the first query tile that
  sees it, the first from which on all see it whole, and the end; the others as in `query_gradient`.
  """
  # warpgroup 2 (loads)             | warpgroups 0 and 1 (compute)
  # k -> k_tile, v -> v_tile,       | wait key_ready
  #   then key_ready                |
  # every head, stream, query tile: |
  #   wait free                     |   wait ready
  #   q, dout, statistics -> one    |   weights = exp2(k q^T - top - log_total)
  #     buffer each, then ready     |   dv += weights dout; dweights = v dout^T
  #                                 |   dk += weights (dweights - mean) q; arrive free
  #                                 | meet at done: both have read k_tile and v_tile
  #                                 | dk -> k_tile, dv -> v_tile; meet at done; -> dk, dv
  bounds, lengths, *statistics, q, dout, k, v = inputs
  dk, dv = outputs
  k_tile, v_tile, q_tiles, dout_tiles, statistics_tiles = tiles
  key_ready, ready, free, done = barriers
  keys, rows, stages = hopper_blocks.WARPGROUP_ROWS, call.blocks.dkv_rows, call.blocks.stages[2]
  columns = min(call.head_dim, hopper_blocks.MAX_COLUMNS)
  splits_keys = columns == call.head_dim
  batch, group, tile = (index[name] for name in ('batch', 'group', 'tile'))
  warpgroup = lax.axis_index('warpgroup')

  def walk(visit, carry):
    """`carry = visit(step, head, stream, query tile, masked, carry)` for every tile."""

    def copy(number, carry):
      count, carry = carry
      head = group * call.copies + lax.div(number, jnp.int32(call.streams))
      stream = lax.rem(number, jnp.int32(call.streams))
      first, whole, end = (bounds[kind, call.lengths_row(batch, stream), tile] for kind in range(3))

      for start, stop, masked in ((first, whole, True), (whole, end, False)):
        visit_one = lambda i, c, masked=masked: visit(count + i - first, head, stream, i, masked, c)
        carry = lax.fori_loop(start, stop, visit_one, carry)
      return count + end - first, carry

    return lax.fori_loop(0, call.copies * call.streams, copy, (jnp.int32(0), carry))[1]

  def compute():
    plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action='increase')
    own = warpgroup if splits_keys else 0
    start = tile * keys * (hopper_blocks.WARPGROUPS if splits_keys else 1) + own * keys
    part = pl.ds((0 if splits_keys else warpgroup) * columns, columns)
    plgpu.barrier_wait(key_ready)

    def visit(step, head, stream, query, masked, carry):
      del head
      dk_sum, dv_sum = carry
      slot = parts.slot(step, stages, bounds[0, 0, 0])
      tile_of_keys = parts.in_loop(own, step, bounds[0, 0, 0])
      shape = (keys, rows)
      plgpu.barrier_wait(ready.at[slot])
      scores, dweights = parts.products(
        [
          (k_tile.at[tile_of_keys], parts.transposed(q_tiles.at[slot])),
          (v_tile.at[tile_of_keys], parts.transposed(dout_tiles.at[slot])),
        ],
        shape,
      )
      if masked:
        place = (call.lengths_row(batch, stream), pl.ds(query * rows, rows))
        seen = parts.load(lengths.at[place], parts.BY_COLUMN) - start
        scores = jnp.where(parts.positions(shape, 0) < parts.across(seen, shape), scores, -jnp.inf)
      top, log_total, mean = (
        parts.across(parts.load(statistics_tiles.at[slot, kind], parts.BY_COLUMN), shape)
        for kind in range(3)
      )
      weights = parts.softmax_weights(scores, top, log_total, call)
      dscores = weights * (dweights - mean)
      dv_sum, dk_sum = parts.add_products(
        [
          (dv_sum, weights.astype(v.dtype), dout_tiles.at[slot, :, part]),
          (dk_sum, dscores.astype(q.dtype), q_tiles.at[slot, :, part]),
        ],
        call.interpreted,
      )
      plgpu.barrier_arrive(free.at[slot])
      return dk_sum, dv_sum

    zeros = parts.full((keys, columns), 0, parts.SCORES)
    dk_sum, dv_sum = walk(visit, (zeros, zeros))
    # The tiles become the place of the results once they are no longer read.
    plgpu.barrier_arrive(done)
    plgpu.barrier_wait(done)
    k_tile[own, :, part] = (dk_sum * call.scale).astype(dk.dtype)
    v_tile[own, :, part] = dv_sum.astype(dv.dtype)
    plgpu.commit_smem()
    plgpu.barrier_arrive(done)
    plgpu.barrier_wait(done)
    for index, (source, target) in enumerate(((k_tile, dk), (v_tile, dv))):

      @pl.when(splits_keys | (warpgroup == index))
      def _(source=source, target=target):
        place = target.at[batch, pl.ds(start, keys), group]
        plgpu.copy_smem_to_gmem(source.at[own], place)

    plgpu.wait_smem_to_gmem(0)

  def move():
    plgpu.set_max_registers(parts.MEMORY_REGISTERS, action='decrease')
    owners = hopper_blocks.WARPGROUPS if splits_keys else 1
    for own in range(owners):
      place = (batch, pl.ds((tile * owners + own) * keys, keys), group)
      plgpu.copy_gmem_to_smem(k.at[place], k_tile.at[own], key_ready)
      plgpu.copy_gmem_to_smem(v.at[place], v_tile.at[own], key_ready)

    def visit(step, head, stream, query, masked, _):
      del masked
      slot = lax.rem(step, jnp.int32(stages))

      @pl.when(step >= stages)
      def _():
        plgpu.barrier_wait(free.at[slot])

      row, some = batch * call.streams + stream, pl.ds(query * rows, rows)
      for source, target in ((q, q_tiles), (dout, dout_tiles)):
        plgpu.copy_gmem_to_smem(source.at[row, some, head], target.at[slot], ready.at[slot])
      for kind, source in enumerate(statistics):
        place = statistics_tiles.at[slot, kind]
        plgpu.copy_gmem_to_smem(source.at[row, head, some], place, ready.at[slot])

    walk(visit, None)

  lax.cond(warpgroup < hopper_blocks.WARPGROUPS, compute, move)

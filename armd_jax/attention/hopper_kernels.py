"""The body of the forward Hopper kernel; hopper_gradients.py has the others.

A block has three warpgroups, which walk the same steps: 0 and 1 compute, 2 loads tiles by TMA into
a ring of `stages` buffers in shared memory, step i into buffer i % stages (`slot` in the code; no
generation slot). TMA completes a buffer's barrier `ready`; both compute warpgroups arrive at its
barrier `free` when they have read it. Everything a body uses also runs under the Mosaic GPU
interpreter, but for the lines of `hopper_parts.add_products` that multiply.

Arguments of all bodies: `index`, where the block is in the grid, by the names of its axes; `inputs`
and `outputs` in device memory; `tiles` in shared memory and `barriers`, see the diagrams; `call`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from armd_jax.attention import hopper_blocks
from armd_jax.attention import hopper_parts as parts


def forward(index, inputs, outputs, tiles, barriers, *, call: parts.Call, split_tiles: int):
  """Online softmax of 128 slots, all streams of them, over the key tiles that they see.

  `inputs` are `most` and `least`, int32 `[B or 1, T]`, longest and shortest length of each tile of
  128 slots; `lengths`, int32 `[(B or 1) R, T 128]`; `q_BRxNxHxD`, `k_BxKxGxD`, `v_BxKxGxD`.
  `outputs` are `out`, `[splits, B R, N, H, D]`, and, under differentiation or with several splits
  (of `split_tiles` key tiles each), `low`, what rounding took from it, and float32
  `[splits, B R, H, T 128]`: `top`, the largest score of a row, and `log_total`, log2 of the sum of
  its weights where that of the largest score is 1. Their sum would not fit into one float32.
  """
  # warpgroup 2 (loads)             | warpgroups 0 and 1 (compute), 64 slots each
  #                                 | q -> q_tile by TMA; wait q_ready
  # every key tile that is seen:    |
  #   wait k_free                   |   wait k_ready; then, one stream after the other:
  #   k -> k_tiles, then k_ready    |   scores = q k^T; arrive k_free
  #   wait v_free                   |   weights = exp2(scores - top); wait v_ready
  #   v -> v_tiles, then v_ready    |   acc = decay acc + weights v; arrive v_free
  #                                 | acc / total -> q_tile, which is no longer read -> out
  #
  # At `turn` the compute warpgroups meet (|): while one exponentiates, the other multiplies.
  #   0:  q k^T | exp2  | weights v, q k^T | exp2             | weights v, q k^T
  #   1:        | q k^T | exp2             | weights v, q k^T | exp2
  most, least, lengths, q, k, v = inputs
  out, *residuals = outputs
  q_tile, k_tiles, v_tiles, *statistics_tile = tiles
  q_ready, k_ready, v_ready, k_free, v_free, turn = barriers
  rows, keys, stages = hopper_blocks.WARPGROUP_ROWS, call.blocks.forward_keys, call.blocks.stages[0]
  columns = call.blocks.forward_columns
  batch, head, split = (index[name] for name in ('batch', 'head', 'split'))
  streams = call.own_streams(index['stream'])
  # Longest first, so that the last blocks to run are short ones.
  tile = most.shape[1] - 1 - index['tile']
  warpgroup = lax.axis_index('warpgroup')
  shared = 0 if call.shares_lengths else batch
  first = split * split_tiles
  steps = jnp.clip(pl.cdiv(most[shared, tile], jnp.int32(keys)) - first, 0, split_tiles)
  unmasked = jnp.clip(lax.div(least[shared, tile], jnp.int32(keys)) - first, 0, steps)

  def take_turn():
    plgpu.barrier_arrive(turn)
    plgpu.barrier_wait(turn)

  def compute():
    plgpu.set_max_registers(parts.COMPUTE_REGISTERS, action='increase')
    mine = pl.ds(tile * hopper_blocks.TILE_ROWS + warpgroup * rows, rows)
    for i, stream in enumerate(streams):
      plgpu.copy_gmem_to_smem(
        q.at[batch * call.streams + stream, mine, head],
        q_tile.at[warpgroup, i],
        q_ready.at[warpgroup],
      )
    plgpu.barrier_wait(q_ready.at[warpgroup])

    def step(step, carry, masked):
      slot = lax.rem(step, jnp.int32(stages))
      plgpu.barrier_wait(k_ready.at[slot])
      state = []
      for i, (acc, top, total) in enumerate(carry):
        own_tile = q_tile.at[parts.in_loop(warpgroup, step, most[shared, tile]), i]
        scores = parts.product(
          own_tile, parts.transposed(k_tiles.at[slot]), (rows, keys), take_turn
        )
        if i == call.together - 1:
          plgpu.barrier_arrive(k_free.at[slot])
        if masked:
          seen = parts.load(lengths.at[call.lengths_row(batch, streams[i]), mine], parts.BY_ROW)
          seen -= (first + step) * keys
          visible = parts.positions(scores.shape, 1) < parts.down(seen, scores.shape)
          scores = jnp.where(visible, scores, -jnp.inf)
        # Subtracting first keeps the largest weight exactly 1, however large the scores.
        new_top = jnp.maximum(top, scores.max(axis=1))
        decay = jnp.exp2((top - new_top) * (call.scale * parts.LOG2_E))
        weights = jnp.exp2(
          (scores - parts.down(new_top, scores.shape)) * (call.scale * parts.LOG2_E)
        )
        total = total * decay + weights.sum(axis=1)
        weights = weights.astype(v.dtype)
        if i == 0:
          plgpu.barrier_wait(v_ready.at[slot])
        take_turn()
        terms = [
          (
            old * parts.down(decay, old.shape),
            weights,
            v_tiles.at[slot, :, pl.ds(part * columns, columns)],
          )
          for part, old in enumerate(acc)
        ]
        summed = parts.add_products(terms, call.interpreted)
        if i == call.together - 1:
          plgpu.barrier_arrive(v_free.at[slot])
        state.append((tuple(summed), new_top, total))
      return tuple(state)

    pl.when(warpgroup == 1)(take_turn)
    zeros = tuple(
      parts.full((rows, columns), 0, parts.SCORES) for _ in range(call.head_dim // columns)
    )
    carry = (
      (zeros, parts.full((rows,), parts.FLOOR, parts.BY_ROW), parts.full((rows,), 0, parts.BY_ROW)),
    ) * call.together
    carry = lax.fori_loop(0, unmasked, lambda i, c: step(i, c, False), carry)
    carry = lax.fori_loop(unmasked, steps, lambda i, c: step(i, c, True), carry)
    pl.when(warpgroup == 0)(take_turn)

    if residuals:
      low, *statistics = residuals
      (tile_of_statistics,) = statistics_tile
      for i, (_, top, total) in enumerate(carry):
        tile_of_statistics[0, warpgroup, i] = top
        tile_of_statistics[1, warpgroup, i] = jnp.log2(jnp.where(total == 0, 1.0, total))
      plgpu.commit_smem()
      for kind, target in enumerate(statistics):
        for i, stream in enumerate(streams):
          place = target.at[split, batch * call.streams + stream, head, mine]
          plgpu.copy_smem_to_gmem(tile_of_statistics.at[kind, warpgroup, i], place)

    for i, (acc, _, total) in enumerate(carry):
      staged = q_tile.at[warpgroup, i]
      row = batch * call.streams + streams[i]

      inverse = 1 / jnp.where(total == 0, 1.0, total)

      def write(value, target, staged=staged, row=row, acc=acc, inverse=inverse):
        for j, part in enumerate(acc):
          staged[:, pl.ds(j * columns, columns)] = value(part * parts.down(inverse, part.shape))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(staged, target.at[split, row, mine, head])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)

      write(lambda part: part.astype(out.dtype), out)
      if residuals:
        write(
          lambda part: (part - part.astype(out.dtype).astype(jnp.float32)).astype(out.dtype), low
        )
    plgpu.wait_smem_to_gmem(0)

  def move():
    group = lax.div(head, jnp.int32(call.copies))

    def copy(source, target, ready):
      def run(step, slot):
        place = (batch, pl.ds((first + step) * keys, keys), group)
        plgpu.copy_gmem_to_smem(source.at[place], target.at[slot], ready.at[slot])

      return run

    copies = (copy(k, k_tiles, k_ready), copy(v, v_tiles, v_ready))
    parts.move(steps, stages, copies, (k_free, v_free))

  lax.cond(warpgroup < hopper_blocks.WARPGROUPS, compute, move)

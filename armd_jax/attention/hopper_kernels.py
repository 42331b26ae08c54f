"""Bodies of the Hopper kernels: forward, dq, and dk with dv.

A block has three warpgroups, which walk the same steps: 0 and 1 compute, 2 loads tiles by TMA into
a ring of `stages` buffers in shared memory, step i into buffer i % stages (`slot` in the code; no
generation slot). TMA completes a buffer's barrier `ready`; both compute warpgroups arrive at its
barrier `free` when they have read it. Everything a body uses also runs under the Mosaic GPU
interpreter, but for the lines of `_add_products` that multiply.

Arguments of all bodies: `index`, where the block is in the grid, by the names of its axes; `inputs`
and `outputs` in device memory; `tiles` in shared memory and `barriers`, see the diagrams; `call`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from armd_jax.attention import hopper_blocks

Array = jax.Array

LOG2_E = math.log2(math.e)
# Where the running maximum starts: finite, so that a row that sees nothing stays free of NaN.
FLOOR = -1e30

# Per thread. A block of 384 threads starts with 168 each, and asking for more than 3 x 168 in all
# would wait forever.
COMPUTE_REGISTERS, MEMORY_REGISTERS = 240, 24

SCORES = plgpu.Layout.WGMMA
BY_ROW = plgpu.Layout.WGMMA.reduce(1)
BY_COLUMN = plgpu.Layout.WGMMA.reduce(0)

# What later versions have deprecated, and the oldest one cannot do without.
_IS_OLDEST = jax.__version_info__ < (0, 11)


@dataclasses.dataclass(frozen=True)
class Call:
  """The static arguments of the kernels."""

  head_dim: int  # D
  copies: int  # query heads of a group
  streams: int  # R
  together: int  # streams that a warpgroup computes; the grid goes over the others
  shares_lengths: bool  # whether all sequences have the same lengths
  blocks: hopper_blocks.Blocks
  interpreted: bool  # whether the kernels run in the interpreter: see `_add_products`

  @property
  def scale(self) -> float:
    return self.head_dim**-0.5

  def own_streams(self, index: Array) -> list[Array]:
    """The streams of a block."""
    return [index * self.together + i for i in range(self.together)]

  def lengths_row(self, batch: Array, stream: Array | int) -> Array:
    """Row of the `[B R, ...]` arrays made of lengths."""
    return (0 if self.shares_lengths else batch) * self.streams + stream


def load(ref, layout) -> Array:
  """What a reference holds, in a layout of registers; every jax has its own form of it."""
  if _IS_OLDEST:
    return plgpu.load(ref, (), layout=layout, optimized=False)
  return plgpu.load(ref, layout=layout, optimized=False)


def _full(shape, value, layout) -> Array:
  return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _transposed(ref):
  return plgpu.transpose_ref(ref, (1, 0)) if _IS_OLDEST else ref.transpose((1, 0))


def _down(x: Array, shape) -> Array:
  """A value per row, along the columns."""
  return lax.broadcast_in_dim(x, shape, [0])


def _across(x: Array, shape) -> Array:
  """A value per column, along the rows."""
  return lax.broadcast_in_dim(x, shape, [1])


def _index(shape, axis) -> Array:
  return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=SCORES)


def _in_loop(index: Array, step: Array, length: Array) -> Array:
  """`index`, in a form that is recomputed at every step.

  Else the compiler prepares all wgmma descriptors of a tile that stays before the loop, two
  registers for every 16 columns, and spills them. It cannot know that no length reaches 2^30.
  """
  return index + step * lax.shift_right_logical(length, jnp.int32(30))


def _slot(step: Array, stages: int, length: Array) -> Array:
  """The buffer of a step."""
  return _in_loop(lax.rem(step, jnp.int32(stages)), step, length)


def _product(a, b, shape, before_waiting=None) -> Array:
  """`a @ b` in float32, both in shared memory."""

  def compute(accumulator):
    plgpu.wgmma(accumulator, a, b)
    if before_waiting is not None:
      before_waiting()
    return accumulator[...]

  return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def _products(pairs, shape) -> list[Array]:
  """`a @ b` of every pair in float32, all in shared memory: issued together, waited for once."""

  def compute(*accumulators):
    for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
      plgpu.wgmma(accumulator, a, b)
    return [accumulator[...] for accumulator in accumulators]

  return pl.run_scoped(compute, *[plgpu.ACC(shape, jnp.float32) for _ in pairs])


def _add_products(terms, interpreted: bool) -> list[Array]:
  """`total + a @ b` of every `(total, a, b)` in float32, `a` in registers and `b` in shared memory:
  issued together, waited for once."""
  if interpreted:  # the interpreter has neither operands in registers nor `run_state`
    values = [b[...] for _, _, b in terms]
    plgpu.commit_smem()  # wgmma would have read them by the path that TMA writes them by
    return [
      total + jnp.dot(a, value, preferred_element_type=jnp.float32)
      for (total, a, _), value in zip(terms, values, strict=True)
    ]

  def compute(accumulators):
    for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
      plgpu.wgmma(accumulator, a, b)

  return pl.run_state(compute)([plgpu.ACC.init(total) for total, _, _ in terms])


def _weights(scores: Array, top: Array, log_total: Array, call: Call) -> Array:
  """Softmax weights, from the statistics that `forward` has written."""
  return jnp.exp2((scores - top) * (call.scale * LOG2_E) - log_total)


def _move(steps, stages, copies, free) -> None:
  """Warpgroup 2: runs each of `copies(step, buffer)` as soon as its barrier in `free` allows it."""
  plgpu.set_max_registers(MEMORY_REGISTERS, action='decrease')

  @pl.loop(0, steps)
  def _(step):
    slot = lax.rem(step, jnp.int32(stages))
    for copy, barrier in zip(copies, free, strict=True):

      @pl.when(step >= stages)
      def _(barrier=barrier):
        plgpu.barrier_wait(barrier.at[slot])

      copy(step, slot)


def forward(index, inputs, outputs, tiles, barriers, *, call: Call, split_tiles: int):
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
    plgpu.set_max_registers(COMPUTE_REGISTERS, action='increase')
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
        own_tile = q_tile.at[_in_loop(warpgroup, step, most[shared, tile]), i]
        scores = _product(own_tile, _transposed(k_tiles.at[slot]), (rows, keys), take_turn)
        if i == call.together - 1:
          plgpu.barrier_arrive(k_free.at[slot])
        if masked:
          seen = load(lengths.at[call.lengths_row(batch, streams[i]), mine], BY_ROW)
          seen -= (first + step) * keys
          visible = _index(scores.shape, 1) < _down(seen, scores.shape)
          scores = jnp.where(visible, scores, -jnp.inf)
        # Subtracting first keeps the largest weight exactly 1, however large the scores.
        new_top = jnp.maximum(top, scores.max(axis=1))
        decay = jnp.exp2((top - new_top) * (call.scale * LOG2_E))
        weights = jnp.exp2((scores - _down(new_top, scores.shape)) * (call.scale * LOG2_E))
        total = total * decay + weights.sum(axis=1)
        weights = weights.astype(v.dtype)
        if i == 0:
          plgpu.barrier_wait(v_ready.at[slot])
        take_turn()
        terms = [
          (
            old * _down(decay, old.shape),
            weights,
            v_tiles.at[slot, :, pl.ds(part * columns, columns)],
          )
          for part, old in enumerate(acc)
        ]
        parts = _add_products(terms, call.interpreted)
        if i == call.together - 1:
          plgpu.barrier_arrive(v_free.at[slot])
        state.append((tuple(parts), new_top, total))
      return tuple(state)

    pl.when(warpgroup == 1)(take_turn)
    zeros = tuple(_full((rows, columns), 0, SCORES) for _ in range(call.head_dim // columns))
    carry = ((zeros, _full((rows,), FLOOR, BY_ROW), _full((rows,), 0, BY_ROW)),) * call.together
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
          staged[:, pl.ds(j * columns, columns)] = value(part * _down(inverse, part.shape))
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
    _move(steps, stages, copies, (k_free, v_free))

  lax.cond(warpgroup < hopper_blocks.WARPGROUPS, compute, move)


def query_gradient(index, inputs, outputs, tiles, barriers, *, call: Call):
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
    plgpu.set_max_registers(COMPUTE_REGISTERS, action='increase')
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
      slot = _slot(step, stages, most[shared, tile])
      own = _in_loop(warpgroup, step, most[shared, tile])
      plgpu.barrier_wait(k_ready.at[slot])
      plgpu.barrier_wait(v_ready.at[slot])
      results = []
      for i, total in enumerate(sums):
        row = batch * call.streams + streams[i]
        top, log_total, mean = (load(x.at[row, head, mine], BY_ROW) for x in statistics)
        scores, dweights = _products(
          [
            (q_tile.at[own, i], _transposed(k_tiles.at[slot])),
            (dout_tile.at[own, i], _transposed(v_tiles.at[slot])),
          ],
          shape,
        )
        if i == call.together - 1:
          plgpu.barrier_arrive(v_free.at[slot])

        def mask(scores, i=i):
          seen = load(lengths.at[call.lengths_row(batch, streams[i]), mine], BY_ROW) - step * keys
          return jnp.where(_index(shape, 1) < _down(seen, shape), scores, -jnp.inf)

        # Two loops, as in `forward`, would need a few registers more than there are.
        scores = lax.cond(step >= unmasked, mask, lambda scores: scores, scores)
        weights = _weights(scores, _down(top, shape), _down(log_total, shape), call)
        dscores = (weights * (dweights - _down(mean, shape))).astype(k.dtype)
        results += _add_products([(total, dscores, k_tiles.at[slot])], call.interpreted)
      plgpu.barrier_arrive(k_free.at[slot])
      return tuple(results)

    sums = (_full((rows, call.head_dim), 0, SCORES),) * call.together
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
    _move(count_steps(), stages, copies, (k_free, v_free))

  lax.cond(warpgroup < hopper_blocks.WARPGROUPS, compute, move)


def key_value_gradient(index, inputs, outputs, tiles, barriers, *, call: Call):
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
    plgpu.set_max_registers(COMPUTE_REGISTERS, action='increase')
    own = warpgroup if splits_keys else 0
    start = tile * keys * (hopper_blocks.WARPGROUPS if splits_keys else 1) + own * keys
    part = pl.ds((0 if splits_keys else warpgroup) * columns, columns)
    plgpu.barrier_wait(key_ready)

    def visit(step, head, stream, query, masked, carry):
      del head
      dk_sum, dv_sum = carry
      slot = _slot(step, stages, bounds[0, 0, 0])
      tile_of_keys = _in_loop(own, step, bounds[0, 0, 0])
      shape = (keys, rows)
      plgpu.barrier_wait(ready.at[slot])
      scores, dweights = _products(
        [
          (k_tile.at[tile_of_keys], _transposed(q_tiles.at[slot])),
          (v_tile.at[tile_of_keys], _transposed(dout_tiles.at[slot])),
        ],
        shape,
      )
      if masked:
        place = (call.lengths_row(batch, stream), pl.ds(query * rows, rows))
        seen = load(lengths.at[place], BY_COLUMN) - start
        scores = jnp.where(_index(shape, 0) < _across(seen, shape), scores, -jnp.inf)
      top, log_total, mean = (
        _across(load(statistics_tiles.at[slot, kind], BY_COLUMN), shape) for kind in range(3)
      )
      weights = _weights(scores, top, log_total, call)
      dscores = weights * (dweights - mean)
      dv_sum, dk_sum = _add_products(
        [
          (dv_sum, weights.astype(v.dtype), dout_tiles.at[slot, :, part]),
          (dk_sum, dscores.astype(q.dtype), q_tiles.at[slot, :, part]),
        ],
        call.interpreted,
      )
      plgpu.barrier_arrive(free.at[slot])
      return dk_sum, dv_sum

    zeros = _full((keys, columns), 0, SCORES)
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
    plgpu.set_max_registers(MEMORY_REGISTERS, action='decrease')
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

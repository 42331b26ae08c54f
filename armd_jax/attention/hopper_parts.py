"""What the bodies of the Hopper kernels share: layouts, products, statistics, and the loads.

A product takes its left operand from shared memory or from registers, and the right one from shared
memory. Everything here also runs under the Mosaic GPU interpreter, but for the lines of
`add_products` that multiply.
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
  interpreted: bool  # whether the kernels run in the interpreter: see `add_products`

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


def full(shape, value, layout) -> Array:
  return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def transposed(ref):
  return plgpu.transpose_ref(ref, (1, 0)) if _IS_OLDEST else ref.transpose((1, 0))


def down(x: Array, shape) -> Array:
  """A value per row, along the columns."""
  return lax.broadcast_in_dim(x, shape, [0])


def across(x: Array, shape) -> Array:
  """A value per column, along the rows."""
  return lax.broadcast_in_dim(x, shape, [1])


def positions(shape, axis) -> Array:
  return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=SCORES)


def in_loop(index: Array, step: Array, length: Array) -> Array:
  """`index`, in a form that is recomputed at every step.

  Else the compiler prepares all wgmma descriptors of a tile that stays before the loop, two
  registers for every 16 columns, and spills them. It cannot know that no length reaches 2^30.
  """
  return index + step * lax.shift_right_logical(length, jnp.int32(30))


def slot(step: Array, stages: int, length: Array) -> Array:
  """The buffer of a step."""
  return in_loop(lax.rem(step, jnp.int32(stages)), step, length)


def product(a, b, shape, before_waiting=None) -> Array:
  """`a @ b` in float32, both in shared memory."""

  def compute(accumulator):
    plgpu.wgmma(accumulator, a, b)
    if before_waiting is not None:
      before_waiting()
    return accumulator[...]

  return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))


def products(pairs, shape) -> list[Array]:
  """`a @ b` of every pair in float32, all in shared memory: issued together, waited for once."""

  def compute(*accumulators):
    for accumulator, (a, b) in zip(accumulators, pairs, strict=True):
      plgpu.wgmma(accumulator, a, b)
    return [accumulator[...] for accumulator in accumulators]

  return pl.run_scoped(compute, *[plgpu.ACC(shape, jnp.float32) for _ in pairs])


def add_products(terms, interpreted: bool) -> list[Array]:
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


def softmax_weights(scores: Array, top: Array, log_total: Array, call: Call) -> Array:
  """Softmax weights, from the statistics that `forward` has written."""
  return jnp.exp2((scores - top) * (call.scale * LOG2_E) - log_total)


def move(steps, stages, copies, free) -> None:
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

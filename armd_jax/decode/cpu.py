"""The form of decoding on CPUs, at the speed of their memory.

XLA's products on CPUs copy a matrix before they multiply it with two rows or more, which takes
longer than to read it. A product and a sum over the inner axis, which XLA makes one loop of, copy
nothing, if the columns that the loop adds up at once are side by side: in panels
`[P, inner, PANEL]`. A step of decoding then costs little more than one read of the weights for up
to eight rows (docs/decoding.md).

Attention reads all keys that there is room for: caches have their heads first, and grow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.decode.plan import Form, Plan
from armd_jax.decode.state import CACHE_ROWS, DecodeState
from armd_jax.models.layers import KVCache
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import Vocabulary

Array = jax.Array

PANEL = 16  # columns: two vectors of eight floats
MOST_ROWS = 64  # of a step; beyond, the multiplication takes longer than the copy
PARTS = 4  # that a single row is cut into, since XLA's loop is slow for one
ROOM = 128  # rows by which caches grow, at least


@dataclasses.dataclass(frozen=True)
class CPU(Form):
  """Of CPUs; weights are arranged by `cut`."""

  def for_steps(self, config: ModelConfig, rows: int) -> CPU:
    return CPU(config.dtype == 'float32' and rows <= MOST_ROWS)

  def arrange(self, params: Params) -> Params:
    return cut(params)

  def whole(self, params: Params) -> Params:
    return whole(params)

  def reading(self) -> contextlib.AbstractContextManager[None]:
    return nn.intercept_methods(_apply)

  def caches(self, empty: Any) -> Any:
    return _map_caches(HeadsFirst.of, empty)

  def run(
    self, plan: Plan, start: Callable[[Plan], DecodeState], advance: Callable[..., DecodeState]
  ) -> DecodeState:
    rooms = _rooms(plan)
    state = start(dataclasses.replace(plan, room=rooms[0]))
    for room in rooms:
      state = with_room(state, room)
      is_full = lambda state, width, room=room: jnp.max(state.filled_B) + width > room
      state = advance(plan, state, is_full)
      # A loop per size: the first tokens of streams, one row each, belong to the first.
      plan = dataclasses.replace(plan, narrow=plan.width)
    return state


def _rooms(plan: Plan) -> tuple[int, ...]:
  """Rows of the caches, one size after the other."""
  first = plan.prefill + 2 * plan.width
  step = max(ROOM, -(plan.room // 4) // CACHE_ROWS * -CACHE_ROWS)
  return (*(room for room in range(step, plan.room, step) if room >= first), plan.room)


def with_room(state: DecodeState, rows: int) -> DecodeState:
  """The same state, its caches with room for so many rows."""
  return state.replace(network=_map_caches(lambda cache: cache.with_room(rows), state.network))


def _map_caches(function: Callable[[Any], Any], tree: Any) -> Any:
  is_cache = lambda x: isinstance(x, KVCache)
  return jax.tree.map(lambda x: function(x) if is_cache(x) else x, tree, is_leaf=is_cache)


@flax.struct.dataclass
class HeadsFirst(KVCache):
  """A cache as CPUs multiply it; otherwise they would transpose whole caches at every step.

  Attributes:
    k, v: `[B, G, K, D]`; `[G, K, D]` of a single sequence, whose axis XLA would drop by itself, and
      then copy the caches at every step.
  """

  @classmethod
  def of(cls, cache: KVCache) -> HeadsFirst:
    turned = lambda x: x.swapaxes(1, 2) if len(x) > 1 else x[0].swapaxes(0, 1)
    return cls(turned(cache.k), turned(cache.v))

  def write(self, k_BxWxGxD: Array, v_BxWxGxD: Array, offset_B: Array) -> HeadsFirst:
    def put(cache: Array, rows_BxWxGxD: Array) -> Array:
      rows = rows_BxWxGxD.swapaxes(1, 2)
      rows = rows if cache.ndim == 4 else rows[0]
      write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-2)
      if len(offset_B) == 1:
        return write(cache, rows, offset_B[0])
      return jax.vmap(write)(cache, rows, offset_B)

    return self.replace(k=put(self.k, k_BxWxGxD), v=put(self.v, v_BxWxGxD))

  def read(self) -> tuple[Array, Array]:
    turned = lambda x: x.reshape(-1, *x.shape[-3:]).swapaxes(1, 2)
    return turned(self.k), turned(self.v)

  def with_room(self, rows: int) -> HeadsFirst:
    """The same, with room for so many rows, or more."""
    more = max(0, rows - self.k.shape[-2])
    pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])
    return self.replace(k=pad(self.k), v=pad(self.v)) if more else self


def cut(params: Params) -> Params:
  """Unrolled parameters with `panels` in place of every kernel that can be cut into them,
  and beside the embedding, whose rows are looked up, too (or the head)."""
  cut_ = {}
  for name, value in params.items():
    cut_[name] = value
    if isinstance(value, dict) and 'kernel' in value:
      # The heads and features of what leaves attention are its inner axes.
      inner = math.prod(value['kernel'].shape[: 2 if name == 'out' else 1])
      matrix_IxF = value['kernel'].reshape(inner, -1)
      if matrix_IxF.shape[1] % PANEL == 0:
        others = {key: x for key, x in value.items() if key != 'kernel'}
        cut_[name] = others | {'panels': _panels(matrix_IxF)}
    elif isinstance(value, dict) and 'embedding' in value:
      output_VxE = value['head'] if 'head' in value else value['embedding']
      if output_VxE.shape[0] % PANEL == 0:
        cut_[name] = value | {'panels': _panels(output_VxE.T)}
    elif isinstance(value, dict):
      cut_[name] = cut(value)
  return cut_


def whole(params: Params) -> Params:
  """What `cut` returns, as matrices again."""
  whole_ = {}
  for name, value in params.items():
    if isinstance(value, dict) and 'embedding' in value:
      value = {key: x for key, x in value.items() if key != 'panels'}
    elif isinstance(value, dict) and 'panels' in value:
      others = {key: x for key, x in value.items() if key != 'panels'}
      panels_PxIxC = value['panels']
      matrix_IxF = panels_PxIxC.swapaxes(0, 1).reshape(panels_PxIxC.shape[1], -1)
      value = others | {'matrix': matrix_IxF}
    elif isinstance(value, dict):
      value = whole(value)
    whole_[name] = value
  return whole_


def product(x_RxI: Array, panels_PxIxC: Array) -> Array:
  """`x @ matrix`, float32 `[R, P C]`."""
  rows, inner = x_RxI.shape
  if rows > 1:
    y_PxRxC = jnp.sum(x_RxI[None, :, :, None] * panels_PxIxC[:, None], axis=2)
    return y_PxRxC.swapaxes(0, 1).reshape(rows, -1)
  count, _, columns = panels_PxIxC.shape
  parts = math.gcd(PARTS, inner)
  x_SxI = x_RxI.reshape(parts, inner // parts)
  panels_PxSxIxC = panels_PxIxC.reshape(count, parts, inner // parts, columns)
  y_PxSxC = jnp.sum(x_SxI[None, :, :, None] * panels_PxSxIxC, axis=2)
  return jnp.sum(jax.lax.optimization_barrier(y_PxSxC), axis=1).reshape(1, -1)


def _panels(matrix_IxF: Array) -> Array:
  inner, outer = matrix_IxF.shape
  return matrix_IxF.reshape(inner, outer // PANEL, PANEL).swapaxes(0, 1)


def _apply(
  next_function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
) -> Any:
  """Replaces the layers whose parameters are in one of these forms."""
  module, method = context.module, context.method_name
  is_dense = isinstance(module, nn.DenseGeneral) and method == '__call__'
  is_logits = isinstance(module, Vocabulary) and method == 'logits'
  if not (is_dense or is_logits):
    return next_function(*args, **kwargs)
  forms = [name for name in ('panels', 'matrix') if module.has_variable('params', name)]
  if not forms:
    return next_function(*args, **kwargs)
  (x,), weights = args, module.get_variable('params', forms[0])
  # Inner axes are the last ones. Sizes do not determine how many: for a single head one would do.
  axis = x.ndim - (1 if is_logits or isinstance(module.axis, int) else len(module.axis))
  x_RxI = x.reshape(-1, weights.shape[-2])
  y_RxF = product(x_RxI, weights) if forms == ['panels'] else x_RxI @ weights
  if is_logits:
    logits = y_RxF.reshape(*x.shape[:-1], -1)
    return jnp.where(jnp.arange(logits.shape[-1]) < module.vocab_size, logits, -jnp.inf)
  features = module.features if isinstance(module.features, tuple) else (module.features,)
  y = y_RxF.reshape(*x.shape[:axis], *features)
  return y + module.get_variable('params', 'bias') if module.use_bias else y

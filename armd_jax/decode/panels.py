"""Matrices as a CPU multiplies them with few rows at the speed of its memory.

XLA's products on CPUs copy a matrix before they multiply it with two rows or more, which takes
longer than to read it. A product and a sum over the inner axis, which XLA makes one loop of, copy
nothing, if the columns that the loop adds up at once lie side by side: in panels
`[P, inner, PANEL]`. A step of decoding then costs little more than one read of the weights for up
to eight rows (docs/decoding.md).
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.decode import fused
from armd_jax.hardware import device
from armd_jax.models.vocabulary import Vocabulary

Array = jax.Array

PANEL = 16  # columns: two vectors of eight floats
MOST_ROWS = 64  # of a step: beyond, what multiplying costs hides the copy
PARTS = 4  # that a single row is cut into, since XLA's loop is slow for one


def serve(config: ModelConfig, rows: int) -> bool:
  """Whether panels are faster here, for steps of so many rows."""
  return device.current().platform == 'cpu' and config.dtype == 'float32' and rows <= MOST_ROWS


def cut(params: Any) -> Any:
  """Parameters in `decoding_form` with `panels` in place of every kernel that can be cut into them,
  and beside the embedding, whose rows are looked up, too."""
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
      if value['embedding'].shape[0] % PANEL == 0:
        cut_[name] = value | {'panels': _panels(value['embedding'].T)}
    elif isinstance(value, dict):
      cut_[name] = cut(value)
  return cut_


def whole(params: Any) -> Any:
  """What `cut` and `fused.fuse` return, as matrices again, for many rows."""
  params, whole_ = fused.split(params), {}
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


def reading() -> contextlib.AbstractContextManager[None]:
  """Networks applied inside it take parameters of any of these forms."""
  return nn.intercept_methods(_apply)


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


def _panels(matrix_IxF):
  inner, outer = matrix_IxF.shape
  return matrix_IxF.reshape(inner, outer // PANEL, PANEL).swapaxes(0, 1)


def _apply(next_function, args, kwargs, context):
  """Stands in for the layers whose parameters are in one of these forms."""
  module, method = context.module, context.method_name
  is_dense = isinstance(module, nn.DenseGeneral) and method == '__call__'
  is_logits = isinstance(module, Vocabulary) and method == 'logits'
  if not (is_dense or is_logits):
    return next_function(*args, **kwargs)
  forms = [name for name in ('panels', 'matrix') if module.has_variable('params', name)]
  if not forms:
    return next_function(*args, **kwargs)
  (x,), weights = args, module.get_variable('params', forms[0])
  # Inner axes are the last ones. Sizes do not tell how many: of a single head one would do.
  axis = x.ndim - (1 if is_logits or isinstance(module.axis, int) else len(module.axis))
  x_RxI = x.reshape(-1, weights.shape[-2])
  y_RxF = product(x_RxI, weights) if forms == ['panels'] else x_RxI @ weights
  if is_logits:
    logits = y_RxF.reshape(*x.shape[:-1], -1)
    return jnp.where(jnp.arange(logits.shape[-1]) < module.vocab_size, logits, -jnp.inf)
  features = module.features if isinstance(module.features, tuple) else (module.features,)
  y = y_RxF.reshape(*x.shape[:axis], *features)
  return y + module.get_variable('params', 'bias') if module.use_bias else y

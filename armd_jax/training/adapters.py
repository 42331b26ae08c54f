"""What is trained of a network: all of it, or parameters by their names, whole or by adapters.

An adapter of a matrix W is a pair of smaller ones beside it, A and B (LoRA, Hu et al. 2021): the
network has W + alpha / rank A B. W never changes; gradients, their moments and averages are those
of A and B. B is zero at first, so that nothing changes at step 0. Networks do not depend on any of
this: `whole` computes their parameters, in a training step and afterwards.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from armd_jax.config import OptimizerConfig
from armd_jax.errors import UserError
from armd_jax.models.params import Params
from armd_jax.parallel import axes

MATRICES = ('kernel', 'embedding', 'head')  # what has adapters; all else is trained whole


def is_all(config: OptimizerConfig) -> bool:
  """Whether every parameter is trained, whole."""
  return not config.trained and not config.lora_rank


def same(config: OptimizerConfig, other: OptimizerConfig) -> bool:
  """Whether both train the same parameters."""
  of = lambda c: (c.trained, c.lora_rank, c.lora_alpha if c.lora_rank else None)
  return of(config) == of(other)


def beside(config: OptimizerConfig, params: Params, key: jax.Array) -> Params:
  """The parameters of a network, and adapters that change nothing yet; runs under jit.

  Args:
    config: of the optimizer.
    params: as the network has them.
    key: of A, in which every matrix has draws of its own.
  Raises:
    UserError: no name of a parameter, or, with a rank, of a matrix has `trained` in it.
  """
  if is_all(config):
    return params
  flat = _flat(params)
  names = [name for name in flat if re.search(config.trained, name)]
  adapted = [name for name in names if config.lora_rank and _last(name) in MATRICES]
  if not names or (config.lora_rank and not adapted):
    what = 'matrix' if config.lora_rank else 'parameter'
    known = next(name for name in flat if _last(name) in MATRICES)
    raise UserError(
      f'config.optimizer.trained is {config.trained!r}, which no name of a {what} has in it; '
      f'write a part of one, such as {known!r}'
    )
  for name in adapted:
    flat |= _adapter(name, flat[name], config.lora_rank, key)
  return _nested(flat)


def trained(config: OptimizerConfig, params: Any) -> Any:
  """The part of a tree with adapters (of arrays, shapes, shardings) that the optimizer changes."""
  if is_all(config):
    return params

  def is_trained(name: str) -> bool:
    if _is_adapter(name):
      return True
    has_adapter = config.lora_rank and _last(name) in MATRICES
    return bool(re.search(config.trained, name)) and not has_adapter

  return _nested({name: x for name, x in _flat(params).items() if is_trained(name)})


def replaced(params: Params, changed: Params) -> Params:
  """Parameters, some of them with other values."""
  return _nested(_flat(params) | _flat(changed))


def whole(config: OptimizerConfig, params: Params, changed: Params) -> Params:
  """The parameters of the network.

  Args:
    config: of the optimizer.
    params: of the state.
    changed: what to have in place of `trained` ones: as they are, or averages of them.
  """
  if is_all(config):
    return changed
  params = replaced(params, changed)
  if not config.lora_rank:
    return params
  found = _flat(params)
  scale = config.lora_alpha / config.lora_rank
  for name in [name for name in found if f'{name}_in' in found]:
    a, b = found.pop(f'{name}_in'), found.pop(f'{name}_out')
    found[name] += scale * _product(name, a, b)
  return _nested(found)


def _adapter(name: str, x: jax.Array, rank: int, key: jax.Array) -> dict[str, jax.Array]:
  """A, random as the network's matrices are, and B, zeros; a layer's own where x has many."""
  stacked = x.ndim - len(axes.row_of(name))  # axes that count layers
  last = stacked + axes.num_inputs(name)
  layers, inputs, outputs = x.shape[:stacked], x.shape[stacked:last], x.shape[last:]
  key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return {
    f'{name}_in': jax.random.normal(key, (*layers, *inputs, rank)) * math.prod(inputs) ** -0.5,
    f'{name}_out': jnp.zeros((*layers, rank, *outputs)),
  }


def _product(name: str, a: jax.Array, b: jax.Array) -> jax.Array:
  # These few numbers are added to weights: full precision, unlike products with activations.
  product: Callable[..., jax.Array] = functools.partial(jnp.tensordot, axes=1, precision='highest')
  for _ in range(a.ndim - axes.num_inputs(name) - 1):  # layers of a scan
    product = jax.vmap(product)
  return product(a, b)


# ----- trees, by the names of their leaves, such as 'causal/layers/query/kernel'


def _last(name: str) -> str:
  return name.rpartition('/')[2]


def _is_adapter(name: str) -> bool:
  stem, _, end = _last(name).rpartition('_')
  return stem in MATRICES and end in ('in', 'out')


_flat = functools.partial(traverse_util.flatten_dict, sep='/')
_nested = functools.partial(traverse_util.unflatten_dict, sep='/')

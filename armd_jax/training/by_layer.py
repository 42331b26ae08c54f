"""Norms of what a step moves, layer by layer, and the scale of logits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.models.params import Params
from armd_jax.parallel.axes import path_name

Array = jax.Array


def norms(tree: Any) -> dict[str, Array]:
  """float32 L2 norms of a tree like the parameters, by what holds them: a scalar each, and [L] of
  a stack of L layers that are scanned."""
  squares: dict[str, Array] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    name, is_stack = _holder(path_name(path))
    axes = range(int(is_stack), x.ndim)
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(axes))
    squares[name] = squares.get(name, jnp.float32(0)) + square
  return {name: jnp.sqrt(square) for name, square in squares.items()}


def logit_scale(params: Params, vocab_size: int) -> Array:
  """How far logits spread, a float32 scalar: the root mean square, over entries of the vocabulary,
  of a logit of a normed row that points in no direction more than in another.

  A normed row has entries of size 1, which the final norm's scale and then the matrix of the logits
  multiply (our choice: no row of a text is needed, nor its logits).

  Args:
    params: of the whole network.
    vocab_size: entries of V that are real.
  """
  vocabulary, scale_E = params['vocabulary'], params['final_norm']['scale']
  matrix_VxE = vocabulary.get('head', vocabulary['embedding']).astype(jnp.float32)
  squares_V = jnp.sum(jnp.square(matrix_VxE * scale_E.astype(jnp.float32)), axis=1)
  is_real_V = jnp.arange(len(squares_V)) < vocab_size
  return jnp.sqrt(jnp.sum(jnp.where(is_real_V, squares_V, 0)) / vocab_size)


def measured(
  gradients: Any, updates: Any, params: Any, whole: Params, vocab_size: int
) -> dict[str, dict[str, Array]]:
  """What `config.train.log_layers` asks for: norms of the gradient, and of an update over those of
  what it is added to; and `logit_scale` of the whole network before the update."""
  moved, of = norms(updates), norms(params)
  ratios = {name: moved[name] / jnp.maximum(of[name], 1e-12) for name in moved}
  scale = {'': logit_scale(whole, vocab_size)}
  return {'gradient_norm': norms(gradients), 'update_ratio': ratios, 'logit_scale': scale}


def rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
  """Numbers of `measured` by names for a log: 'logit_scale', 'gradient_norm/vocabulary', and a
  layer's 'gradient_norm/two_stream/3'."""
  for kind, by_name in found.items():
    for name, values in by_name.items():
      if getattr(values, 'ndim', 0) == 0:
        yield f'{kind}/{name}'.rstrip('/'), float(values)
      else:
        yield from ((f'{kind}/{name}/{i}', float(value)) for i, value in enumerate(values))


def _holder(name: str) -> tuple[str, bool]:
  """The layer or part of a network that holds a parameter, and whether it is a stack of layers."""
  first, second, *_ = [*name.split('/'), '']
  if match := re.fullmatch(r'layer_(\d+)', second):
    return f'{first}/{match[1]}', False
  return first, second == 'layers'

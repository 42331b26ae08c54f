"""Norms of what a step moves, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

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


def measured(gradients: Any, updates: Any, params: Any) -> dict[str, dict[str, Array]]:
  """The numbers of `config.train.log_layers`: norms of the gradient, and of an update over those of
  what it is added to."""
  moved, of = norms(updates), norms(params)
  ratios = {name: moved[name] / jnp.maximum(of[name], 1e-12) for name in moved}
  return {'gradient_norm': norms(gradients), 'update_ratio': ratios}


def rows(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
  """Numbers of `measured` by names for a log: 'gradient_norm/vocabulary', and a layer's
  'gradient_norm/two_stream/3'."""
  for kind, by_name in found.items():
    for name, values in by_name.items():
      if getattr(values, 'ndim', 0) == 0:
        yield f'{kind}/{name}', float(values)
      else:
        yield from ((f'{kind}/{name}/{i}', float(value)) for i, value in enumerate(values))


def _holder(name: str) -> tuple[str, bool]:
  """The layer or part of a network that holds a parameter, and whether it is a stack of layers."""
  first, second, *_ = [*name.split('/'), '']
  if match := re.fullmatch(r'layer_(\d+)', second):
    return f'{first}/{match[1]}', False
  return first, second == 'layers'

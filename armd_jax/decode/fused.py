"""Layers of a decoding step in eight launches each, on H100.

A step reads every weight once, which takes less time there than launching the 17 kernels that XLA
makes of a layer as it is written. Here it is written so that eight do (docs/decoding.md):

  norm | queries, keys and values | rotation and caches | attention | out, and the residual
  norm | up, and gelu | down, and the residual

Only the third and the fourth are kernels of ours; the products are cuBLAS's, which alone adds the
residual and applies gelu in the same launch (`COMPILER_OPTIONS`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from armd_jax import attention
from armd_jax.attention import hopper, hopper_cache
from armd_jax.config import ModelConfig
from armd_jax.decode.plan import Form
from armd_jax.hardware import device
from armd_jax.models.layers import Block, KVCache, View, make_norm, swiglu
from armd_jax.models.params import Params

Array = jax.Array

# XLA's own products, in Triton, leave gelu and the residual to other launches.
COMPILER_OPTIONS = {'xla_gpu_enable_triton_gemm': False, 'xla_gpu_enable_cublaslt': True}
NAME = 'query_key_value'
ROWS = 8  # that cuBLAS and the attention kernel take at once; other counts are copied and padded
MOST_PADDED_ROWS = 128  # of a step, beyond which padding costs more than the copies it saves


@dataclasses.dataclass(frozen=True)
class GPU(Form):
  """Of GPUs; weights are arranged, by `fuse`, on H100 alone."""

  def for_steps(self, config: ModelConfig, rows: int) -> GPU:
    return GPU(serve(config))

  def arrange(self, params: Params) -> Params:
    return fuse(params)

  def whole(self, params: Params) -> Params:
    return split(params)

  def reading(self) -> contextlib.AbstractContextManager[None]:
    """The rows of a step, all of a sequence, see the same keys (`step.predict`)."""
    return nn.intercept_methods(_Layers())

  def compiler_options(self, config: ModelConfig) -> dict[str, Any]:
    return COMPILER_OPTIONS if serve(config) else {}

  def narrowest(self, sequences: int) -> int:
    """Two for one sequence: no product gets a single row. XLA would multiply elementwise and add
    up, by way of arrays of the matrices' size, so that a step would read and write half as much
    again as its weights."""
    return 2 if sequences == 1 else 1

  def step_rows(self, batch: int, width: int) -> tuple[int, int]:
    """As many as take fewest launches."""
    rows = -width // ROWS * -ROWS
    if not self.arranges or 2 * batch * rows > MOST_PADDED_ROWS:
      return width, width
    several = ROWS // math.gcd(batch, ROWS)  # as many as a product takes at once
    return rows, min(rows, -width // several * -several)


def serve(config: ModelConfig) -> bool:
  """Whether layers of a network run in this form here."""
  sizes = config.num_heads, config.num_kv_heads, config.head_dim
  here = device.current()
  if here.platform != 'gpu' or config.dtype != 'bfloat16' or hopper_cache.unsupported(*sizes):
    return False
  if config.query_key_norm:  # between the projection and the kernel that rotates
    return False
  if config.content_mask == 'row':  # rows of a step then see different keys
    return False
  shape = lambda *dims: jax.ShapeDtypeStruct((1, *dims, config.head_dim), config.dtype)
  q, k = shape(1, ROWS, config.num_heads), shape(ROWS, config.num_kv_heads)
  return attention.choose(config.attention, q, k, k) == 'pallas_hopper'  # type: ignore[arg-type]


def fuse(params: Params) -> Params:
  """Unrolled parameters, the projections of every layer as one matrix under `NAME`."""
  if not isinstance(params, dict):
    return params
  if not {'query', 'key_value'} <= params.keys():
    return {name: fuse(value) for name, value in params.items()}
  others = {name: x for name, x in params.items() if name not in ('query', 'key_value')}
  parts = params['query'], params['key_value']
  joined = {'matrix': [x['kernel'].reshape(len(x['kernel']), -1) for x in parts]}
  if 'bias' in params['query']:
    joined['bias'] = [x['bias'].ravel() for x in parts]
  return others | {NAME: {key: jnp.concatenate(x, axis=-1) for key, x in joined.items()}}


def split(params: Params) -> Params:
  """What `fuse` returns, as it was."""
  if not isinstance(params, dict):
    return params
  if NAME not in params:
    return {name: split(value) for name, value in params.items()}
  others = {name: x for name, x in params.items() if name != NAME}
  heads, head_dim, _ = params['out']['kernel'].shape
  names = {'matrix': 'kernel', 'bias': 'bias'}
  query, key_value = {}, {}
  for name, x in params[NAME].items():
    q, kv = jnp.split(x, [heads * head_dim], axis=-1)
    query[names[name]] = q.reshape(*x.shape[:-1], heads, head_dim)
    key_value[names[name]] = kv.reshape(*x.shape[:-1], 2, -1, head_dim)
  return others | {'query': query, 'key_value': key_value}


class _Layers:
  """Replaces the blocks whose parameters are in this form."""

  def __init__(self) -> None:
    # By view, which all layers of a stack share, and beside it, so that no other takes its id.
    self._prepared: dict[int, Any] = {}

  def __call__(
    self,
    next_function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: Any,
  ) -> Any:
    module = context.module
    is_block = isinstance(module, Block) and context.method_name == '__call__'
    if not (is_block and module.has_variable('params', NAME)):
      return next_function(*args, **kwargs)
    return self._layer(module.config, module.variables['params'], *args, **kwargs)

  def _layer(
    self,
    c: ModelConfig,
    params: Params,
    rows_BxRxWxE: Array,
    view: View,
    cache: KVCache,
    source_BxWxE: Array | None = None,
  ) -> tuple[Array, KVCache]:
    """See `Block`."""
    norm = lambda name, x: make_norm(c, parent=None).apply({'params': params[name]}, x)
    if id(view) not in self._prepared:
      self._prepared[id(view)] = view, _rotation(c, view, source_BxWxE is not None)
    _, rotation = self._prepared[id(view)]

    streams = rows_BxRxWxE.shape[1]
    projected_BxRxWxE = rows_BxRxWxE
    if source_BxWxE is not None:
      projected_BxRxWxE = jnp.concatenate([source_BxWxE[:, None], rows_BxRxWxE], axis=1)
    qkv_BxRxWxF = _dense(params[NAME], 'matrix', norm('attention_norm', projected_BxRxWxE))
    qkv_BxRxWxXxD = qkv_BxRxWxF.reshape(*qkv_BxRxWxF.shape[:3], -1, c.head_dim)
    q_BxRxWxHxD, k_BxKxGxD, v_BxKxGxD = hopper_cache.append(
      qkv_BxRxWxXxD,
      rotation,
      view.offset_B,  # type: ignore[arg-type]  # there, as the cache is
      cache.k,
      cache.v,
      streams,
    )
    # All rows of a step see the same.
    reach = hopper.reach(view.lengths_BxRxN[:, 0, 0], q_BxRxWxHxD.shape, k_BxKxGxD.shape[2])
    seen_BxRxWxHxD = hopper.attend(q_BxRxWxHxD, k_BxKxGxD, v_BxKxGxD, reach)
    seen_BxRxWxF = seen_BxRxWxHxD.reshape(*rows_BxRxWxE.shape[:3], -1)
    rows_BxRxWxE += _dense(params['out'], 'kernel', seen_BxRxWxF)
    normed_BxRxWxE = norm('mlp_norm', rows_BxRxWxE)
    if c.mlp == 'swiglu':
      both_BxRxWxF = _dense(params['gate_up'], 'kernel', normed_BxRxWxE)
      inner_BxRxWxF = swiglu(both_BxRxWxF.reshape(*both_BxRxWxF.shape[:3], 2, -1))
    else:
      inner_BxRxWxF = nn.gelu(_dense(params['up'], 'kernel', normed_BxRxWxE))
    rows_BxRxWxE += _dense(params['down'], 'kernel', inner_BxRxWxF)
    return rows_BxRxWxE, cache.replace(k=k_BxKxGxD, v=v_BxKxGxD)


def _rotation(c: ModelConfig, view: View, has_source: bool) -> tuple[Array, Array] | None:
  """Of all rows that are projected, for every head; None without RoPE."""
  rotation = view.rotation_BxRxNxD2
  if has_source and rotation is not None:
    both = lambda own, source: jnp.concatenate([source[:, None], own], axis=1)
    rotation = jax.tree.map(both, rotation, view.source_rotation_BxKxD2)
  heads = lambda x: jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], c.num_heads, x.shape[-1]))
  return jax.tree.map(heads, rotation)


def _dense(params: Params, name: str, x: Any) -> Array:
  """A dense layer whose inner axis is the last one."""
  matrix_IxF = params[name].reshape(x.shape[-1], -1)
  y = x @ matrix_IxF
  return y + params['bias'].astype(y.dtype).ravel() if 'bias' in params else y

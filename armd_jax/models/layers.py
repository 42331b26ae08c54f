"""The transformer block that every model here is made of, and its key/value cache."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from armd_jax.attention import prefix_attention
from armd_jax.attention.sets import set_attention
from armd_jax.config import ModelConfig, RopeScalingConfig
from armd_jax.hardware import device
from armd_jax.models.params import Params
from armd_jax.parallel import axes

Array = jax.Array

ATTENTION, MLP = range(2)  # the branches of a block
BIASED = {  # products of a block that add a bias, by what `config.biases` is
  'none': (),
  'query_key_value': ('query', 'key_value'),
  'attention': ('query', 'key_value', 'out'),
  'all': ('query', 'key_value', 'out', 'up', 'gate_up', 'down'),
}
ROWS = ('batch', None, None)  # axes of rows: batch, stream, row; or batch, key, kind

# What the forward pass keeps for the backward pass, so that it is not computed again.
REMAT_POLICIES = {
  # Products with matrices, and the arrays that attention kernels and blocks name: no product is
  # computed twice. Where only one array is computed from a product, a block names that array: it is
  # kept in place of the product, and not computed again.
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(
      'prefix_attention_out', 'prefix_attention_stats', 'attention_input', 'attended_rows'
    ),
  ),
  'full': jax.checkpoint_policies.nothing_saveable,
}


@flax.struct.dataclass
class View:
  """Positions and masks of the rows of a layer; shared by all layers of a stack."""

  # float32 (cos, sin) of the RoPE angles, `[B or 1, ...]`: of the rows, and of those that keys and
  # values come from. None without RoPE.
  rotation_BxRxNxD2: tuple[Array, Array] | None
  source_rotation_BxKxD2: tuple[Array, Array] | None
  # int32 `[B or 1, R, N]`, how many of the first keys each row sees.
  lengths_BxRxN: Array
  # int32 `[B or 1]`, where in the cache this call's keys begin; None without a cache.
  offset_B: Array | None = None
  # int32, index of each sequence in the whole batch, which its dropout depends on; None: from 0.
  index_B: Array | None = None
  # The condition that shifts, scales and gates every branch (adaLN), or None.
  condition_BxC: Array | None = None
  # If not 0, the last stream has keys of its own beside those of the stream before it, or of the
  # cache: its rows see, besides those, each other in consecutive sets of so many.
  set_length: int = flax.struct.field(pytree_node=False, default=0)


@flax.struct.dataclass
class KVCache:
  """Keys and values of one layer: the first rows are filled, the others are never visible.

  Attributes:
    k, v: `[B, K, G, D]`, as kernels read them.
  """

  k: Array
  v: Array

  @classmethod
  def empty(cls, config: ModelConfig, batch: int, rows: int) -> KVCache:
    shape = batch, rows, config.num_kv_heads, config.head_dim
    zeros = jnp.zeros(shape, config.dtype)
    zeros = axes.constrain(zeros, 'batch', None, axes.kv_heads(config.num_kv_heads), None)
    return cls(zeros, zeros)

  def write(self, k_BxWxGxD: Array, v_BxWxGxD: Array, offset_B: Array) -> KVCache:
    """Writes W rows at `offset_B` (`[1]` when all sequences are at the same place)."""

    def put(cache_BxKxGxD, rows_BxWxGxD):
      write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=-3)
      if len(offset_B) == 1:
        return write(cache_BxKxGxD, rows_BxWxGxD, offset_B[0])
      return jax.vmap(write)(cache_BxKxGxD, rows_BxWxGxD, offset_B)

    return self.replace(k=put(self.k, k_BxWxGxD), v=put(self.v, v_BxWxGxD))

  def read(self) -> tuple[Array, Array]:
    """k_BxKxGxD and v_BxKxGxD."""
    return self.k, self.v


def side_by_side(*streams: Any) -> Any:
  """Arrays of R streams, or trees of them, along a new axis 1: `[B, ...]` as `[B, R, ...]`."""
  if len(streams) == 1:  # for one array a stack would be a concatenation, undone by a slice
    return jax.tree.map(lambda x: x[:, None], *streams)
  return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *streams)


def rope_rotation(config: ModelConfig, position: Array) -> tuple[Array, Array] | None:
  """cos and sin of the rotary angles, float32, `position.shape + (head_dim / 2,)`; None in a style
  without RoPE."""
  if config.architecture == 'gpt2':
    return None
  frequency = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
  frequency = _scaled(config.rope_scaling, config.rope_theta**-frequency)
  angle = position[..., None].astype(jnp.float32) * frequency
  return jnp.cos(angle), jnp.sin(angle)


def _scaled(scaling: RopeScalingConfig, frequency_D2: Array) -> Array:
  """Radians per position, for long texts: all are reduced, or (Llama 3) only the angles that turn
  few times within the length of the texts that the model was first trained on."""
  if scaling.kind == 'none':
    return frequency_D2
  slow_D2 = frequency_D2 / scaling.factor
  if scaling.kind == 'linear':
    return slow_D2
  turns_D2 = scaling.original_length * frequency_D2 / (2 * math.pi)
  low, high = scaling.low_frequency, scaling.high_frequency
  kept_D2 = jnp.clip((turns_D2 - low) / (high - low), 0, 1)
  return kept_D2 * frequency_D2 + (1 - kept_D2) * slow_D2


def rotate(x: Array, rotation: tuple[Array, Array] | None) -> Array:
  """Applies rotary embeddings, if any, to `[..., H, D]`, pairing feature i with i + D/2."""
  if rotation is None:
    return x
  cos, sin = (r[..., None, :] for r in rotation)
  # In float32 and rounded once, at the end: attention scores compare products of many such pairs.
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
  """Root-mean-square norm with a learned scale, computed in float32."""

  dtype: str
  epsilon: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale_E = self.param('scale', nn.initializers.ones, x.shape[-1:])
    x = x.astype(jnp.float32)
    x *= jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
    return (x * scale_E).astype(self.dtype)


def swiglu(both_x2xF: Array) -> Array:
  """`[..., F]`: SiLU of the first product, the gate, times the second."""
  return nn.silu(both_x2xF[..., 0, :]) * both_x2xF[..., 1, :]


def make_norm(config: ModelConfig, **where: Any) -> nn.Module:
  """The norm of the config's style; statistics are float32 in both. `where` goes to the module."""
  if config.architecture == 'gpt2':
    # Without the fast form of the variance, E[x^2] - E[x]^2, which cancels where means are large.
    epsilon, dtype = config.norm_epsilon, config.dtype
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, **where)
  return RMSNorm(config.dtype, config.norm_epsilon, **where)


def kernel_init(scale: float) -> nn.initializers.Initializer:
  """Normal with variance `scale^2 / fan_in`, so that small and large models start alike.

  GPT-2's constant 0.02 equals it at a width of 2500 and leaves attention of small models flat: a
  4 x 128 byte model needed about three times the steps to leave the unigram plateau.
  """
  return nn.initializers.variance_scaling(scale**2, 'fan_in', 'normal')


class Dropout(nn.Module):
  """Dropout that is on exactly when a 'dropout' key is passed to `apply`.

  What a sequence loses depends only on the key, the layer and the sequence's index:
  neither on the sequences beside it nor on the devices that they share.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, index_B: Array | None) -> Array:
    if self.rate == 0 or not self.has_rng('dropout'):
      return x
    index_B = jnp.arange(len(x)) if index_B is None else index_B
    key, keep = self.make_rng('dropout'), 1 - self.rate
    draw = lambda index, x: jax.random.bernoulli(jax.random.fold_in(key, index), keep, x.shape)
    # With a rate of 1 nothing is kept; the divisor must only differ from 0.
    return jnp.where(jax.vmap(draw)(index_B, x), x / max(keep, 1e-6), 0)


class Block(nn.Module):
  """Pre-norm attention and MLP with residual branches, over R streams that share keys and values.

  Keys and values come from stream 0 (content rows X beside query rows G, paper eqs. 3-4; or the
  only stream, paper section 3's causal layers), unless `source` is given. With sets (see `View`)
  every stream has keys, one after the other.
  """

  config: ModelConfig

  @nn.compact
  def __call__(
    self,
    rows_BxRxNxE: Array,
    view: View,
    cache: KVCache | None = None,
    source_BxKxE: Array | None = None,
  ) -> tuple[Array, KVCache | None]:
    c = self.config
    enter, leave = self._modulation(view.condition_BxC)
    dropout = lambda x: Dropout(c.dropout)(x, view.index_B)

    norm = make_norm(c, name='attention_norm')
    normed_BxRxNxE = enter(ATTENTION, norm(rows_BxRxNxE))
    # The streams share the weights of every layer (eqs. 3-4), those of its norm included.
    if view.set_length:
      source_BxKxE = normed_BxRxNxE.reshape(len(normed_BxRxNxE), -1, c.embed_dim)
    else:
      source_BxKxE = normed_BxRxNxE[:, 0] if source_BxKxE is None else norm(source_BxKxE)
    branch_BxRxNxE, cache = self._attend(normed_BxRxNxE, source_BxKxE, view, cache)
    rows_BxRxNxE += leave(ATTENTION, dropout(branch_BxRxNxE))
    rows_BxRxNxE = checkpoint_name(rows_BxRxNxE, 'attended_rows')

    normed_BxRxNxE = enter(MLP, make_norm(c, name='mlp_norm')(rows_BxRxNxE))
    rows_BxRxNxE += leave(MLP, dropout(self._mlp(normed_BxRxNxE)))
    return rows_BxRxNxE, cache

  def _attend(self, normed_BxRxNxE, source_BxKxE, view, cache):
    """Each row sees a prefix of the keys: of those of this call, or of all in the cache."""
    c = self.config
    kv_heads = axes.kv_heads(c.num_kv_heads)
    q_BxRxNxHxD = self._project('query', (c.num_heads, c.head_dim))(normed_BxRxNxE)
    # One matrix for both: the source is read once.
    kv_BxKx2xGxD = self._project('key_value', (2, c.num_kv_heads, c.head_dim))(source_BxKxE)
    q_BxRxNxHxD = axes.constrain(q_BxRxNxHxD, *ROWS, 'heads', None)
    kv_BxKx2xGxD = axes.constrain(kv_BxKx2xGxD, *ROWS, kv_heads, None)
    k_BxKxGxD = kv_BxKx2xGxD[:, :, 0]
    if c.query_key_norm:
      q_BxRxNxHxD = RMSNorm(c.dtype, c.norm_epsilon, name='query_norm')(q_BxRxNxHxD)
      k_BxKxGxD = RMSNorm(c.dtype, c.norm_epsilon, name='key_norm')(k_BxKxGxD)
    q_BxRxNxHxD = rotate(q_BxRxNxHxD, view.rotation_BxRxNxD2)
    k_BxKxGxD = rotate(k_BxKxGxD, view.source_rotation_BxKxD2)
    # Named after the rotation: the backward pass then keeps what the kernels read, and
    # nothing has to be rotated again.
    q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD = checkpoint_name(
      (q_BxRxNxHxD, k_BxKxGxD, kv_BxKx2xGxD[:, :, 1]), 'attention_input'
    )
    attend = functools.partial(prefix_attention, backend=c.attention)
    if view.set_length:
      own = slice(-q_BxRxNxHxD.shape[2], None)
      attend = functools.partial(
        set_attention, attend, k_BxKxGxD[:, own], v_BxKxGxD[:, own], view.set_length
      )
      k_BxKxGxD, v_BxKxGxD = k_BxKxGxD[:, : own.start], v_BxKxGxD[:, : own.start]
    if cache is not None:
      # Written before it is read: rows of a block see their own block's keys in the causal layers.
      if k_BxKxGxD.shape[1]:
        cache = cache.write(k_BxKxGxD, v_BxKxGxD, view.offset_B)
      k_BxKxGxD, v_BxKxGxD = cache.read()
    seen_BxRxNxHxD = attend(q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD, view.lengths_BxRxN)
    branch_BxRxNxE = self._project('out', c.embed_dim, (-2, -1), self._shrink)(seen_BxRxNxHxD)
    return axes.constrain(branch_BxRxNxE, *ROWS, None), cache

  def _mlp(self, normed_BxRxNxE):
    c = self.config
    if c.mlp == 'swiglu':
      # One matrix for both: the rows are read once.
      both_BxRxNx2xF = self._project('gate_up', (2, c.mlp_dim))(normed_BxRxNxE)
      both_BxRxNx2xF = axes.constrain(both_BxRxNx2xF, *ROWS, None, 'mlp')
      inner_BxRxNxF = swiglu(both_BxRxNx2xF)
    else:
      hidden_BxRxNxF = self._project('up', c.mlp_dim)(normed_BxRxNxE)
      inner_BxRxNxF = nn.gelu(axes.constrain(hidden_BxRxNxF, *ROWS, 'mlp'))
    branch_BxRxNxE = self._project('down', c.embed_dim, -1, self._shrink)(inner_BxRxNxF)
    return axes.constrain(branch_BxRxNxE, *ROWS, None)

  def _project(self, name, features, axis=-1, scale=1.0):
    return nn.DenseGeneral(
      features,
      axis,
      use_bias=name in BIASED[self.config.biases],
      dtype=self.config.dtype,
      kernel_init=kernel_init(scale),
      name=name,
    )

  @property
  def _shrink(self):
    """Branches that add to the residual stream start smaller, so that its variance does not grow
    with depth (GPT-2)."""
    return (2 * self.config.num_layers) ** -0.5

  def _modulation(self, condition_BxC):
    """How the condition changes input and output of a branch: adaLN, whose gates start at zero, so
    that a layer starts as the identity (DiT, as in SEDD)."""
    if condition_BxC is None:
      return lambda branch, x: x, lambda branch, x: x
    dense = nn.DenseGeneral(
      (2, 3, self.config.embed_dim),
      dtype=self.config.dtype,
      kernel_init=nn.initializers.zeros,
      name='modulation',
    )
    # One matrix for both branches, and an axis each for streams and rows, which all share it.
    parts_Bx2x3x1x1xE = dense(condition_BxC)[:, :, :, None, None]
    shift, scale, gate = (parts_Bx2x3x1x1xE[:, :, i] for i in range(3))
    enter = lambda branch, x: x * (1 + scale[:, branch]) + shift[:, branch]
    leave = lambda branch, x: x * gate[:, branch]
    return enter, leave


class Stack(nn.Module):
  """`num_layers` blocks: one scanned layer (parameters stacked under 'layers'), or, with
  `scan_layers` off, one module each ('layer_0', ...). Only the latter form takes caches."""

  config: ModelConfig
  num_layers: int

  @nn.compact
  def __call__(
    self, rows_BxRxNxE: Array, view: View, caches: tuple[KVCache, ...] | None = None
  ) -> tuple[Array, tuple[KVCache, ...] | None]:
    block = remat_block(self.config)
    if not self.config.scan_layers:
      new_caches = []
      for layer in range(self.num_layers):
        cache = caches[layer] if caches else None
        rows_BxRxNxE, cache = block(self.config, name=f'layer_{layer}')(rows_BxRxNxE, view, cache)
        new_caches.append(cache)
      return rows_BxRxNxE, tuple(new_caches)
    if caches is not None:
      raise ValueError('caches need scan_layers=False; convert the parameters by unstack_layers')
    if self.num_layers:
      # Every layer draws parameters and dropout of its own; the view is the same for all of them.
      scan = nn.scan(
        block,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        in_axes=nn.broadcast,
        length=self.num_layers,
        unroll=self.num_layers if _is_unrolled(self.config) else 1,
      )
      rows_BxRxNxE, _ = scan(self.config, name='layers')(rows_BxRxNxE, view)
    return rows_BxRxNxE, None


def remat_block(config: ModelConfig):
  """`Block`, recomputed in the backward pass by the policy of `config.remat`."""
  if config.remat == 'none':
    return Block
  # Inside a scan the loop itself keeps XLA from undoing the recomputation.
  in_loop = config.scan_layers and not _is_unrolled(config)
  return nn.remat(Block, policy=REMAT_POLICIES[config.remat], prevent_cse=not in_loop)


def _is_unrolled(config: ModelConfig) -> bool:
  """Whether a scan over layers is compiled without a loop; parameters are stacked all the same.

  A loop copies what the backward pass keeps of a layer into arrays of all layers, and out of them:
  a seventh of a training step's memory traffic on a GPU. With the policy 'full' that is little.
  TPU programs write most of it where it belongs, and take longer to compile.
  """
  return device.current().platform == 'gpu' and config.remat != 'full'


def stack_of(config: ModelConfig, layers: Sequence[Any]) -> dict[str, Any]:
  """The parameters of a `Stack` from those of its blocks."""
  if not config.scan_layers:
    return {f'layer_{number}': layer for number, layer in enumerate(layers)}
  return {'layers': jax.tree.map(lambda *x: jnp.stack(x), *layers)} if layers else {}


def unstack_layers(params: Params) -> Params:
  """Parameters of a scanned model as those of the unrolled one; see `stack_of`."""
  if not isinstance(params, dict):
    return params
  unstacked = {}
  for name, value in params.items():
    if name == 'layers':
      num_layers = jax.tree.leaves(value)[0].shape[0]
      for layer in range(num_layers):
        unstacked[f'layer_{layer}'] = jax.tree.map(lambda x, i=layer: x[i], value)
    else:
      unstacked[name] = unstack_layers(value)
  return unstacked

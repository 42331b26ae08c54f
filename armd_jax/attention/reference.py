"""Prefix attention in plain XLA: the definition that every kernel is held to."""

from __future__ import annotations

import einops
import jax
import jax.numpy as jnp

Array = jax.Array


def prefix_attention(
  q_BxRxNxHxD: Array, k_BxKxGxD: Array, v_BxKxGxD: Array, lengths_BxRxN: Array
) -> Array:
  """Softmax attention of each row over a prefix of the keys; see `armd_jax.attention`."""
  _, streams, _, heads, head_dim = q_BxRxNxHxD.shape
  groups = k_BxKxGxD.shape[2]
  # Streams and the heads of a group are more rows that read the same keys, so that both products
  # are plain batched matrix products without transposes of the large array.
  q = einops.rearrange(q_BxRxNxHxD, 'B R N (G h) D -> B G (h R N) D', G=groups)
  k, v = (einops.rearrange(x, 'B K G D -> B G K D') for x in (k_BxKxGxD, v_BxKxGxD))
  lengths = einops.repeat(lengths_BxRxN, 'B R N -> B 1 (h R N) 1', h=heads // groups)

  logits = jnp.einsum('bgqd,bgkd->bgqk', q, k, preferred_element_type=jnp.float32)
  # Hidden keys get a finite number that vanishes beside any real logit, so that a row that sees
  # nothing has a finite softmax, and finite (zero) gradients, before it is set to 0.
  logits = jnp.where(jnp.arange(k.shape[2]) < lengths, logits * head_dim**-0.5, -1e30)
  weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  out = jnp.einsum('bgqk,bgkd->bgqd', weights, v, preferred_element_type=jnp.float32)
  out = jnp.where(lengths > 0, out, 0).astype(q.dtype)
  return einops.rearrange(out, 'B G (h R N) D -> B R N (G h) D', R=streams, h=heads // groups)

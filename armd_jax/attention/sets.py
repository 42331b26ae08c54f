"""Attention over a clean copy of a text and over a set of noised tokens (BD3-LM section 3.2).

A noised row sees the clean tokens of earlier sets, a prefix of the keys, and the noised rows of its
own set. The clean rows beside it see prefixes alone. Four tokens in sets of two:

              clean 1 2 3 4   noised 1 2 3 4
    clean 1, 2      x x . .          . . . .
    clean 3, 4      x x x x          . . . .
    noised 1, 2     . . . .          x x . .
    noised 3, 4     x x . .          . . x x

The clean rows are `prefix_attention`. The noised ones are plain products here, since a kernel of
prefixes does not give what its weights sum to, which the two parts of a softmax share.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp

from armd_jax.parallel import axes

Array = jax.Array

_HIDDEN = -1e30  # finite, and vanishes beside any real logit


def set_attention(
  attend_prefix: Callable[..., Array],
  own_k_BxNxGxD: Array,
  own_v_BxNxGxD: Array,
  set_length: int,
  q_BxRxNxHxD: Array,
  k_BxKxGxD: Array,
  v_BxKxGxD: Array,
  lengths_BxRxN: Array,
) -> Array:
  """Attention of clean rows, if there are any, and of noised rows.

  Args:
    attend_prefix: `prefix_attention`, of the clean rows.
    own_k_BxNxGxD, own_v_BxNxGxD: keys and values of the noised rows.
    set_length: L, consecutive noised rows that see each other; it divides N.
    q_BxRxNxHxD: queries of the noised rows, the last of R = 1 or 2 streams.
    k_BxKxGxD, v_BxKxGxD: of clean rows.
    lengths_BxRxN: int32, how many of the clean keys each row sees.
  Returns:
    out_BxRxNxHxD, in the dtype of q; scores and softmax are computed in float32.
  """
  noised = axes.batch(q_BxRxNxHxD), None, 'heads', None
  keys = axes.batch(k_BxKxGxD), None, axes.kv_heads(k_BxKxGxD.shape[2]), None
  parts = axes.size('heads')
  arrays = k_BxKxGxD, v_BxKxGxD, own_k_BxNxGxD, own_v_BxNxGxD
  if k_BxKxGxD.shape[2] % parts:  # fewer key heads than devices, see `prefix_attention`
    arrays = tuple(jnp.repeat(x, parts // x.shape[2], axis=2) for x in arrays)
    keys = axes.batch(k_BxKxGxD), None, 'kv_heads', None
  attend = axes.split(
    lambda *x: _noised(set_length, *x),
    (noised, keys, keys, keys, keys, (axes.batch(lengths_BxRxN), None, None)),
    noised,
  )
  seen_BxNxHxD = attend(q_BxRxNxHxD[:, -1], *arrays, lengths_BxRxN[:, -1:])
  if q_BxRxNxHxD.shape[1] == 1:
    return seen_BxNxHxD[:, None]
  clean_Bx1xNxHxD = attend_prefix(q_BxRxNxHxD[:, :-1], k_BxKxGxD, v_BxKxGxD, lengths_BxRxN[:, :-1])
  return jnp.concatenate([clean_Bx1xNxHxD, seen_BxNxHxD[:, None]], axis=1)


def _noised(set_length, q, k, v, own_k, own_v, lengths):
  """`[B, N, H, D]` of the noised rows."""
  groups = k.shape[2]
  q = einops.rearrange(q, 'B N (G h) D -> B G h N D', G=groups)
  in_sets = lambda x: einops.rearrange(x, 'B (S L) G D -> B S L G D', L=set_length)
  scale = q.shape[-1] ** -0.5
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  of_sets = einops.rearrange(q, 'B G h (S L) D -> B G h S L D', L=set_length)
  own = product('bghsqd,bskgd->bghsqk', of_sets, in_sets(own_k))
  own = einops.rearrange(own, 'B G h S q k -> B G h (S q) k')
  scores = jnp.concatenate([_prefix_attention_scores(q, k, lengths), own], axis=-1) * scale
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  own = einops.rearrange(weights[..., k.shape[1] :], 'B G h (S q) k -> B G h S q k', q=set_length)
  out = product('bghsqk,bskgd->bghsqd', own, in_sets(own_v))
  out = einops.rearrange(out, 'B G h S q D -> B G h (S q) D')
  out += _prefix_attention_sums(weights[..., : k.shape[1]], v, lengths)
  return einops.rearrange(out, 'B G h N D -> B N (G h) D').astype(q.dtype)


# Their names are where flops.py looks for products with hidden keys; both read the lengths for it.
@jax.jit
def _prefix_attention_scores(q, k, lengths):
  scores = jnp.einsum('bghqd,bkgd->bghqk', q, k, preferred_element_type=jnp.float32)
  return jnp.where(_is_seen(lengths, k), scores, _HIDDEN)


@jax.jit
def _prefix_attention_sums(weights, v, lengths):
  weights = jnp.where(_is_seen(lengths, v), weights, 0)
  return jnp.einsum('bghqk,bkgd->bghqd', weights, v, preferred_element_type=jnp.float32)


def _is_seen(lengths_Bx1xN, k_BxKxGxD):
  return jnp.arange(k_BxKxGxD.shape[1]) < lengths_Bx1xN[:, :, None, :, None]

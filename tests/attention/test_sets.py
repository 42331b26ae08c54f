"""Attention of noised rows is one softmax over clean keys before them and their own set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.attention import prefix_attention, sets


@pytest.mark.parametrize('groups', [4, 2])
@pytest.mark.parametrize('length', [1, 3, 6])
@pytest.mark.parametrize('streams', [1, 2])
def test_is_plain_attention_under_the_mask(streams, length, groups):
  """Output and gradients, to 1e-5, of a softmax over all keys of both kinds at once."""
  rows = 6
  shapes = [(2, streams, rows, 4, 8), *[(2, rows, groups, 8)] * 4]
  keys = jax.random.split(jax.random.key(0), 6)
  arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
  tangent = jax.random.normal(keys[-1], shapes[0])
  start = np.arange(rows) // length * length
  lengths = np.stack([start + length, start][-streams:])[None]
  own = start[:, None] == start

  def ours(q, k, v, own_k, own_v):
    return sets.set_attention(prefix_attention, own_k, own_v, length, q, k, v, jnp.asarray(lengths))

  def plain(q, k, v, own_k, own_v):
    k, v = (jnp.concatenate(x, axis=1) for x in ((k, own_k), (v, own_v)))
    k, v = (jnp.repeat(x, 4 // groups, axis=2) for x in (k, v))
    prefix = np.arange(rows) < lengths[0][:, :, None]
    noised = np.stack([np.zeros_like(own), own][-streams:])
    seen = np.concatenate([prefix, noised], axis=-1)
    scores = jnp.einsum('brnhd,bkhd->brhnk', q, k) / 8**0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum('brhnk,bkhd->brnhd', weights, v)

  found, pull = jax.vjp(ours, *arrays)
  expected, pull_expected = jax.vjp(plain, *arrays)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  for a, b in zip(pull(tangent), pull_expected(tangent), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)

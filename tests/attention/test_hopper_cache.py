"""Rotation and cache writes of a decoding step as one kernel, in the Mosaic GPU interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import on_device
import pytest
from attention import test_hopper

from armd_jax.attention import hopper_cache
from armd_jax.models import layers

BATCH, WIDTH, KEYS = 2, 3, 16


def expected(qkv, rotation, offset_B, k, v, query_streams):
  heads = qkv.shape[3] - 2 * k.shape[2]
  q, new_k, new_v = jnp.split(qkv, [heads, heads + k.shape[2]], axis=3)
  turn = lambda x: layers.rotate(x, rotation)
  cache = layers.KVCache(k, v)
  cache = cache.write(turn(new_k)[:, 0], new_v[:, 0], offset_B)
  return turn(q)[:, qkv.shape[1] - query_streams :], cache.k, cache.v


@pytest.mark.parametrize('shared', [True, False])  # by all sequences: offset and positions
@pytest.mark.parametrize(
  ('heads', 'groups', 'head_dim', 'streams', 'query_streams', 'rope'),
  [(4, 4, 64, 2, 2, True), (8, 4, 64, 2, 1, True), (2, 2, 128, 1, 1, False)],
)
def test_equals_rotation_and_two_writes(
  shared, heads, groups, head_dim, streams, query_streams, rope
):
  assert hopper_cache.unsupported(heads, groups, head_dim) is None
  key = jax.random.split(jax.random.key(0), 4)
  draw = lambda i, shape: jax.random.normal(key[i], shape, jnp.bfloat16)
  qkv = draw(0, (BATCH, streams, WIDTH, heads + 2 * groups, head_dim))
  k, v = (draw(i, (BATCH, KEYS, groups, head_dim)) for i in (1, 2))
  rows = 1 if shared else BATCH
  angle = 9 * jax.random.uniform(key[3], (rows, streams, WIDTH, head_dim // 2))
  rotation = (jnp.cos(angle), jnp.sin(angle)) if rope else None
  offset_B = jnp.array([5, 13])[:rows]

  wanted = expected(qkv, rotation, offset_B, k, v, query_streams)
  alike = lambda x: jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], heads, x.shape[-1]))
  for_heads = jax.tree.map(alike, rotation)
  with on_device.kernels('gpu', test_hopper._interpreting):
    append = jax.jit(hopper_cache.append, static_argnums=5)
    found = append(qkv, for_heads, offset_B, k, v, query_streams)
  for a, b in zip(found, wanted, strict=True):
    assert a.dtype == b.dtype == jnp.bfloat16
    # The same two products and one sum, which a compiler may round once or twice.
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=2**-7, atol=1e-6)


def test_odd_heads_are_refused():
  for sizes in ((3, 3, 64), (4, 1, 64), (1, 1, 128)):
    assert 'is no multiple of 128' in hopper_cache.unsupported(*sizes)

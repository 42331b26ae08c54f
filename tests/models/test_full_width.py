"""The published shapes are sound where training starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models, order


@pytest.mark.parametrize(
  ('layers', 'width', 'heads'),
  [(12, 768, 12), pytest.param(24, 1024, 16, marks=pytest.mark.drill)],
)
def test_finite_at_full_width(layers, width, heads):
  """Loss and every gradient leaf of the published shapes at initialisation (short sequences)."""
  config = tiny.model_config(
    length=32, num_layers=layers, embed_dim=width, num_heads=heads, mlp_dim=4 * width, remat='full',
    query_seed_chunk=8, position_dim=64,
  )  # fmt: skip
  model = models.build(config, 64)
  tokens = jax.random.randint(jax.random.key(0), (1, 32), 0, 64)
  o = order.masking_blocks(jax.random.split(jax.random.key(1), 1), 32, 4, 'linear')

  @jax.jit
  def run(key):
    params = model.init(key, tokens, o)['params']

    def loss(params):
      hidden = model.apply({'params': params}, tokens, o)
      return -jnp.mean(jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits')))

    value, gradient = jax.value_and_grad(loss)(params)
    return value, jax.tree.map(lambda g: jnp.isfinite(g).all() & (g != 0).any(), gradient)

  value, fine = run(jax.random.key(0))
  assert np.isfinite(value)
  assert all(jax.tree.leaves(fine)), fine

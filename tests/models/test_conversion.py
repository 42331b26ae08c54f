"""A warm start computes what the AR model does, exactly, and can leave it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models, order
from armd_jax.errors import UserError
from armd_jax.models import conversion
from armd_jax.objectives import armd

TOKENS = jax.random.randint(jax.random.key(5), (3, tiny.NUM_SLOTS), 0, tiny.VOCAB)


def left_to_right():
  one = order.left_to_right(tiny.NUM_SLOTS)
  return jax.tree.map(lambda x: jnp.broadcast_to(x, TOKENS.shape), one)


def measure(config):
  """`(params, order) -> nats per token, nll_BxN`."""
  model = models.build(config, tiny.VOCAB)
  weights_BxN = jnp.full(TOKENS.shape, 1 / TOKENS.size)
  return lambda params, order: armd.nll(model, params, TOKENS, order, weights_BxN, loss_chunk=16)


@pytest.mark.parametrize(
  ('style', 'layers', 'two_stream', 'scan_layers'), [('rope', 3, 2, True), ('gpt2', 2, 1, False)]
)
def test_step_0_is_the_ar_model_and_training_can_leave_it(style, layers, two_stream, scan_layers):
  config = tiny.model_config(
    family='ar', architecture=style, num_layers=layers, scan_layers=scan_layers
  )
  _, params = tiny.init(config)
  loss, nll_BxN = jax.jit(measure(config))(params, left_to_right())
  new_config, new_params = conversion.warm_start(config, tiny.VOCAB, params, two_stream)
  assert new_config.num_two_stream_layers == two_stream
  model = models.build(new_config, tiny.VOCAB)
  fresh = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
  assert jax.tree.map(jnp.shape, new_params) == jax.tree.map(jnp.shape, fresh)
  run = jax.jit(jax.value_and_grad(measure(new_config), has_aux=True))
  (new_loss, new_nll_BxN), _ = run(new_params, left_to_right())
  assert abs(new_loss - loss) < 1e-5
  np.testing.assert_allclose(new_nll_BxN, nll_BxN, atol=1e-5 * nll_BxN.max())
  uniform = order.uniform(jax.random.split(jax.random.key(0), 3), tiny.NUM_SLOTS)
  _, gradient = run(new_params, uniform)
  assert new_params['gain'] == 0 and abs(gradient['gain']) > 1e-3


def test_only_ar_models_are_warm():
  config = tiny.model_config()
  with pytest.raises(UserError, match="family 'armd'; a warm start needs one of 'ar'"):
    conversion.warm_start(config, tiny.VOCAB, tiny.init(config)[1], 2)

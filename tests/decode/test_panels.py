"""Panels are the matrices they were cut from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models
from armd_jax.decode import generate, panels
from armd_jax.decode import state as decode_state
from armd_jax.hardware import device
from armd_jax.order import left_to_right


@pytest.mark.parametrize('rows', [1, 2, 5])
@pytest.mark.parametrize('inner', [3, 32])
def test_product(rows, inner):
  x_RxI = jax.random.normal(jax.random.key(0), (rows, inner))
  matrix_IxF = jax.random.normal(jax.random.key(1), (inner, 48))
  cut = panels.cut({'up': {'kernel': matrix_IxF}})['up']['panels']
  assert cut.shape == (3, inner, panels.PANEL)
  np.testing.assert_allclose(panels.product(x_RxI, cut), x_RxI @ matrix_IxF, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('style', ['rope', 'gpt2'])
@pytest.mark.parametrize('num_heads', [4, 1])
def test_networks_read_every_form(style, num_heads):
  config = tiny.model_config(
    num_layers=2, style=style, embed_dim=32, mlp_dim=32, vocab_multiple=16, num_heads=num_heads
  )
  config, params = decode_state.decoding_form(config, tiny.init(config)[1])
  params = jax.tree.map(lambda x: x + 0.1, params)  # biases, too
  model, order = models.build(config, tiny.VOCAB), left_to_right(tiny.NUM_SLOTS)
  tokens_BxN = jnp.arange(2 * tiny.NUM_SLOTS).reshape(2, -1) % tiny.VOCAB

  @jax.jit
  def logits(params):
    with panels.reading():
      hidden_BxNxE = model.apply({'params': params}, tokens_BxN, order)
      return model.apply({'params': params}, hidden_BxNxE, method='logits')

  cut = panels.cut(params)
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(cut)}
  assert 'panels' in names and 'kernel' not in names
  assert 'panels' in cut['vocabulary'] and 'panels' not in panels.whole(cut)['vocabulary']
  expected = logits(params)
  for form in (cut, panels.whole(cut)):
    np.testing.assert_allclose(logits(form), expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_cut_for_few_rows_on_a_cpu_alone():
  config = tiny.model_config(num_layers=1, embed_dim=32)
  params = tiny.init(config)[1]
  is_cut = lambda params: any(
    path[-1].key == 'panels' for path, _ in jax.tree_util.tree_leaves_with_path(params)
  )
  assert is_cut(generate.prepare(config, params))
  assert panels.serve(config, panels.MOST_ROWS) and not panels.serve(config, panels.MOST_ROWS + 1)
  with device.compiling_for(device.HOPPER):
    assert not panels.serve(config, 1)

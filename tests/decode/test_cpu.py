"""Panels are the matrices they were cut from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from decode import test_cached

from armd_jax.decode import cpu, generate
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Form
from armd_jax.hardware import device
from armd_jax.order import left_to_right


@pytest.mark.parametrize('rows', [1, 2, 5])
@pytest.mark.parametrize('inner', [3, 32])
def test_product(rows, inner):
  x_RxI = jax.random.normal(jax.random.key(0), (rows, inner))
  matrix_IxF = jax.random.normal(jax.random.key(1), (inner, 48))
  cut = cpu.cut({'up': {'kernel': matrix_IxF}})['up']['panels']
  assert cut.shape == (3, inner, cpu.PANEL)
  np.testing.assert_allclose(cpu.product(x_RxI, cut), x_RxI @ matrix_IxF, rtol=1e-5, atol=1e-5)


LLAMA = dict(mlp='swiglu', biases='all', query_key_norm=True, tied_head=False, head_dim=16)


@pytest.mark.parametrize('style', [{}, {'architecture': 'gpt2'}, LLAMA], ids=str)
@pytest.mark.parametrize('num_heads', [4, 1])
def test_networks_read_every_form(style, num_heads):
  config = tiny.model_config(
    **style,
    num_layers=2,
    embed_dim=32,
    mlp_dim=32,
    vocab_multiple=16,
    num_heads=num_heads,
  )
  network = Network.of(*tiny.init(config), Form())
  params = test_cached.with_biases(network.params)
  model, order = network.model, left_to_right(tiny.NUM_SLOTS)
  tokens_BxN = jnp.arange(2 * tiny.NUM_SLOTS).reshape(2, -1) % tiny.VOCAB

  @jax.jit
  def logits(params):
    with cpu.CPU().reading():
      hidden_BxNxE = model.apply({'params': params}, tokens_BxN, order)
      return model.apply({'params': params}, hidden_BxNxE, method='logits')

  cut = cpu.cut(params)
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(cut)}
  assert 'panels' in names and 'kernel' not in names
  assert 'panels' in cut['vocabulary'] and 'panels' not in cpu.whole(cut)['vocabulary']
  expected = logits(params)
  for form in (cut, cpu.whole(cut)):
    np.testing.assert_allclose(logits(form), expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_cut_for_few_rows_on_a_cpu_alone():
  config = tiny.model_config(num_layers=1, embed_dim=32)
  model, params = tiny.init(config)
  is_cut = lambda network: any(
    path[-1].key == 'panels' for path, _ in jax.tree_util.tree_leaves_with_path(network.params)
  )
  network = generate.prepare(model, params)
  assert is_cut(network) and not is_cut(network.whole())
  assert is_cut(Network.of(model, network, cpu.CPU(arranges=True)))
  assert not is_cut(Network.of(model, network, cpu.CPU()))
  assert cpu.CPU().for_steps(config, cpu.MOST_ROWS).arranges
  assert not cpu.CPU().for_steps(config, cpu.MOST_ROWS + 1).arranges
  with device.compiling_for(device.HOPPER):
    assert not is_cut(generate.prepare(model, params))

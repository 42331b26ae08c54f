"""Norms layer by layer: they add up to the whole, scanned or not, and are logged if asked for."""

import jax
import numpy as np
import optax
import pytest
import tiny

from armd_jax import training
from armd_jax.parallel import sharding
from armd_jax.training import by_layer


def measured(**changes):
  config = tiny.train_config(model__num_layers=4, train__log_layers=True, **changes)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  text = np.random.default_rng(0).integers(0, tiny.VOCAB, (8, 16)).astype(np.int32)
  before = training.new_state(config, tiny.VOCAB, mesh)
  params = jax.device_get(before.params)
  state, metrics = step(before, text)
  return params, jax.device_get(state.params), jax.device_get(metrics)


@pytest.mark.parametrize('scanned', [True, False])
def test_norms_of_layers_add_up_to_the_whole(scanned):
  before, after, metrics = measured(model__scan_layers=scanned)
  rows = dict(by_layer.rows(metrics['layers']))
  gradients = {name: x for name, x in rows.items() if name.startswith('gradient_norm/')}
  squares = np.sum(np.square(list(gradients.values())))
  np.testing.assert_allclose(np.sqrt(squares), metrics['gradient_norm'], rtol=1e-5)
  parts = {'causal/0', 'causal/1', 'two_stream/0', 'last_two_stream', 'vocabulary', 'final_norm'}
  assert {name.partition('/')[2] for name in gradients} == parts
  assert all(value > 0 for value in rows.values())
  moved = optax.tree.sub(after, before)['vocabulary']
  ratio = optax.tree.norm(moved) / optax.tree.norm(before['vocabulary'])
  np.testing.assert_allclose(rows['update_ratio/vocabulary'], ratio, rtol=1e-3)


@pytest.mark.parametrize('tied', [True, False])
def test_the_scale_of_logits_is_that_of_rows_in_all_directions(tied):
  """Whose logits the network itself computes; padding of the vocabulary has none."""
  config = tiny.model_config(tied_head=tied, vocab_multiple=64)
  model, params = tiny.init(config)
  rng = np.random.default_rng(0)
  params['final_norm']['scale'] = rng.uniform(0.5, 5, config.embed_dim).astype(np.float32)
  normed = rng.normal(size=(20_000, config.embed_dim)).astype(np.float32)
  hidden = normed * params['final_norm']['scale']
  logits = model.apply({'params': params}, hidden, method='logits')[:, : tiny.VOCAB]
  expected = np.sqrt(np.mean(np.square(logits)))
  np.testing.assert_allclose(by_layer.logit_scale(params, tiny.VOCAB), expected, rtol=0.01)


def test_the_scale_of_logits_is_logged():
  """Before the step, of the whole network, whatever part of it is trained."""
  for changes in ({}, {'optimizer__lora_rank': 2}):
    before, _, metrics = measured(**changes)
    rows = dict(by_layer.rows(metrics['layers']))
    scale = by_layer.logit_scale(before, tiny.VOCAB)
    np.testing.assert_allclose(rows['logit_scale'], scale, rtol=1e-6)


def test_only_who_asks_gets_them():
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  text = jax.ShapeDtypeStruct((8, 16), np.int32)
  assert 'layers' not in jax.eval_shape(step, state, text)[1]

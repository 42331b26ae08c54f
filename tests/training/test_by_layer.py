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


def test_only_who_asks_gets_them():
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  step = training.train_step(config, tiny.VOCAB, mesh)
  state = training.abstract_state(config, tiny.VOCAB, mesh)
  text = jax.ShapeDtypeStruct((8, 16), np.int32)
  assert 'layers' not in jax.eval_shape(step, state, text)[1]

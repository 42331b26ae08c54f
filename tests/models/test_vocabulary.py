"""The special vector is an input only, and learned positions are added to every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import order
from armd_jax.models.vocabulary import SPECIAL, Vocabulary


def made(**changes):
  config = tiny.model_config(**changes)
  vocabulary = Vocabulary(config, tiny.VOCAB)
  ids, position = jnp.array([[SPECIAL, 0, 6]]), jnp.array([[0, 3, 1]])
  params = vocabulary.init(jax.random.key(0), ids, position, method='embed')['params']
  call = lambda method, *args: vocabulary.apply({'params': params}, *args, method=method)
  return params, call, ids, position


def test_the_special_vector_is_looked_up_and_never_predicted():
  params, call, ids, position = made(vocab_multiple=8)
  rows = call('embed', ids, position)[0]
  np.testing.assert_array_equal(rows[0], params['bos'])
  np.testing.assert_array_equal(rows[1:], params['embedding'][jnp.array([0, 6])])
  logits = call('logits', params['bos'][None])[0]
  assert logits.shape == (8,) and np.isneginf(logits[tiny.VOCAB :]).all()
  np.testing.assert_allclose(
    logits[: tiny.VOCAB], params['embedding'][: tiny.VOCAB] @ params['bos'], rtol=1e-5
  )


@pytest.mark.parametrize('style', ['rope', 'gpt2'])
def test_positions_are_learned_in_the_style_of_gpt2(style):
  params, call, ids, position = made(architecture=style)
  without = jnp.where(
    (ids == SPECIAL)[..., None], params['bos'], params['embedding'][jnp.maximum(ids, 0)]
  )
  added = call('embed', ids, position) - without
  if style == 'rope':
    assert 'positions' not in params and (added == 0).all()
  else:
    np.testing.assert_allclose(added, params['positions'][position], atol=1e-7)
    np.testing.assert_array_equal(call('at', position), params['positions'][position])


def test_logits_of_bfloat16_rows_are_added_up_in_float32():
  params, call, _, _ = made(dtype='bfloat16')
  rows = jnp.ones((1, 32), jnp.bfloat16)
  logits = call('logits', rows)
  assert logits.dtype == jnp.float32
  exact = np.sum(np.asarray(params['embedding'].astype(jnp.bfloat16), np.float64), axis=1)
  np.testing.assert_allclose(logits[0], exact, atol=1e-6)


@pytest.mark.parametrize(
  'changes',
  [
    {'position_rows': 'learned'},
    {'architecture': 'gpt2', 'scan_layers': False},
    {'family': 'ar', 'architecture': 'gpt2'},
    {'family': 'mdlm'},
  ],
)
def test_networks_take_numpy_parameters_outside_of_jit(changes):
  model, params = tiny.init(tiny.model_config(num_layers=2, **changes))
  along = [order.left_to_right(16)] if model.config.orders != 'none' else []
  tokens = np.arange(16, dtype=np.int32)[None] % tiny.VOCAB
  logits = lambda params: model.apply(
    {'params': params}, model.apply({'params': params}, tokens, *along), method='logits'
  )
  found = logits(jax.tree.map(np.asarray, params))
  np.testing.assert_allclose(found, jax.jit(logits)(params), rtol=1e-4, atol=1e-5)

"""What the network must and must not see, and what it is a special case of."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models, order
from armd_jax.hardware import device
from armd_jax.models.layers import unstack_layers
from armd_jax.parallel.axes import path_name


@functools.partial(jax.jit, static_argnums=(0, 1))
def logits(config, vocab_size, params, tokens_BxN, generation_order, first_B=None):
  model = models.build(config, vocab_size)
  hidden = model.apply({'params': params}, tokens_BxN, generation_order, first_B)
  return model.apply({'params': params}, hidden, method='logits')


def random_tokens(batch=3, num_slots=tiny.NUM_SLOTS, vocab=tiny.VOCAB):
  return jax.random.randint(jax.random.key(7), (batch, num_slots), 0, vocab)


def as_ar(params, config):
  """The AR model's parameters out of an ARMD's: the same layers, in one stack."""
  unrolled = unstack_layers(params)
  layers = [layer for _, layer in sorted(unrolled.get('two_stream', {}).items())]
  layers += [unrolled['last_two_stream']] if config.num_two_stream_layers else []
  layers += [layer for _, layer in sorted(unrolled.get('causal', {}).items())]
  return {
    'vocabulary': params['vocabulary'],
    'final_norm': params['final_norm'],
    'stack': {f'layer_{i}': layer for i, layer in enumerate(layers)},
  }


@pytest.mark.parametrize(
  ('changes', 'own'),
  [
    ({}, []),
    ({'query_seed': 'shift'}, []),
    ({'query_seed': 'mask_embedding'}, ['mask']),
    ({'query_seed': 'neighbours'}, ['neighbours', 'unknown']),
    ({'query_seed': 'warm'}, ['gain', 'neighbours', 'unknown']),
    ({'position_rows': 'learned'}, ['pe']),
  ],
  ids=str,
)
def test_parameters_keep_the_names_that_checkpoints_have(changes, own):
  config = tiny.model_config(num_layers=3, num_two_stream_layers=2, **changes)
  model = models.build(config, tiny.VOCAB)
  params = jax.eval_shape(functools.partial(models.init, model), jax.random.key(0))
  block = {
    'attention_norm/scale', 'query/kernel', 'key_value/kernel', 'out/kernel', 'mlp_norm/scale',
    'up/kernel', 'down/kernel',
  }  # fmt: skip
  places = 'two_stream/layers', 'last_two_stream', 'causal/layers'
  expected = {f'{place}/{name}' for place in places for name in block}
  expected |= {'vocabulary/embedding', 'vocabulary/bos', 'final_norm/scale', *own}
  assert {path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)} == expected


@pytest.mark.parametrize('num_two_stream', [0, 1, 2, 4])
def test_ar_is_a_special_case(num_two_stream):
  config = tiny.model_config(query_seed='shift', num_two_stream_layers=num_two_stream)
  _, params = tiny.init(config)
  ar_config = tiny.model_config(family='ar', scan_layers=False)
  left_to_right, tokens = order.left_to_right(tiny.NUM_SLOTS), random_tokens()
  ours = logits(config, tiny.VOCAB, params, tokens, left_to_right)
  ar = logits(ar_config, tiny.VOCAB, as_ar(params, config), tokens, left_to_right)
  np.testing.assert_allclose(ours, ar, atol=1e-5 * max(1, np.abs(ar).max()))


@pytest.mark.parametrize('name', ['left_to_right', 'shuffled', 'uniform', 'blocks', 'strided2'])
def test_probabilities_of_all_texts_sum_to_one(name):
  """Vocabulary 3, N = 4: all 81 texts, under one fixed order of every kind."""
  config = tiny.model_config(length=4, query_seed_chunk=2)
  _, params = tiny.init(config, vocab_size=3, scale=6.0)
  one = jax.tree.map(lambda x: x[:1], tiny.orders(num_slots=4, seed=3)[name])
  texts = jnp.array(list(itertools.product(range(3), repeat=4)))
  tokens = order.to_generation(texts, one)
  log_p = jax.nn.log_softmax(logits(config, 3, params, tokens, one))
  p = jnp.exp(jnp.take_along_axis(log_p, tokens[..., None], axis=-1).sum(axis=(1, 2)))
  assert abs(float(p.sum()) - 1) < 1e-5
  assert p.max() > 5 * p.min()  # far from uniform, or the test would say nothing


@pytest.mark.parametrize(
  ('name', 'changes'),
  [(name, {}) for name in sorted(tiny.orders())]
  + [('blocks', {'query_seed': 'shift'}), ('left_to_right', {'query_seed': 'shift'})]
  + [('blocks', {'query_seed': 'warm', 'architecture': 'gpt2'})]
  + [('blocks', {'num_two_stream_layers': 4}), ('blocks', {'num_two_stream_layers': 0})],
  ids=str,
)
def test_no_leak(name, changes):
  """Slot n's log-probability has exactly zero gradient with respect to the input rows of its own
  and later blocks, and not to all earlier ones. Aggregation chunks hold 5 slots, blocks 16."""
  config = dataclasses.replace(tiny.model_config(**changes), scan_layers=False)
  o = jax.tree.map(lambda x: x[:1], tiny.orders()[name])
  gradient_NxN = np.asarray(influence(config, o))
  block_N = np.asarray(o.block_BxN[0])
  is_earlier_NxN = block_N[None, :] < block_N[:, None]
  is_earlier_NxN[:, -1] = False  # the last slot has no content row
  assert (gradient_NxN[~is_earlier_NxN] == 0).all()
  # Every slot sees all of its past; it is not only the neighbours that count.
  assert (gradient_NxN[is_earlier_NxN] > 0).sum() >= 0.99 * is_earlier_NxN.sum()


@functools.partial(jax.jit, static_argnums=0)
def influence(config, o):
  """|d log p(slot n) / d input row of slot m|, summed over features, [N, N]."""
  _, params = tiny.init(dataclasses.replace(config, scan_layers=True))
  params = unstack_layers(params)
  # One embedding row per slot, so that rows are told apart; targets are read from a copy.
  num_slots = tiny.NUM_SLOTS
  rows = 0.1 * jax.random.normal(jax.random.key(2), (num_slots, config.embed_dim))
  tokens = jnp.arange(num_slots)[None]

  def log_p(rows):
    inputs = params | {'vocabulary': params['vocabulary'] | {'embedding': rows}}
    model = models.build(config, num_slots)
    hidden = model.apply({'params': inputs}, tokens, o)[0]
    out = jax.nn.log_softmax(hidden @ jax.lax.stop_gradient(rows).T)
    return jnp.diagonal(out)

  return jnp.abs(jax.jacobian(log_p)(rows)).sum(-1)


def test_first_slot_knows_its_position():
  config = tiny.model_config()
  _, params = tiny.init(config)
  swap = jnp.arange(1, 17).at[jnp.array([0, 9])].set(jnp.array([10, 1]))[None]
  plain = order.left_to_right(16)
  moved = plain.replace(position_BxN=swap)
  tokens = random_tokens(1)
  a, b = (logits(config, tiny.VOCAB, params, tokens, o)[0, 0] for o in (plain, moved))
  assert np.abs(a - b).max() > 1e-4


@pytest.mark.parametrize('name', ['blocks', 'strided4', 'one_block'])
def test_permuting_a_block_permutes_its_logits_and_nothing_else(name):
  config = tiny.model_config()
  _, params = tiny.init(config)
  o = jax.tree.map(lambda x: x[:1], tiny.orders()[name])
  block_N = np.asarray(o.block_BxN[0])
  rng = np.random.RandomState(0)
  shuffle_N = np.lexsort((rng.rand(16), block_N))
  assert (shuffle_N != np.arange(16)).any()
  tokens = random_tokens(1)
  out = logits(config, tiny.VOCAB, params, tokens, o)
  shuffled_order = o.replace(position_BxN=o.position_BxN[:, shuffle_N])
  shuffled = logits(config, tiny.VOCAB, params, tokens[:, shuffle_N], shuffled_order)
  np.testing.assert_allclose(shuffled, out[:, shuffle_N], atol=2e-5 * np.abs(out).max())


def test_forms_of_the_same_network_agree(optimized):
  """Aggregation chunked or quadratic, layers scanned or unrolled, recomputed or kept: loss and
  gradients are the same."""

  def loss_and_gradient(config, params):
    def loss(params):
      out = logits(config, tiny.VOCAB, params, random_tokens(), tiny.orders()['blocks'])
      return jnp.mean(jnp.square(jax.nn.log_softmax(out)))

    return jax.jit(jax.value_and_grad(loss))(params)

  config = tiny.model_config()
  _, params = tiny.init(config)
  loss, gradient = loss_and_gradient(config, params)
  for changes in ({'query_seed_chunk': 0}, {'scan_layers': False}, {'remat': 'full'}):
    other = dataclasses.replace(config, **changes)
    layers = (lambda tree: tree) if other.scan_layers else unstack_layers
    other_loss, other_gradient = loss_and_gradient(other, layers(params))
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5, err_msg=str(changes))
    jax.tree.map(
      lambda a, b, says=str(changes): np.testing.assert_allclose(
        a, b, atol=1e-5 * np.abs(a).max(), err_msg=says
      ),
      layers(gradient),
      other_gradient,
    )


def test_dropout_is_on_exactly_with_a_key():
  config = tiny.model_config(dropout=0.5)
  model, params = tiny.init(config)
  tokens, o = random_tokens(), tiny.orders()['blocks']

  @jax.jit
  def apply(rngs):
    return model.apply({'params': params}, tokens, o, rngs=rngs)

  off, on, on_other = apply(None), *(apply({'dropout': jax.random.key(i)}) for i in (0, 1))
  assert not np.allclose(off, on) and not np.allclose(on, on_other)
  np.testing.assert_array_equal(on, apply({'dropout': jax.random.key(0)}))


def test_bfloat16_stays_near_float32():
  config = tiny.model_config()
  _, params = tiny.init(config)
  exact, rough = (
    logits(
      dataclasses.replace(config, dtype=d),
      tiny.VOCAB,
      params,
      random_tokens(),
      tiny.orders()['blocks'],
    )
    for d in ('float32', 'bfloat16')
  )
  assert rough.dtype == jnp.float32
  error = np.abs(exact - rough).max() / np.abs(exact).max()
  assert 1e-4 < error < 0.1  # rounded, or nothing was computed in bfloat16, but close


def test_padded_vocabulary_has_no_probability():
  config = tiny.model_config(vocab_multiple=16)
  _, params = tiny.init(config)
  assert params['vocabulary']['embedding'].shape == (16, 32)
  out = logits(config, tiny.VOCAB, params, random_tokens(), tiny.orders()['blocks'])
  assert out.shape[-1] == 16 and np.isneginf(out[..., tiny.VOCAB :]).all()
  assert np.isfinite(out[..., : tiny.VOCAB]).all()


@pytest.mark.parametrize(
  'changes',
  [
    {'query_seed': 'mask_embedding'},
    {'query_seed_norm': 'rms'},
    {'position_rows': 'learned'},
    {'query_seed': 'neighbours'},
    {'position_dim': 4},
    {'rope_theta': 10.0},
    {'rope_scaling': {'kind': 'linear', 'factor': 2.0}},
    {'norm_epsilon': 0.1},
    {'query_key_norm': True},
    {'head_dim': 16},
    {'mlp': 'swiglu'},
    {'tied_head': False},
    {'content_mask': 'row'},
  ],
  ids=str,
)
def test_every_field_matters(changes):
  plain, changed = tiny.model_config(), tiny.model_config(**changes)
  outs = []
  for config in (plain, changed):
    _, params = tiny.init(config)
    outs.append(logits(config, tiny.VOCAB, params, random_tokens(), tiny.orders()['strided2']))
  assert not np.allclose(*outs, atol=1e-4)


@pytest.mark.parametrize(
  ('chip', 'remat', 'is_unrolled'),
  [(device.HOPPER, 'none', True), (device.HOPPER, 'dots', True), (device.HOPPER, 'full', False),
   ('v5e', 'dots', False)],
)  # fmt: skip
def test_layers_are_scanned_without_a_loop_on_gpus(chip, remat, is_unrolled):
  """Where the backward pass finds much of a layer; the parameters are the same."""
  config = tiny.model_config(num_layers=5, num_two_stream_layers=3, remat=remat)
  model, params = tiny.init(config)
  left_to_right = order.left_to_right(tiny.NUM_SLOTS)
  with device.compiling_for(chip):
    apply = lambda params: model.apply({'params': params}, random_tokens(), left_to_right)
    jaxpr = jax.make_jaxpr(apply)(params)
    again = jax.eval_shape(lambda: models.init(model, jax.random.key(0)))
  scans = [eqn.params for eqn in jaxpr.eqns if eqn.primitive.name == 'scan']
  unrolls = [scan['unroll'] for scan in scans if scan['length'] == 2]
  assert unrolls == [2 if is_unrolled else 1] * 2
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, again)

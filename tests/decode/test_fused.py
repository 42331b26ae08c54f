"""Layers in few launches compute what they compute as they are written elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import on_device
import pytest
import tiny
from attention import test_hopper, test_hopper_cache
from decode import test_cached

from armd_jax import order
from armd_jax.attention import hopper, hopper_cache, reference
from armd_jax.decode import fused, generate, step
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Form
from armd_jax.hardware import device


def unrolled(config):
  network = Network.of(*tiny.init(config, scale=2), Form())
  return network.model, test_cached.with_biases(network.params)


@pytest.mark.parametrize('changes', [{}, {'architecture': 'gpt2'}, {'num_kv_heads': 2}], ids=str)
def test_parameters_are_joined_and_taken_apart(changes):
  _, params = unrolled(tiny.model_config(**changes))
  joined = fused.fuse(params)
  assert jax.tree.structure(joined) != jax.tree.structure(params)
  assert jax.tree.structure(fused.fuse(joined)) == jax.tree.structure(joined)
  jax.tree.map(np.testing.assert_array_equal, fused.split(joined), params)


@pytest.fixture
def plain_kernels(monkeypatch):
  """What the kernels compute, in XLA."""

  def append(qkv, rotation, offset_B, k, v, query_streams):
    one_head = jax.tree.map(lambda x: x[..., 0, :], rotation)
    return test_hopper_cache.expected(qkv, one_head, offset_B, k, v, query_streams)

  def attend(q, k, v, reach):
    lengths = jnp.broadcast_to(reach.most[:, :1, None], (len(reach.most), *q.shape[1:3]))
    return reference.prefix_attention(q, k, v, lengths)

  monkeypatch.setattr(hopper_cache, 'append', append)
  monkeypatch.setattr(hopper, 'attend', attend)


def assert_steps_equal_the_full_pass(config, task, tokens_BxN):
  model, params = unrolled(config)
  form = fused.GPU(arranges=True)
  with device.compiling_for(device.HOPPER):
    found = test_cached.teacher_forced(model.config, params, task, tokens_BxN, form)
    expected = test_cached.full(model.config, params, task, tokens_BxN)
  test_cached.assert_equal_on_generated(found, expected, task)


@pytest.mark.parametrize('name', ['strided4', 'blocks', 'uniform'])
def test_every_kind_of_order(plain_kernels, name):
  task = test_cached.task_for(tiny.orders()[name], 3)
  assert_steps_equal_the_full_pass(tiny.model_config(), task, test_cached.random_tokens(3))


@pytest.mark.parametrize(
  'changes',
  [
    {'architecture': 'gpt2'},
    {'num_kv_heads': 2},
    {'mlp': 'swiglu', 'biases': 'query_key_value', 'head_dim': 16, 'tied_head': False},
    {'num_two_stream_layers': 0},
    {'num_two_stream_layers': 4},
  ],
  ids=str,
)
def test_every_kind_of_layer(plain_kernels, changes):
  task = test_cached.task_for(tiny.orders()['strided4'], 3)
  assert_steps_equal_the_full_pass(tiny.model_config(**changes), task, test_cached.random_tokens(3))


def test_ar(plain_kernels):
  task = test_cached.task_for(order.left_to_right(tiny.NUM_SLOTS), 3)
  config = tiny.model_config(family='ar')
  assert_steps_equal_the_full_pass(config, task, test_cached.random_tokens(3))


def test_ragged_batch(plain_kernels):
  task = generate.task_of(*test_cached.ragged_batch(), 2)
  assert_steps_equal_the_full_pass(tiny.model_config(), task, test_cached.random_tokens(5))


def test_few_rows_are_padded_for_few_sequences_alone():
  rows = fused.GPU(arranges=True).step_rows
  assert [rows(1, width) for width in (1, 8, 9)] == [(8, 8), (8, 8), (16, 16)]
  assert [rows(batch, 4) for batch in (8, 9)] == [(8, 4), (4, 4)]
  assert fused.GPU().step_rows(1, 1) == (1, 1)


H100 = dict(
  length=64, num_layers=2, embed_dim=256, num_heads=4, mlp_dim=512, dtype='bfloat16',
  position_dim=8, vocab_multiple=128,
)  # fmt: skip


def test_served_are_layers_in_bfloat16_on_an_h100():
  config = tiny.model_config(**H100)
  assert not fused.serve(config)
  with device.compiling_for('v5e'):
    assert not fused.serve(config)
  with device.compiling_for(device.HOPPER):
    assert fused.serve(config)
    others = {'dtype': 'float32'}, {'attention': 'reference'}, {'num_heads': 8}, {'num_kv_heads': 1}
    for changes in others:
      assert not fused.serve(tiny.model_config(**H100 | changes)), changes


def test_the_kernels_give_the_logits_of_layers_as_written():
  config = tiny.model_config(**H100)
  model, params = tiny.init(config)
  task = generate.task_of(np.zeros((2, 64), bool), np.full(2, 64), 4)
  tokens_BxN = np.asarray(jax.random.randint(jax.random.key(1), (2, 64), 0, tiny.VOCAB))

  def steps(model, params, form):
    network = Network.of(model, params, form)
    state = step.start(network, generate.plan_of(model, task), task, tokens_BxN)
    predict = jax.jit(step.predict, static_argnames='width')
    found = []
    for width in (1, 1, 1, 1, 4, 4):
      logits, width_B, state = predict(network, task, state, width=width)
      slots = state.filled_B[0] + np.arange(width)
      state = step.fill(state, tokens_BxN[:, slots], width_B)
      found.append(logits[..., : tiny.VOCAB])
    return found

  with on_device.kernels('gpu', test_hopper._interpreting):
    found = steps(model, params, fused.GPU(arranges=True))
  plain = dataclasses.replace(config, attention='reference', dtype='float32')
  params = Network.of(model, params, Form()).params
  params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  expected = steps(model.clone(config=plain), params, Form())
  for a, b in zip(found, expected, strict=True):
    assert np.abs(a - b).max() < 0.05 * np.abs(b).max()

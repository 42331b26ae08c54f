"""Step-by-step cached decoding computes the logits of the full forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models, order
from armd_jax.decode import step
from armd_jax.decode.generate import device_form, plan_of, task_of
from armd_jax.decode.network import Network
from armd_jax.decode.state import Task
from armd_jax.models.vocabulary import BOS

start = jax.jit(step.start, static_argnames='plan')
predict = jax.jit(step.predict, static_argnames='width')


def teacher_forced(config, params, task, tokens_BxN, form=None):
  """Logits of all generated slots, from cached steps that are fed the true tokens."""
  model = models.build(config, tiny.VOCAB)
  network = Network.of(model, params, form or device_form())
  plan = plan_of(model, task)
  width = plan.width
  state = start(network, plan, task, tokens_BxN)
  batch, num_slots = tokens_BxN.shape
  logits_BxNxV = np.full((batch, num_slots, tiny.VOCAB), np.nan, np.float32)
  padded_BxM = np.pad(tokens_BxN, ((0, 0), (0, width)))
  while np.any(step.next_width(task, state) > 0):
    filled_B = np.broadcast_to(state.filled_B, batch)
    logits_BxWxV, width_B, state = predict(network, task, state, width=width)
    for b, count in enumerate(np.broadcast_to(width_B, batch)):
      logits_BxNxV[b, filled_B[b] : filled_B[b] + count] = logits_BxWxV[b, :count]
    slots_BxW = filled_B[:, None] + np.arange(width)
    state = step.fill(state, np.take_along_axis(padded_BxM, slots_BxW, axis=1), width_B)
  return logits_BxNxV


@functools.partial(jax.jit, static_argnums=0)
def full(config, params, task, tokens_BxN):
  model = models.build(config, tiny.VOCAB)
  hidden = model.apply({'params': params}, tokens_BxN, task.order, task.first_B)
  return model.apply({'params': params}, hidden, method='logits')


def assert_equal_on_generated(cached, expected, task):
  assert cached.shape == expected.shape
  slot_N = np.arange(cached.shape[1])
  generated_BxN = np.broadcast_to(
    (slot_N >= task.num_given_B[:, None]) & (slot_N < task.length_B[:, None]), cached.shape[:2]
  )
  assert not np.isnan(cached[generated_BxN]).any()
  tolerance = 1e-5 * max(1, np.abs(expected[generated_BxN]).max())
  np.testing.assert_allclose(cached[generated_BxN], expected[generated_BxN], 0, tolerance)


def task_for(generation_order, batch, num_given=0, first_token=BOS):
  return Task.of(
    generation_order,
    num_given_B=jnp.full(len(generation_order.block_BxN), num_given),
    length_B=jnp.full(len(generation_order.block_BxN), generation_order.num_slots),
    first_B=jnp.full(batch, first_token),
  )


def with_biases(params):
  """Not 0, as they are at initialisation."""
  shift = lambda path, x: x + 0.1 if path[-1].key == 'bias' else x
  return jax.tree_util.tree_map_with_path(shift, params)


def random_tokens(batch, seed=5):
  return np.asarray(
    jax.random.randint(jax.random.key(seed), (batch, tiny.NUM_SLOTS), 0, tiny.VOCAB)
  )


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_every_order(name):
  config = tiny.model_config()
  _, params = tiny.init(config)
  task, tokens = task_for(tiny.orders()[name], 3), random_tokens(3)
  assert_equal_on_generated(
    teacher_forced(config, params, task, tokens), full(config, params, task, tokens), task
  )


@pytest.mark.parametrize(
  'changes',
  [
    {'query_seed': 'shift'},
    {'query_seed': 'warm'},
    {'query_seed': 'neighbours'},
    {'query_seed': 'neighbours', 'query_seed_radius': 1, 'num_two_stream_layers': 1},
    {'query_seed': 'mask_embedding'},
    {'query_seed_norm': 'rms'},
    {'position_rows': 'learned'},
    {'num_two_stream_layers': 0},
    {'num_two_stream_layers': 4},
    {'num_kv_heads': 2},
    {'mlp': 'swiglu', 'biases': 'attention', 'query_key_norm': True, 'tied_head': False},
    {
      'head_dim': 12,
      'num_kv_heads': 1,
      'rope_scaling': {'kind': 'llama3', 'factor': 8.0, 'original_length': 16},
    },
  ],
  ids=str,
)
def test_every_variant(changes):
  config = tiny.model_config(**changes)
  _, params = tiny.init(config)
  task, tokens = task_for(tiny.orders()['strided4'], 3), random_tokens(3)
  assert_equal_on_generated(
    teacher_forced(config, params, task, tokens), full(config, params, task, tokens), task
  )


def test_first_token_in_place_of_bos():
  config = tiny.model_config(first_token='given', length=tiny.NUM_SLOTS + 1)
  _, params = tiny.init(config)
  tokens = random_tokens(2)
  task = task_for(tiny.orders()['strided2'], 2, first_token=3)
  expected = full(config, params, task, tokens)
  assert_equal_on_generated(teacher_forced(config, params, task, tokens), expected, task)
  other = full(config, params, task_for(tiny.orders()['strided2'], 2, first_token=4), tokens)
  assert not np.allclose(expected, other)


def test_ar_model():
  config = tiny.model_config(family='ar')
  _, params = tiny.init(config)
  task, tokens = task_for(order.left_to_right(tiny.NUM_SLOTS), 3), random_tokens(3)
  assert_equal_on_generated(
    teacher_forced(config, params, task, tokens), full(config, params, task, tokens), task
  )


def ragged_batch():
  """Prompts of different lengths (0 too), a text with gaps, and a short padded one."""
  given = np.zeros((5, tiny.NUM_SLOTS), bool)
  given[1, :3] = True
  given[2, :7] = True
  given[3, [0, 1, 5, 9, 10, 15]] = True
  given[4, 2] = True
  return given, np.array([16, 16, 16, 16, 9])


@pytest.mark.parametrize('streams', [1, 3])
def test_prompts_and_infilling_in_one_batch(streams):
  config = tiny.model_config()
  _, params = tiny.init(config)
  given, length = ragged_batch()
  task, text = task_of(given, length, streams), random_tokens(5)
  tokens = np.asarray(order.to_generation(jnp.asarray(text), task.order))
  cached = teacher_forced(config, params, task, tokens)
  assert_equal_on_generated(cached, full(config, params, task, tokens), task)
  for b in (2, 3, 4):
    alone = task_of(given[b : b + 1], length[b : b + 1], streams)
    row = teacher_forced(config, params, alone, tokens[b : b + 1])
    np.testing.assert_allclose(row, cached[b : b + 1], atol=1e-5 * max(1, np.nanmax(np.abs(row))))

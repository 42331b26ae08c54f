"""Kinds of seeds: their tables, what they may depend on, and how they are related."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax.config import ModelConfig
from armd_jax.models.query_seed import SEEDS
from armd_jax.models.rows import full_rows
from armd_jax.models.vocabulary import Vocabulary


def choices(name):
  (field,) = (field for field in dataclasses.fields(ModelConfig) if field.name == name)
  return field.metadata['one_of']


def made(kind, **changes):
  """A seed as a function of params, content rows and `Rows`, and its parameters."""
  config = tiny.model_config(query_seed=kind, **changes)
  vocabulary = Vocabulary(config, tiny.VOCAB)
  ids = jnp.zeros((1, 1), jnp.int32)
  words = vocabulary.init(jax.random.key(0), ids, ids, method='embed')
  seed = SEEDS[kind](config)
  rows, x = full_rows(tiny.orders()['blocks']), content()
  bound = vocabulary.bind(words)
  params = seed.init(jax.random.key(1), x, rows, None, bound)
  return lambda params, x, rows: seed.apply(params, x, rows, None, bound), params


def content():
  return jax.random.normal(jax.random.key(2), (3, tiny.NUM_SLOTS, 32))


def test_every_choice_of_the_config_has_an_entry():
  assert set(SEEDS) == set(choices('query_seed'))


@pytest.mark.parametrize('kind', sorted(SEEDS))
def test_a_seed_depends_on_earlier_blocks_alone(kind):
  call, params = made(kind)
  rows, x = full_rows(tiny.orders()['blocks']), content()
  params = jax.tree.map(lambda p: p + 0.5, params)  # the gain starts at 0
  total = lambda x, n: jnp.sum(call(params, x, rows).g_BxWxE[:, n] ** 2)
  gradient_NxBxW = jax.vmap(lambda n: jnp.abs(jax.grad(total)(x, n)).sum(-1))(
    jnp.arange(tiny.NUM_SLOTS)
  )
  sees_BxNxW = np.arange(tiny.NUM_SLOTS) < np.asarray(rows.query_length_BxW)[..., None]
  gradient_BxNxW = np.asarray(gradient_NxBxW).swapaxes(0, 1)
  assert (gradient_BxNxW[~sees_BxNxW] == 0).all()
  if kind == 'prefix':
    assert (gradient_BxNxW[sees_BxNxW] > 0).mean() > 0.95
  elif kind in ('neighbours', 'warm'):
    distance_BxNxW = rows.query_position_BxW[..., None] - rows.content_position_BxW[:, None]
    is_near_BxNxW = np.abs(distance_BxNxW) <= tiny.model_config().query_seed_radius
    left_BxNxW = sees_BxNxW & (distance_BxNxW == 1)
    is_first_BxNxW = ~left_BxNxW.any(-1, keepdims=True) & (np.arange(tiny.NUM_SLOTS) == 0)
    expected_BxNxW = sees_BxNxW & (is_near_BxNxW | (is_first_BxNxW & (kind == 'warm')))
    np.testing.assert_array_equal(gradient_BxNxW > 0, expected_BxNxW)
  else:
    assert (gradient_BxNxW > 0).sum() == {'shift': 3 * tiny.NUM_SLOTS, 'mask_embedding': 0}[kind]


def test_shift_copies_the_latest_row_of_earlier_blocks_and_its_position():
  call, params = made('shift')
  rows, x = full_rows(tiny.orders()['blocks']), content()
  seed = call(params, x, rows)
  for b in range(3):
    latest_N = np.asarray(rows.query_length_BxW[b]) - 1
    np.testing.assert_array_equal(seed.g_BxWxE[b], x[b, latest_N])
    np.testing.assert_array_equal(seed.position_BxW[b], rows.content_position_BxW[b, latest_N])


@pytest.mark.parametrize('style', ['rope', 'gpt2'])
def test_warm_goes_from_shift_to_the_positions_of_the_slots(style):
  warm, params = made('warm', architecture=style)
  shift, _ = made('shift', architecture=style)
  rows, x = full_rows(tiny.orders()['left_to_right']), content()
  start, ar = warm(params, x, rows), shift({}, x, rows)
  np.testing.assert_array_equal(start.g_BxWxE, ar.g_BxWxE)
  np.testing.assert_array_equal(start.position_BxW, ar.position_BxW)
  params['params']['gain'] = jnp.ones(())
  whole = warm(params, x, rows)
  np.testing.assert_array_equal(whole.position_BxW, rows.query_position_BxW)
  assert np.abs(whole.g_BxWxE - ar.g_BxWxE).max() > 0.01


@pytest.mark.parametrize('style', ['rope', 'gpt2'])
def test_warm_copies_the_token_on_the_left_and_bos_where_it_is_not_known(style):
  """Whatever other streams hold: the latest row of an order is one of theirs."""
  warm, params = made('warm', architecture=style)
  order, x = tiny.orders()['blocks'], content()
  rows = full_rows(order)
  start = warm(params, x, rows)
  position, block = np.asarray(order.position_BxN), np.asarray(order.block_BxN)
  num_copied = 0
  for b, n in np.ndindex(position.shape):
    left = [m for m in range(tiny.NUM_SLOTS) if position[b, m] == position[b, n] - 1]
    is_known = position[b, n] == 1 or block[b, left[0]] < block[b, n]
    if is_known:
      row = 0 if position[b, n] == 1 else left[0] + 1  # a slot's content row is one further
      np.testing.assert_array_equal(start.g_BxWxE[b, n], x[b, row])
      num_copied += 1
    elif style == 'rope':
      np.testing.assert_array_equal(start.g_BxWxE[b, n], x[b, 0])
    else:
      assert np.abs(start.g_BxWxE[b, n] - x[b, 0]).max() > 1e-3  # moved to its place
  assert 0 < num_copied < position.size
  np.testing.assert_array_equal(start.position_BxW, position - 1)


def test_position_rows_of_every_kind_have_unit_length():
  for pe in choices('position_rows'):
    call, params = made('prefix', position_rows=pe)
    # One content row, of unit vectors, at the slot's own position: it weighs 1.
    rows = full_rows(tiny.orders()['left_to_right'])
    rows = rows.replace(query_position_BxW=rows.content_position_BxW)
    weight = call(params, jnp.ones((1, tiny.NUM_SLOTS, 32)), rows).g_BxWxE[0, 0]
    np.testing.assert_allclose(weight, 1, rtol=1e-5, err_msg=pe)


# ----- neighbours


def test_neighbours_tell_sides_distances_and_the_unknown_apart():
  """A slot's row: for every offset the token there times its vector, or the vector of unknown."""
  call, params = made('neighbours', query_seed_radius=3)
  known_DxE, unknown_DxE = (np.asarray(params['params'][x]) for x in ('neighbours', 'unknown'))
  rows, x = full_rows(tiny.orders()['segments']), content()
  g = np.asarray(call(params, x, rows).g_BxWxE)
  for b in range(3):
    position_N = np.asarray(rows.content_position_BxW[b])
    for n in range(tiny.NUM_SLOTS):
      at = {int(p): k for k, p in enumerate(position_N[: rows.query_length_BxW[b, n]])}
      position, expected = int(rows.query_position_BxW[b, n]), 0
      for d, offset in enumerate((-3, -2, -1, 1, 2, 3)):
        row = at.get(position + offset)
        expected += unknown_DxE[d] if row is None else known_DxE[d] * np.asarray(x[b, row])
      np.testing.assert_allclose(g[b, n], expected, atol=1e-5)


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_neighbours_of_a_whole_text_and_of_single_slots_agree(name):
  config = tiny.model_config(query_seed='neighbours', query_seed_norm='rms')
  seed, rows, x = SEEDS['neighbours'](config), full_rows(tiny.orders()[name]), content()
  params = seed.init(jax.random.key(1), x, rows, None, None)
  whole = seed.apply(params, x, rows, None, None)
  empty = seed.empty_state(config, 3)
  slots = seed.apply(params, x, rows, empty, None)
  np.testing.assert_allclose(whole.g_BxWxE, slots.g_BxWxE, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, whole.state, slots.state)

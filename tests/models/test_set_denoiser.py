"""What the rows of a network of sets see, and what it is at both ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import families, models
from armd_jax.models.denoiser import MASK, Denoiser
from armd_jax.models.layers import unstack_layers
from armd_jax.models.set_denoiser import OrderedSetDenoiser, SetDenoiser, SetRows

CLEAN = jax.random.randint(jax.random.key(0), (1, 16), 0, tiny.VOCAB)
TOKENS = CLEAN.at[:, ::3].set(MASK)


def config_of(length=4, **changes):
  return tiny.model_config(
    family='bd3lm', num_layers=2, diffusion={'block_length': length}, **changes
  )


@functools.cache
def network(length=4, **changes):
  # Larger parameters would saturate the attention.
  model, params = tiny.init(config_of(length, **changes), scale=1.0)

  def enlarge(path, x):  # gates and shifts start at zero
    if 'modulation' in jax.tree_util.keystr(path):
      return 0.1 * jax.random.normal(jax.random.key(len(path)), x.shape)
    return x

  return model, jax.tree_util.tree_map_with_path(enlarge, params)


@pytest.mark.parametrize('length', [1, 4, 16])
@pytest.mark.parametrize('first', [False, True])
def test_rows_see_earlier_clean_blocks_and_their_own_noised_one(length, first):
  changes = {'first_token': 'given'} if first else {}
  model, params = network(length, **changes)
  assert type(model) is SetDenoiser is families.of(model.config).network
  given = int(first)
  clean, tokens = CLEAN[:, given:], TOKENS[:, given:]
  first_B = jnp.array([1]) if first else None
  run = jax.jit(
    lambda tokens, clean: model.apply({'params': params}, tokens, None, first_B, clean_BxN=clean)
  )
  base, block = run(tokens, clean), (np.arange(16 - given) + given) // length
  moved = lambda x: np.abs(np.asarray(x) - np.asarray(base))[0].max(-1) > 1e-6
  for n in range(16 - given):
    other = (clean[0, n] + 1) % tiny.VOCAB
    np.testing.assert_array_equal(moved(run(tokens, clean.at[0, n].set(other))), block > block[n])
    other = MASK if tokens[0, n] != MASK else other
    np.testing.assert_array_equal(moved(run(tokens.at[0, n].set(other), clean)), block == block[n])


def test_a_given_first_token_is_seen_by_all():
  model, params = network(4, first_token='given')
  run = lambda first: model.apply(
    {'params': params}, TOKENS[:, 1:], None, jnp.array([first]), clean_BxN=CLEAN[:, 1:]
  )
  assert (jnp.abs(run(1) - run(2)).max(-1) > 1e-6).all()


def test_padding_counts_as_masked():
  model, params = network()
  run = lambda tokens: model.apply({'params': params}, tokens, None, None, jnp.array([10]))
  np.testing.assert_array_equal(run(TOKENS), run(TOKENS.at[:, 10:].set(3)))
  plain = model.apply({'params': params}, TOKENS.at[:, 10:].set(MASK))
  np.testing.assert_array_equal(run(TOKENS), plain)


def test_one_block_is_the_denoiser_of_the_same_parameters():
  """So that a run may begin with MDLM's."""
  model, params = network(16)
  whole = Denoiser(model.config, tiny.VOCAB)
  expected = whole.apply({'params': params}, TOKENS)
  found = model.apply({'params': params}, TOKENS, clean_BxN=CLEAN)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  shapes = lambda family: jax.tree.map(
    jnp.shape,
    jax.eval_shape(
      functools.partial(models.init, models.build(tiny.model_config(family=family), 7)),
      jax.random.key(0),
    ),
  )
  assert shapes('bd3lm') == shapes('mdlm')


def test_rows_run_alone_with_caches_are_those_of_the_whole():
  """Clean rows block by block, then noised rows of a block, alone or with clean ones beside."""
  model, params = network()
  whole = model.apply({'params': params}, TOKENS, clean_BxN=CLEAN)
  config = config_of(scan_layers=False)
  model, params = models.build(config, tiny.VOCAB), unstack_layers(params)
  run = lambda *args: model.apply({'params': params}, *args, method='extend')
  rows = lambda ids, block, seen: SetRows(
    ids[:, 4 * block :][:, :4], 4 * block + 1 + jnp.arange(4)[None], jnp.full((1, 4), 4 * seen)
  )
  caches = model.apply({'params': params}, 1, 16, method='empty_caches')
  for block in range(4):
    alone, _ = run(None, rows(TOKENS, block, block), caches)
    np.testing.assert_allclose(alone, whole[:, 4 * block :][:, :4], atol=1e-5)
    if block < 3:
      clean = rows(CLEAN, block, block + 1)
      beside = run(clean, rows(TOKENS, block + 1, block + 1), caches, jnp.array([4 * block]))
      np.testing.assert_allclose(beside[0], whole[:, 4 * block + 4 :][:, :4], atol=1e-5)
      _, caches = run(clean, None, caches, jnp.array([4 * block]))
      jax.tree.map(np.testing.assert_array_equal, caches, beside[1])


def test_a_noise_level_is_refused():
  model, params = network()
  with pytest.raises(ValueError, match='reads no noise'):
    model.apply({'params': params}, TOKENS, jnp.zeros(1))


@pytest.mark.parametrize('first', [False, True])
def test_along_an_order_rows_see_the_tokens_before_them(first):
  config = tiny.model_config(
    family='setdlm', num_layers=2, **({'first_token': 'given'} if first else {})
  )
  model, params = tiny.init(config, scale=1.0)
  assert type(model) is OrderedSetDenoiser is families.of(config).network
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      0.1 * jax.random.normal(jax.random.key(len(path)), x.shape)
      if 'modulation' in jax.tree_util.keystr(path)
      else x
    ),
    params,
  )
  slots = 16 - first
  position = jax.random.permutation(jax.random.key(1), slots)[None] + 1
  first_B = jnp.array([1]) if first else None
  run = jax.jit(
    lambda tokens: model.apply({'params': params}, tokens, None, first_B, position_BxN=position)
  )
  tokens = CLEAN[:, :slots]
  base = run(tokens)
  for n in range(slots):
    moved = np.abs(run(tokens.at[0, n].set((tokens[0, n] + 1) % 7)) - base)[0].max(-1) > 1e-6
    np.testing.assert_array_equal(moved, np.arange(slots) > n)
  # Of what is shown from left to right, and no order, the next tokens are predicted as along it.
  shown = 6
  partly = jnp.where(jnp.arange(slots) < shown, tokens, MASK)
  without = model.apply({'params': params}, partly, None, first_B)
  ordered = model.apply(
    {'params': params}, tokens, None, first_B, position_BxN=jnp.arange(1, slots + 1)[None]
  )
  np.testing.assert_allclose(without[:, shown], ordered[:, shown], atol=1e-5)
  junk = partly.at[:, 9:].set(3)
  ended = model.apply({'params': params}, junk, None, first_B, jnp.array([9]))
  np.testing.assert_allclose(ended[:, shown:9], without[:, shown:9], atol=1e-5)

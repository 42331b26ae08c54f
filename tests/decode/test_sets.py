"""SetDLM's sampler follows an exactly known distribution, and its cache changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import set_toy
import tiny
import toy

from armd_jax.config import DiffusionConfig
from armd_jax.decode import diffusion, sets
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.models.denoiser import MASK

COUNT = 4000
SETTINGS = DiffusionConfig(set_size=2, set_reach=3)
run_toy = jax.jit(sets.set_by_set, static_argnums=0)


def sample(width, given=None, text=None):
  none = np.zeros((COUNT, 3), bool)
  request = Request(
    tokens_BxN=jnp.asarray(np.zeros(none.shape, int) if text is None else text),
    given_BxN=jnp.asarray(none if given is None else given),
    length_B=jnp.full(COUNT, 3),
  )
  plan, draws = sets.Plan(width, SETTINGS), Sampling(seed=1).draws(COUNT)
  return run_toy(set_toy.network(), plan, jnp.asarray(toy.exact()), request, draws)


def chi_square(tokens, probability):
  seen = np.bincount(np.asarray(tokens) @ [9, 3, 1], minlength=27)[probability > 0]
  expected = COUNT * probability[probability > 0]
  return ((seen - expected) ** 2 / expected).sum()


def test_sampler_follows_the_source():
  """A token a set. Chi-square over 27 texts: the 99.9% point of 26 degrees of freedom is 54.1."""
  found = sample(1)
  assert chi_square(found.tokens_BxN, toy.PROBABILITY) < 54.1
  assert found.steps == 3 and (COUNT * toy.PROBABILITY).min() > 5
  np.testing.assert_array_equal(np.sort(found.step_BxN, axis=1), np.tile([1, 2, 3], (COUNT, 1)))
  # In many orders, of which left to right is the likeliest.
  kinds, counts = np.unique(np.asarray(found.step_BxN), axis=0, return_counts=True)
  assert len(kinds) > 3 and kinds[counts.argmax()].tolist() == [1, 2, 3]


def test_one_set_is_revealed_independently():
  found = sample(3)
  marginals = [np.bincount(toy.TEXTS[:, n], toy.PROBABILITY) for n in range(3)]
  product = np.prod([p[toy.TEXTS[:, n]] for n, p in enumerate(marginals)], axis=0)
  assert chi_square(found.tokens_BxN, product) < 54.1 and found.steps == 1
  assert chi_square(found.tokens_BxN, toy.PROBABILITY) > 500


def test_given_tokens_stay_and_condition_the_rest():
  given = np.zeros((COUNT, 3), bool)
  given[:, 1] = True
  tokens = np.asarray(sample(1, given, np.full((COUNT, 3), 2)).tokens_BxN)
  assert (tokens[:, 1] == 2).all()
  p = np.where(toy.TEXTS[:, 1] == 2, toy.PROBABILITY, 0)
  assert chi_square(tokens, p / p.sum()) < 26.1  # 99.9% point of 8 degrees of freedom


@functools.cache
def network(**changes):
  return tiny.init(tiny.model_config(family='setdlm', num_layers=2, **changes))


def generate(request, sampling, width=1, sequence_B=None, **changes):
  model, params = network(**changes)
  plan = sets.Plan(width, model.config.diffusion)
  return diffusion.generate(model, params, request, sampling, plan, sequence_B, run=sets.sample)


@pytest.mark.parametrize('width', [1, 3])
@pytest.mark.parametrize('changes', [{}, {'first_token': 'given'}])
def test_tokens_appear_as_the_network_without_a_cache_says(changes, width):
  """A replay along the order in which tokens appeared, given ones first: each is what one pass over
  the whole text says, of a prompt, of gaps and of texts of other lengths."""
  model, params = network(**changes)
  slots = model.config.num_slots
  given = np.zeros((3, slots), bool)
  given[0, :5] = True
  given[1, [0, 3, 4, 9]] = True
  text = np.asarray(jax.random.randint(jax.random.key(0), (3, slots), 0, tiny.VOCAB))
  length = np.array([14, slots, 11])
  first_B = np.array([1, 2, 3], np.int32) if changes else None
  found = generate(Request(text, given, length, first_B), Sampling(temperature=0), width, **changes)
  tokens, step = np.asarray(found.tokens_BxN), np.asarray(found.step_BxN)
  is_free = ~given & (np.arange(slots) < length[:, None])
  np.testing.assert_array_equal(tokens[given], text[given])
  assert (step[is_free] > 0).all() and (step[~is_free] == 0).all()
  assert found.steps == -(-is_free.sum(1).max() // width)
  for b in range(3):
    count = np.bincount(step[b][is_free[b]])[1:]
    assert (count[:-1] == width).all() and count[-1] <= width
  if width > 1:
    return
  order = np.argsort(np.where(np.arange(slots) < length[:, None], step, 99), axis=1, stable=True)
  in_order = np.take_along_axis(tokens, order, axis=1)
  hidden = model.apply(
    {'params': params}, jnp.asarray(in_order), None, first_B, position_BxN=jnp.asarray(order + 1)
  )
  said = np.argmax(model.apply({'params': params}, hidden, method='logits'), axis=-1)
  is_drawn = np.take_along_axis(is_free, order, axis=1)
  np.testing.assert_array_equal(said[is_drawn], in_order[is_drawn])


def test_a_set_is_what_the_network_says_of_the_tokens_before_it():
  """Without a cache and without an order: all that is shown, from left to right."""
  model, params = network()
  given = np.arange(16)[None] < 9
  text = np.asarray(jax.random.randint(jax.random.key(0), (1, 16), 0, tiny.VOCAB))
  found = generate(Request(text, given, np.array([16])), Sampling(temperature=0), 4)
  first = np.asarray(found.step_BxN) == 1
  hidden = model.apply({'params': params}, jnp.where(given, text, MASK))
  said = np.argmax(model.apply({'params': params}, hidden, method='logits'), axis=-1)
  assert first.sum() == 4
  np.testing.assert_array_equal(said[first], np.asarray(found.tokens_BxN)[first])


@pytest.mark.parametrize('width', [1, 3])
def test_batching_changes_nothing_and_padding_is_never_seen(width):
  text = np.asarray(jax.random.randint(jax.random.key(0), (3, 16), 0, tiny.VOCAB))
  given = np.zeros((3, 16), bool)
  given[1, [0, 1, 7]] = True
  length = np.array([16, 16, 11])
  together = np.asarray(generate(Request(text, given, length), Sampling(seed=3), width).tokens_BxN)
  assert (together >= 0).all() and (together < tiny.VOCAB).all()
  for b in range(3):
    row = slice(b, b + 1)
    # What stands after the end of a text is its own business.
    other = np.where(np.arange(16) < length[b], text[row], (text[row] + 1) % tiny.VOCAB)
    alone = generate(
      Request(other, given[row], length[row]), Sampling(seed=3), width, sequence_B=np.array([b])
    )
    np.testing.assert_array_equal(
      np.asarray(alone.tokens_BxN)[0, : length[b]], together[b, : length[b]]
    )
  again = generate(Request(text, given, length), Sampling(seed=4), width)
  assert (np.asarray(again.tokens_BxN)[0] != together[0]).any()

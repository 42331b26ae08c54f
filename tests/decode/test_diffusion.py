"""Every sampler with enough steps follows an exactly known distribution; what is given stays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from armd_jax.config import DiffusionConfig
from armd_jax.decode import diffusion
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.families import FAMILIES
from armd_jax.models.denoiser import MASK
from armd_jax.objectives.d3pm import D3PM
from armd_jax.objectives.mdlm import MDLM
from armd_jax.objectives.radd import RADD
from armd_jax.objectives.sedd import SEDD

METHODS = {'mdlm': MDLM(), 'd3pm': D3PM(), 'sedd': SEDD(), 'radd': RADD()}
CASES = [(family, name) for family in METHODS for name in FAMILIES[family].samplers]
COUNT, STEPS = 4000, 64
SETTINGS = DiffusionConfig(d3pm_steps=STEPS)


def sample(family, name, count, steps, settings=SETTINGS, sequence=None, given=None, text=None):
  logits = toy.exact() + (np.log(3) if family == 'sedd' else 0)
  none = np.zeros((count, toy.N), bool)
  request = Request(
    tokens_BxN=jnp.asarray(np.zeros((count, toy.N), int) if text is None else text),
    given_BxN=jnp.asarray(none if given is None else given),
    length_B=jnp.full(count, toy.N),
  )
  plan = diffusion.Plan(METHODS[family], settings, steps, is_euler=name == 'euler')
  draws = Sampling(seed=1).draws(count, sequence)
  return diffusion.sample(toy.network(), plan, jnp.asarray(logits), request, draws)


@pytest.mark.parametrize(
  ('family', 'name', 'schedule'),
  [*[(*case, 'log_linear') for case in CASES], ('mdlm', 'ancestral', 'cosine'),
   ('sedd', 'euler', 'cosine')],
)  # fmt: skip
def test_sampler_follows_the_source(family, name, schedule):
  """Enough steps. Chi-square over 27 texts: the 99.9% point of 26 degrees of freedom is 54.1."""
  settings = DiffusionConfig(schedule=schedule, d3pm_steps=STEPS)
  tokens = np.asarray(sample(family, name, COUNT, STEPS, settings).tokens_BxN)
  seen = np.bincount(tokens @ [9, 3, 1], minlength=27)
  expected = COUNT * toy.PROBABILITY
  assert ((seen - expected) ** 2 / expected).sum() < 54.1
  assert expected.min() > 5


@pytest.mark.parametrize(('family', 'name'), CASES)
def test_one_step_reveals_all_tokens_independently(family, name):
  """The other end: marginals right, the joint distribution not."""
  count = COUNT
  tokens = np.asarray(sample(family, name, count, 1).tokens_BxN)
  seen = np.bincount(tokens @ [9, 3, 1], minlength=27)
  marginals = [np.bincount(toy.TEXTS[:, n], toy.PROBABILITY) for n in range(3)]
  product = np.prod([p[toy.TEXTS[:, n]] for n, p in enumerate(marginals)], axis=0)
  assert ((seen - count * product) ** 2 / (count * product)).sum() < 54.1
  expected = count * toy.PROBABILITY
  assert ((seen - expected) ** 2 / expected).sum() > 500


def test_a_network_without_time_runs_only_after_a_change():
  """One text of 3 tokens changes at most 3 times in 64 steps; with a time input it runs until
  nothing is masked."""
  for family, name in (('mdlm', 'ancestral'), ('radd', 'euler'), ('sedd', 'tweedie')):
    runs = [int(sample(family, name, 1, STEPS, sequence=jnp.array([i])).steps) for i in range(5)]
    assert max(runs) <= 3 if family in ('mdlm', 'radd') else min(runs) > 3, family


def test_another_number_of_steps_compiles_nothing_anew():
  """A prompt leaves so many tokens, of which each takes a step."""
  run = lambda steps: sample('mdlm', 'ancestral', 3, steps)
  run(5)
  compiled = diffusion.sample._cache_size()
  assert [int(run(steps).steps) <= steps for steps in (1, 4, 7)] == [True] * 3
  assert diffusion.sample._cache_size() == compiled


def test_given_tokens_stay_and_condition_the_rest():
  count = COUNT
  given = np.zeros((count, 3), bool)
  given[:, 1] = True
  text = np.full((count, 3), 2)
  tokens = np.asarray(sample('mdlm', 'ancestral', count, STEPS, given=given, text=text).tokens_BxN)
  assert (tokens[:, 1] == 2).all()
  p = (
    np.where(toy.TEXTS[:, 1] == 2, toy.PROBABILITY, 0) / toy.PROBABILITY[toy.TEXTS[:, 1] == 2].sum()
  )
  seen = np.bincount(tokens @ [9, 3, 1], minlength=27)[p > 0]
  expected = count * p[p > 0]
  assert ((seen - expected) ** 2 / expected).sum() < 26.1  # 99.9% point of 8 degrees of freedom


@functools.cache
def network(family):
  return tiny.init(tiny.model_config(family=family, num_layers=1))


def generate(model, params, request, sampling, steps=8, sequence_B=None):
  family = model.config.family
  plan = diffusion.plan_of(METHODS[family], model, steps, FAMILIES[family].samplers[0])
  return diffusion.generate(model, params, request, sampling, plan, sequence_B)


def test_batching_changes_nothing_and_padding_is_never_seen():
  """Not even when others' changes make the network run again."""
  model, params = network('mdlm')
  text = np.asarray(jax.random.randint(jax.random.key(0), (3, 16), 0, tiny.VOCAB))
  given = np.zeros((3, 16), bool)
  given[1, :5] = True
  length = np.array([16, 16, 11])
  together = np.asarray(
    generate(model, params, Request(text, given, length), Sampling(seed=3)).tokens_BxN
  )
  np.testing.assert_array_equal(together[given], text[given])
  assert (together[0] >= 0).all() and (together[0] < tiny.VOCAB).all()
  for b in range(3):
    row = slice(b, b + 1)
    # What stands after the end of a text is its own business.
    other = np.where(np.arange(16) < length[b], text[row], (text[row] + 1) % tiny.VOCAB)
    alone = generate(
      model, params, Request(other, given[row], length[row]), Sampling(seed=3),
      sequence_B=np.array([b]),
    )  # fmt: skip
    np.testing.assert_array_equal(
      np.asarray(alone.tokens_BxN)[0, : length[b]], together[b, : length[b]]
    )
  again = np.asarray(
    generate(model, params, Request(text, given, length), Sampling(seed=4)).tokens_BxN
  )
  assert (again[0] != together[0]).any()


@pytest.mark.parametrize('family', ['mdlm', 'radd'])
def test_tokens_appear_as_the_network_says_of_those_before(family):
  """A replay: what appeared after run r is what the network says, given what was there before r."""
  model, params = network(family)
  given = np.zeros((1, 16), bool)
  given[0, [0, 5]] = True
  text, length = np.full((1, 16), 3), np.array([14])
  found = generate(model, params, Request(text, given, length), Sampling(temperature=0), steps=6)
  tokens_N, step_N = np.asarray(found.tokens_BxN)[0], np.asarray(found.step_BxN)[0]
  is_free_N = ~given[0] & (np.arange(16) < 14)
  runs = int(found.steps)
  assert (step_N[~is_free_N] == 0).all() and runs > 1
  assert sorted({*step_N[is_free_N].tolist()}) == [*range(1, runs + 1)]
  for run in range(1, runs + 1):
    before = np.where(is_free_N & (step_N >= run), MASK, tokens_N)[None]
    hidden = model.apply({'params': params}, jnp.asarray(before), None, None, jnp.asarray(length))
    logits_NxV = model.apply({'params': params}, hidden, method='logits')[0]
    now_N = step_N == run
    np.testing.assert_array_equal(np.argmax(logits_NxV, axis=-1)[now_N], tokens_N[now_N])


def test_temperature_and_nucleus_sharpen():
  model, params = network('mdlm')
  nothing = np.zeros((100, 16), bool)
  request = Request(np.zeros((100, 16), int), nothing, np.full(100, 16))
  run = lambda **how: np.asarray(generate(model, params, request, Sampling(**how)).tokens_BxN)

  def entropy(tokens):
    p = np.bincount(tokens.ravel(), minlength=tiny.VOCAB) / tokens.size
    return -(p[p > 0] * np.log(p[p > 0])).sum()

  plain = entropy(run())
  assert entropy(run(temperature=0.3)) < plain - 0.05
  assert entropy(run(top_p=0.3)) < plain - 0.05


def test_a_first_token_that_is_given_conditions_the_text():
  config = tiny.model_config(family='mdlm', num_layers=1, first_token='given', length=17)
  model, params = tiny.init(config)
  empty = Request(np.zeros((4, 16), int), np.zeros((4, 16), bool), np.full(4, 16))
  first_B = lambda first: np.full(4, first, np.int32)
  run = lambda first: np.asarray(
    generate(model, params, empty.replace(first_B=first_B(first)), Sampling()).tokens_BxN
  )
  assert (run(1) != run(2)).any()

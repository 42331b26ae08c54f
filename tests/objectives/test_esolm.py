"""Eso-LM's loss and bound are the formulas of its paper, and it is ARMD along orders of its own."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from armd_jax.config import DiffusionConfig
from armd_jax.models import build
from armd_jax.objectives import armd, esolm, masking
from armd_jax.order import (
  GenerationOrder,
  left_to_right,
  one_by_one,
  to_generation,
  uniform,
  with_given,
)

N, V = 3, 3
TEXTS = toy.TEXTS[[0, 5, 7, 14, 26]]
PERMUTATIONS = list(itertools.permutations(range(N)))
# What may be clean, in the order in which it became so.
SHOWN = [shown for k in range(N + 1) for shown in itertools.permutations(range(N), k)]
EPSILON = 1e-3


@functools.cache
def network():
  config = tiny.model_config(family='esolm', length=N, num_layers=2)
  return tiny.init(config, V, scale=4.0)


@functools.cache
def conditionals():
  """-log p(x_n | clean tokens, in their order) by (clean, n), [texts]: from one pass along every
  left-over order, of the network and of nothing else."""
  model, params = network()
  found = {}
  for permutation in PERMUTATIONS:
    position = jnp.array([permutation]) + 1
    order = one_by_one(GenerationOrder(position, position))
    weights = jnp.zeros((len(TEXTS), N))
    _, nll = armd.nll(model, params, jnp.asarray(TEXTS), order, weights, loss_chunk=N)
    for slot, n in enumerate(permutation):
      found[permutation[:slot], n] = np.asarray(nll[:, slot], np.float64)
  return found


def masked(shown):
  return [n for n in range(N) if n not in shown]


def probability(shown, alpha):
  """That exactly these tokens are clean, and come in this order."""
  return alpha ** len(shown) * (1 - alpha) ** (N - len(shown)) / math.factorial(len(shown))


def diffusion_term(alpha):
  """E over x_t of the sum over masked tokens of -log p(x_n | x_t)."""
  p = conditionals()
  return sum(probability(c, alpha) * sum(p[c, n] for n in masked(c)) for c in SHOWN if masked(c))


def sequential_term(alpha):
  """E over x_0 of the sum over masked tokens of -log p(x_n | x_0, tokens before n)."""
  total = np.zeros(len(TEXTS))
  for shown in SHOWN:
    seen = shown
    for n in masked(shown):
      total += probability(shown, alpha) * conditionals()[seen, n]
      seen = (*seen, n)
  return total


def published(alpha_0, schedule, least=EPSILON, low_variance=False):
  """NELBO of the paper: AR loss and MDM loss, per text in nats; alpha at the end is epsilon as in
  MDLM, and training leaves out the first thousandth of time."""
  u, w = toy.quadrature()
  total = sequential_term(alpha_0) if alpha_0 < 1 else np.zeros(len(TEXTS))
  for t, weight in zip(least + (1 - least) * u, w, strict=True):
    if not alpha_0:
      break
    if schedule == 'log_linear':
      alpha, slope = 1 - (1 - EPSILON) * t, 1 - EPSILON
    else:
      alpha = EPSILON + (1 - EPSILON) * np.cos(np.pi * t / 2)
      slope = (1 - EPSILON) * np.pi / 2 * np.sin(np.pi * t / 2)
    factor = 1 if low_variance else alpha_0 * slope / (1 - alpha_0 * alpha)
    total = total + weight * factor * diffusion_term(alpha_0 * alpha)
  return total


def draws_of(shown, alpha):
  """`v` of a draw in which these tokens are clean, in this order."""
  v = np.full(N, (1 + alpha) / 2 if alpha < 1 else 1.0)
  for place, n in enumerate(shown):
    v[n] = alpha * (place + 0.5) / N
  return v


def nats(order, weights, texts):
  model, params = network()
  _, nll = armd.nll(model, params, texts, order, jnp.zeros(texts.shape), loss_chunk=N)
  return np.asarray(jnp.sum(weights * nll, axis=1), np.float64)


@pytest.mark.parametrize('schedule', ['log_linear', 'cosine'])
@pytest.mark.parametrize(
  ('alpha_0', 'split', 'kind'),
  [(0.3, 0.5, 'elbo'), (0.3, 0.2, 'elbo'), (0.7, 0.5, 'low_variance'), (1.0, 0.5, 'elbo'),
   (1.0, 0.5, 'low_variance'), (0.0, 0.5, 'elbo'), (0.4, 0.5, 'orders')],
)  # fmt: skip
def test_loss_is_the_published_formula(monkeypatch, alpha_0, split, kind, schedule):
  """The mean of `loss` over all draws, each with its probability."""
  settings = DiffusionConfig(
    schedule=schedule, esolm_diffused=alpha_0, esolm_split=split, esolm_loss=kind
  )
  own = split if 0 < alpha_0 < 1 else alpha_0
  cases = []  # u, v, probability
  if kind == 'orders':
    cases = [(0.5, draws_of(c, alpha_0), probability(c, alpha_0)) for c in SHOWN]
  else:
    nodes, w = toy.quadrature()
    for u, weight in zip(nodes * own, w * own, strict=True) if own else ():
      t = EPSILON + (1 - EPSILON) * u / own
      kept = 1 - t if schedule == 'log_linear' else np.cos(np.pi * t / 2)
      alpha = alpha_0 * (EPSILON + (1 - EPSILON) * kept)
      cases += [(u, draws_of(c, alpha), weight * probability(c, alpha)) for c in SHOWN]
    if own < 1:
      cases += [
        ((1 + own) / 2, draws_of(c, alpha_0), (1 - own) * probability(c, alpha_0)) for c in SHOWN
      ]
  u, v, weight = (np.array(x) for x in zip(*cases, strict=True))
  assert weight.sum() == pytest.approx(1)
  repeat = lambda x: jnp.asarray(np.tile(x, (len(TEXTS),) + (1,) * (x.ndim - 1)), jnp.float32)
  monkeypatch.setattr(masking, 'times', lambda *args, least: repeat(u))
  monkeypatch.setattr(esolm, 'uniforms', lambda *args: repeat(v))
  model, params = network()
  config = dataclasses.replace(model.config, diffusion=settings)
  count = len(TEXTS) * len(u)
  total, found = esolm.loss(
    model.clone(config=config), params, jnp.asarray(np.repeat(TEXTS, len(u), axis=0)),
    jax.random.split(jax.random.key(0), count), count, jnp.arange(count), loss_chunk=N,
  )  # fmt: skip
  assert total == pytest.approx(np.asarray(found).sum() / (count * N), rel=1e-5)
  found = np.asarray(found, np.float64).reshape(len(TEXTS), len(u)) @ weight
  least = 0.0 if kind == 'orders' else EPSILON
  expected = published(alpha_0, schedule, least, kind == 'low_variance')
  # Orders start from masks alone, of which the schedule leaves a thousandth.
  np.testing.assert_allclose(found, expected, rtol=1e-5 if kind != 'orders' else 3 * EPSILON)


@pytest.mark.parametrize('alpha_0', [0.0, 0.125, 0.6, 1.0])
def test_bound_is_the_published_one_in_continuous_time(monkeypatch, alpha_0):
  """The mean over orders of exact log-likelihoods, and the NELBO without its epsilons."""
  v = np.stack([draws_of(shown, alpha_0) for shown in SHOWN])
  weight = np.array([probability(shown, alpha_0) for shown in SHOWN])
  monkeypatch.setattr(
    esolm, 'uniforms', lambda *args: jnp.asarray(np.tile(v, (len(TEXTS), 1)), jnp.float32)
  )
  model, params = network()
  count = len(TEXTS) * len(SHOWN)
  found = esolm.bound(
    model, params, jnp.asarray(np.repeat(TEXTS, len(SHOWN), axis=0)),
    jax.random.split(jax.random.key(0), count), DiffusionConfig(esolm_diffused=alpha_0),
    samples=2, loss_chunk=N,
  )  # fmt: skip
  found = np.asarray(found, np.float64).reshape(len(TEXTS), len(SHOWN)) @ weight
  expected = sequential_term(alpha_0)
  u, w = toy.quadrature()
  for t, of_t in zip(u, w, strict=True):
    alpha = alpha_0 * (1 - t)
    if alpha_0:
      expected = expected + of_t * alpha_0 / (1 - alpha) * diffusion_term(alpha)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_bound_draws_other_orders_for_other_keys():
  model, params = network()
  texts = jnp.asarray(np.tile(TEXTS[1], (4000, 1)))
  keys = jax.random.split(jax.random.key(1), len(texts))
  settings = DiffusionConfig(esolm_diffused=0.6)
  run = lambda samples: np.asarray(
    esolm.bound(model, params, texts, keys, settings, samples=samples, loss_chunk=N), np.float64
  )
  one, four = run(1), run(4)
  error = one.std() / len(one) ** 0.5
  assert abs(one.mean() - published(0.6, 'log_linear', 0.0)[1]) < 4 * error + 1e-3
  assert 0.4 < four.std() / one.std() < 0.6


def test_it_is_armd_with_the_seed_of_masks_along_orders_of_its_own():
  """The same parameters and the same numbers; the ends of alpha_0 are ARMD's own orders."""
  model, params = network()
  config = tiny.model_config(
    length=N, num_layers=2, num_two_stream_layers=2, query_seed='mask_embedding', content_mask='row'
  )
  assert dataclasses.replace(config, family='esolm') == model.config
  keys = jax.random.split(jax.random.key(2), len(TEXTS))
  texts = jnp.asarray(TEXTS)
  run = lambda settings: esolm.any_order(keys, N, settings)
  ltr = run(DiffusionConfig(esolm_diffused=0.0))
  assert (ltr.position_BxN == left_to_right(N).position_BxN).all()
  random = run(DiffusionConfig(esolm_diffused=1.0))
  assert len(np.unique(random.position_BxN, axis=0)) > 1
  for order in (ltr, random, run(DiffusionConfig(esolm_diffused=0.5))):
    assert (order.block_BxN == jnp.arange(1, N + 1)).all()
    _, theirs = armd.nll(
      build(config, V), params, texts, order, jnp.zeros((len(TEXTS), N)), loss_chunk=N
    )
    np.testing.assert_allclose(nats(order, 1.0, texts), theirs.sum(axis=1), rtol=1e-6)


def test_orders_of_the_ends_are_uniform():
  keys = jax.random.split(jax.random.key(3), 6000)
  count = lambda order: np.unique(np.asarray(order.position_BxN), axis=0, return_counts=True)[1]
  for order in (esolm.any_order(keys, N, DiffusionConfig(esolm_diffused=1.0)), uniform(keys, N)):
    assert ((count(order) - 1000) ** 2 / 1000).sum() < 20.5  # 99.9% point, 5 degrees of freedom


@pytest.mark.parametrize(('split', 'expected'), [(0.5, 4), (0.25, 2)])
def test_a_share_of_a_step_trains_diffusion(split, expected):
  keys = jax.random.split(jax.random.key(0), 8)
  u = masking.times(keys, jnp.arange(8), 8, least=0.0)
  v = esolm.uniforms(keys, 40)
  settings = DiffusionConfig(esolm_split=split, esolm_diffused=0.3)
  order, weights, is_diffusion = esolm.draw(settings, u, v)
  assert is_diffusion.sum() == expected
  weights, block = np.asarray(to_generation(weights, order)), np.asarray(order.block_BxN)
  for b in range(8):
    assert len(np.unique(weights[b][weights[b] > 0])) == 1
    if is_diffusion[b]:  # masks are one block
      assert len(np.unique(block[b][weights[b] > 0])) == 1
    else:
      assert (block[b] == np.arange(1, 41)).all() and weights[b].max() == pytest.approx(
        1 / (1 - split)
      )


def test_bound_of_a_gap_is_that_of_what_is_missing_given_the_rest():
  """With alpha_0 = 0 from left to right, after what is given; padding costs nothing."""
  model, params = network()
  texts = jnp.asarray(TEXTS)
  given = jnp.asarray(np.tile([False, True, False], (len(TEXTS), 1)))
  for length, missing in ((3, [0, 2]), (2, [0])):
    document = given, jnp.full(len(TEXTS), length)
    found = esolm.bound(
      model, params, texts, jax.random.split(jax.random.key(0), len(TEXTS)),
      DiffusionConfig(esolm_diffused=0.0), samples=1, loss_chunk=N, document=document,
    )  # fmt: skip
    order = with_given(left_to_right(N), *document)
    _, nll = armd.nll(model, params, texts, order, jnp.zeros(texts.shape), loss_chunk=N)
    expected = nll[:, 1 : 1 + len(missing)].sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (order.position_BxN[:, 0] == 2).all()


def test_steps_of_the_sampler_reveal_what_the_process_says():
  """Each of K steps alpha_0 / K of all tokens, in any place; the rest comes from left to right."""
  slots, steps, share = 40, 4, 0.6
  order = esolm.sampler_order(jax.random.split(jax.random.key(5), 500), slots, share, steps)
  position, block = np.asarray(order.position_BxN), np.asarray(order.block_BxN)
  total = block.size
  for step in range(steps):
    expected = total * share / steps
    assert abs((block == step).sum() - expected) < 4 * expected**0.5
    assert position[block == step].mean() == pytest.approx((slots + 1) / 2, abs=1)
  assert (np.diff(block, axis=1) >= 0).all()
  for row, of_row in zip(position, block, strict=True):
    alone = row[of_row >= steps]
    assert (np.diff(alone) > 0).all() and len(np.unique(of_row[of_row >= steps])) == len(alone)

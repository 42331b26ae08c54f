"""Each baseline's loss is its paper's formula, and all bounds agree where theory says so."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.d3pm import D3PM
from armd_jax.objectives.mdlm import MDLM
from armd_jax.objectives.radd import RADD
from armd_jax.objectives.sedd import SEDD

METHODS = (MDLM, D3PM, SEDD, RADD)
SETTINGS = DiffusionConfig(d3pm_aux=0.0)
TEXTS = jnp.asarray(toy.TEXTS)


def nats_of(method, settings, logits):
  """`(text_BxN, u_B) -> nats_B` of a table network."""

  @jax.jit
  def nats(text_BxN, u_B, keys_B):
    return method().objective(
      toy.network(), jnp.asarray(logits), text_BxN, u_B, keys_B, settings,
      scale=1.0, loss_chunk=2,
    )[1]  # fmt: skip

  return lambda text_BxN, u_B: nats(text_BxN, u_B, jax.random.split(jax.random.key(0), len(u_B)))


def drawn(masked):
  """The masks that `nats_of` draws for the 27 texts with these probabilities."""
  keys = jax.random.split(jax.random.key(0), len(masked))
  return np.asarray(masking.draw_mask(keys, jnp.asarray(masked, jnp.float32), toy.N))


def masked_nll(logits, is_masked):
  """Sum over masked tokens of -log p, per text, each with its own mask; plain NumPy."""
  return np.array([toy.nll(logits, m[None])[b, 0].sum() for b, m in enumerate(is_masked)])


U = np.linspace(0.05, 1, 27)


@pytest.mark.parametrize('schedule', ['log_linear', 'cosine'])
def test_mdlm_and_t_dce_are_their_formulas(schedule):
  """-alpha'/(1 - alpha) sum -log p (MDLM eq. 11), sigma' e^-sigma / (1 - e^-sigma) sum -log c
  (RADD section 3.3, t-DCE), each with alpha as its paper writes it."""
  eps, t = 1e-3, U
  if schedule == 'log_linear':
    alpha, alpha_prime = 1 - (1 - eps) * t, -(1 - eps) * np.ones(27)
  else:
    alpha = eps + (1 - eps) * np.cos(np.pi * t / 2)
    alpha_prime = -(1 - eps) * np.pi / 2 * np.sin(np.pi * t / 2)
  nll = masked_nll(toy.arbitrary(), drawn(1 - alpha))
  expected = -alpha_prime / (1 - alpha) * nll
  settings = DiffusionConfig(schedule=schedule, radd_loss='t_dce')
  got = nats_of(MDLM, settings, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, expected, rtol=1e-5)
  sigma, sigma_prime = -np.log(alpha), -alpha_prime / alpha
  expected = sigma_prime * np.exp(-sigma) / (1 - np.exp(-sigma)) * nll
  got = nats_of(RADD, settings, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_lambda_dce_and_any_order_are_their_formulas():
  got = nats_of(RADD, SETTINGS, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, masked_nll(toy.arbitrary(), drawn(U)) / U, rtol=1e-5)
  settings = DiffusionConfig(radd_loss='any_order')
  count = np.ceil(U * 3)
  keys = jax.random.split(jax.random.key(0), 27)
  masks = np.asarray(masking.draw_exactly(keys, jnp.asarray(count), 3))
  got = nats_of(RADD, settings, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, masked_nll(toy.arbitrary(), masks) * 3 / count, rtol=1e-5)


@pytest.mark.parametrize('aux', [0.0, 0.25])
def test_d3pm_is_its_formula(aux):
  """T times KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) from the matrices of the paper's section
  3, and `aux` times T times the cross-entropy of all tokens, as in the authors' code."""
  steps = 5
  settings = DiffusionConfig(d3pm_steps=steps, d3pm_aux=aux)
  t = np.ceil(U * steps).astype(int)
  one_step = [None]
  for s in range(1, steps + 1):
    beta = 1 / (steps - s + 1)
    q = (1 - beta) * np.eye(toy.V + 1)
    q[:, toy.V] += beta
    one_step.append(q)
  total = [np.eye(toy.V + 1)]
  for q in one_step[1:]:
    total.append(total[-1] @ q)

  def posterior(x_t, p_0, s):
    """q(x_{s-1}, x_s | x_0) summed over p(x_0), normalised."""
    joint = (p_0 @ total[s - 1]) * one_step[s][:, x_t]
    return joint / joint.sum()

  masks = drawn(t / steps)
  expected = np.zeros(27)
  for b, (text, s, mask) in enumerate(zip(toy.TEXTS, t, masks, strict=True)):
    z = np.where(mask, toy.V, text)
    logits = toy.arbitrary()[z @ (4 ** np.arange(3))].astype(np.float64)
    for n in range(toy.N):
      predicted = np.append(np.exp(logits[n]) / np.exp(logits[n]).sum(), 0)
      expected[b] -= steps * aux * np.log(predicted[text[n]])
      if not mask[n]:
        continue  # both posteriors stay where they are
      clean = np.eye(toy.V + 1)[text[n]]
      q, p = posterior(toy.V, clean, s), posterior(toy.V, predicted, s)
      expected[b] += steps * (q[q > 0] * np.log(q[q > 0] / p[q > 0])).sum()
  got = nats_of(D3PM, settings, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('steps', [1, 7, 1000, 4000])
def test_d3pm_weights_are_those_of_float64(steps):
  """T (alpha_{t-1} - alpha_t) / (1 - alpha_t) at every t, to float32's own rounding."""
  t = np.arange(1, steps + 1)
  settings = DiffusionConfig(d3pm_steps=steps, d3pm_aux=0.0)
  keys = jax.random.split(jax.random.key(0), steps)
  draw = D3PM().draw(jnp.asarray((t - 0.5) / steps, jnp.float32), keys, toy.N, settings)
  np.testing.assert_array_equal(draw.noise_B, t)
  alpha, before = 1 - t / steps, 1 - (t - 1) / steps
  np.testing.assert_allclose(draw.weights_B, steps * (before - alpha) / (1 - alpha), rtol=1e-6)


def test_sedd_is_its_formula():
  """sigma' sum over masked of sum_v s_v - r log s_x0 + r (log r - 1), with log s = x - log(e^sigma
  - 1) - log V (SEDD eq. 10 and appendix C)."""
  eps = 1e-3
  sigma = -np.log(1 - (1 - eps) * U)
  sigma_prime = (1 - eps) / (1 - (1 - eps) * U)
  masks = drawn((1 - eps) * U)
  expected = np.zeros(27)
  for b, (text, mask) in enumerate(zip(toy.TEXTS, masks, strict=True)):
    z = np.where(mask, toy.V, text)
    x = toy.arbitrary()[z @ (4 ** np.arange(3))].astype(np.float64)
    log_s = x - np.log(np.expm1(sigma[b])) - np.log(toy.V)
    r = 1 / np.expm1(sigma[b])
    entropy = np.exp(log_s).sum(-1) - r * log_s[np.arange(3), text] + r * (np.log(r) - 1)
    expected[b] = sigma_prime[b] * entropy[mask].sum()
  got = nats_of(SEDD, SETTINGS, toy.arbitrary())(TEXTS, U)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def prior(logits):
  """alpha(1) = 1e-3 of the tokens are seen in x_1, predicted from masks alone."""
  return 1e-3 * toy.nll(logits, np.ones((1, 3), bool))[:, 0].sum(1)


@pytest.mark.parametrize('name', ['log_linear', 'cosine'])
def test_mdlm_is_the_any_order_bound_of_a_network_without_time(name, monkeypatch):
  """Text by text, for a network that is no distribution's conditionals."""
  u, w = toy.quadrature()
  settings = DiffusionConfig(schedule=name)
  masked = lambda u, count: toy.independent(masking.Schedule(name).masked(u), count)
  nats = toy.enumerated(nats_of(MDLM, settings, toy.arbitrary()), masked, u, w, monkeypatch)
  expected = toy.any_order(toy.arbitrary())
  np.testing.assert_allclose(nats + prior(toy.arbitrary()), expected, atol=1e-5)
  assert np.abs(nats - expected).max() > 1e-3  # the prior is needed


def test_lambda_dce_and_k_masked_are_the_any_order_bound(monkeypatch):
  u, w = toy.quadrature()
  nats = toy.enumerated(
    nats_of(RADD, SETTINGS, toy.arbitrary()), toy.independent, u, w, monkeypatch
  )
  np.testing.assert_allclose(nats, toy.any_order(toy.arbitrary()), rtol=1e-5)
  settings = DiffusionConfig(radd_loss='any_order')
  subsets = lambda u, count: (
    (count == np.ceil(u * 3)[:, None]) / np.array([math.comb(3, int(c)) for c in count])
  )
  nats = toy.enumerated(
    nats_of(RADD, settings, toy.arbitrary()), subsets, np.array([1, 2, 3]) / 3, np.ones(3) / 3,
    monkeypatch,
  )  # fmt: skip
  np.testing.assert_allclose(nats, toy.any_order(toy.arbitrary()), rtol=1e-5)


def test_sedd_at_the_exact_scores_is_the_likelihood_and_no_other_score_beats_it(monkeypatch):
  """The network whose scores are exact says log p + log V; any order of exact conditionals gives
  -log p(x). A score that is off by a factor c, at all v alike, costs c - 1 - log c per unit."""
  u, w = toy.quadrature()
  masked = lambda u, count: toy.independent((1 - 1e-3) * u, count)
  exact = toy.exact() + np.log(3)
  run = lambda logits: (
    toy.enumerated(nats_of(SEDD, SETTINGS, logits), masked, u, w, monkeypatch) + prior(toy.exact())
  )
  np.testing.assert_allclose(run(exact), -np.log(toy.PROBABILITY), rtol=1e-5)
  # integral of (1/t) E[masked tokens] dt is N.
  for off in (-0.5, 0.5):
    extra = run(exact + np.float32(off)) + np.log(toy.PROBABILITY)
    np.testing.assert_allclose(extra, 3 * (1 - 1e-3) * (np.exp(off) - 1 - off), rtol=1e-4)


def test_d3pm_decreases_to_the_continuous_bound(monkeypatch):
  """At exact conditionals the continuous bound is the entropy; T steps cost what revealing tokens
  together costs, about in proportion to 1 / T."""
  entropy = -(toy.PROBABILITY * np.log(toy.PROBABILITY)).sum()
  gaps = []
  for steps in (1, 4, 16):
    settings = DiffusionConfig(d3pm_steps=steps, d3pm_aux=0.0)
    u = np.arange(1, steps + 1) / steps - 1e-4
    masked = lambda u, count: toy.independent(np.ceil(u * steps) / steps, count)  # noqa: B023
    nats = toy.enumerated(
      nats_of(D3PM, settings, toy.exact()), masked, u, np.full(steps, 1 / steps), monkeypatch
    )
    gaps.append((nats * toy.PROBABILITY).sum() - entropy)
  marginals = [
    np.bincount(toy.TEXTS[:, n], toy.PROBABILITY) for n in range(toy.N)
  ]  # one step reveals all tokens independently
  total_correlation = -sum((p * np.log(p)).sum() for p in marginals) - entropy
  assert gaps[0] == pytest.approx(total_correlation, rel=1e-5)
  assert all(0 < after < before for before, after in itertools.pairwise(gaps))
  assert gaps[-1] < 0.12 * gaps[0]


@pytest.mark.parametrize('method', METHODS)
def test_bound_is_unbiased(method):
  """The estimate of what is reported, over 300 keys and all texts: within 4 standard errors of
  the exact bound, which for D3PM is the one of its T."""
  settings = DiffusionConfig(d3pm_steps=4)
  logits = toy.exact() + (np.log(3) if method is SEDD else 0)
  run = jax.jit(
    functools.partial(method().bound, toy.network(), settings=settings, samples=4, loss_chunk=3)
  )
  texts = np.repeat(toy.TEXTS, 300, axis=0)
  keys = jax.random.split(jax.random.key(2), len(texts))
  nats = np.asarray(run(jnp.asarray(logits), jnp.asarray(texts), keys), np.float64)
  nats = nats.reshape(27, 300)
  expected = -np.log(toy.PROBABILITY)
  if method is D3PM:
    nll = toy.nll(toy.exact()).sum(-1)
    expected = sum(
      nll @ toy.independent(np.array([t / 4]), toy.MASKS.sum(1))[0] / t for t in range(1, 5)
    )
  error = nats.mean(1) - expected
  assert (np.abs(error) < 4.5 * nats.std(1) / 300**0.5).all()
  mean_error = np.sqrt((nats.var(1) / 300).sum()) / 27
  assert abs(error.mean()) < 4 * mean_error


@pytest.mark.parametrize('method', [MDLM, SEDD, RADD])
def test_bound_of_what_is_missing_is_tight_where_the_network_is_exact(method):
  """Given one token, and with nothing behind the second in every other text: -log p of the rest."""
  logits = toy.exact() + (np.log(3) if method is SEDD else 0)
  run = jax.jit(
    functools.partial(method().bound, toy.network(), settings=SETTINGS, samples=4, loss_chunk=3)
  )
  texts, given_N = np.repeat(toy.TEXTS, 300, axis=0), np.array([False, True, False])
  documents = jnp.tile(given_N, (len(texts), 1)), jnp.full(len(texts), toy.N)
  keys = jax.random.split(jax.random.key(3), len(texts))
  nats = run(jnp.asarray(logits), jnp.asarray(texts), keys, document=documents)
  nats = np.asarray(nats, np.float64).reshape(27, 300)
  same = toy.TEXTS[:, None, given_N] == toy.TEXTS[None, :, given_N]
  expected = -np.log(toy.PROBABILITY / (same.all(-1) @ toy.PROBABILITY))
  error = nats.mean(1) - expected
  assert (np.abs(error) < 4.5 * nats.std(1) / 300**0.5 + 1e-6).all()
  everything = documents[0] | True
  nothing = run(jnp.asarray(logits), jnp.asarray(texts), keys, document=(everything, documents[1]))
  assert not np.any(nothing)


@pytest.mark.parametrize('method', METHODS)
def test_training_loss_is_the_objective_at_low_discrepancy_times_however_it_is_cut(method):
  """Times and masks follow the index in the batch, so that micro-batches add up to the batch."""
  network, logits = toy.network(), jnp.asarray(toy.arbitrary())
  network.config.diffusion = settings = DiffusionConfig(d3pm_steps=8)
  keys, index = jax.random.split(jax.random.key(5), 27), jnp.arange(27)

  @jax.jit
  def loss(text_BxN, keys_B, index_B):
    return method().loss(network, logits, text_BxN, keys_B, 27, index_B=index_B, loss_chunk=3)

  whole, nats = loss(TEXTS, keys, index)
  parts = [loss(TEXTS[m::3], keys[m::3], index[m::3])[0] for m in range(3)]
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
  np.testing.assert_allclose(whole, nats.mean() / 3, rtol=1e-5)
  time_keys, mask_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  least = 1e-3 if method in (MDLM, SEDD) else 0.0  # RADD's default is its lambda-DCE
  times = masking.times(time_keys, index, 27, least)
  expected = method().objective(
    network, logits, TEXTS, times, mask_keys, settings, scale=1.0, loss_chunk=3
  )[1]
  np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_the_bound_has_the_prior(monkeypatch):
  """It alone is left of an objective that is 0 everywhere."""
  nothing = lambda self, model, params, text_BxN, *_, **__: (0.0, jnp.zeros(len(text_BxN)))
  monkeypatch.setattr(MDLM, 'objective', nothing)
  keys = jax.random.split(jax.random.key(0), len(TEXTS))
  found = MDLM().bound(
    toy.network(), jnp.asarray(toy.arbitrary()), TEXTS, keys, SETTINGS,
    samples=2, loss_chunk=2,
  )  # fmt: skip
  np.testing.assert_allclose(found, prior(toy.arbitrary()), rtol=1e-5)


@pytest.mark.parametrize('method', METHODS)
def test_noise_is_read_exactly_where_the_paper_has_it(method):
  """The step of T (D3PM) or sigma = -log alpha (SEDD), the same in training and in sampling."""
  keys, settings = jax.random.split(jax.random.key(0), 3), DiffusionConfig(d3pm_steps=10)
  u_B = jnp.array([0.2, 0.5, 1.0])
  expected = {D3PM: 10 * u_B, SEDD: -np.log(1 - 0.999 * u_B)}.get(method)
  for noise_B in (
    method().draw(u_B, keys, toy.N, settings).noise_B,
    method().noise(settings, u_B),
  ):
    if expected is None:
      assert noise_B is None
    else:
      np.testing.assert_allclose(noise_B, expected, rtol=1e-5)

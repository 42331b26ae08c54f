"""Schedules, times and masks are what they are called; the loss counts masked tokens only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy

from armd_jax.objectives import masking

KEYS = functools.partial(jax.random.split, jax.random.key(0))


@pytest.mark.parametrize('name', ['log_linear', 'cosine'])
@pytest.mark.parametrize('epsilon', [1e-3, 0.0])
def test_schedules_follow_their_formulas(name, epsilon):
  process = masking.Schedule(name, epsilon)
  t = np.linspace(0.01, 1, 50)
  alpha = {'log_linear': 1 - (1 - epsilon) * t}.get(
    name, epsilon + (1 - epsilon) * np.cos(np.pi * t / 2)
  )
  np.testing.assert_allclose(process.alpha(t.astype(np.float32)), alpha, atol=2e-7)
  np.testing.assert_allclose(process.masked(t.astype(np.float32)), 1 - alpha, rtol=1e-6)
  slope = {'log_linear': np.full(50, 1 - epsilon)}.get(
    name, (1 - epsilon) * np.pi / 2 * np.sin(np.pi * t / 2)
  )
  np.testing.assert_allclose(process.rate(t.astype(np.float32)), slope, rtol=1e-6)
  assert float(process.alpha(jnp.float32(0))) == 1
  assert float(process.alpha(jnp.float32(1))) == pytest.approx(epsilon, abs=1e-7)


def test_times_are_one_per_stratum():
  t = np.asarray(masking.times(KEYS(100), jnp.arange(100), 100, least=0.2))
  stratum = (1 - t) / 0.8 * 100
  np.testing.assert_array_equal(np.floor(stratum), np.arange(100))
  assert np.std(stratum % 1) > 0.2  # each drawn on its own


def test_times_are_never_zero(monkeypatch):
  """The last of 512 draws next to 0, at which 1 / t would not be finite."""
  almost_one = np.nextafter(np.float32(1), np.float32(0))
  monkeypatch.setattr(jax.random, 'uniform', lambda key: jnp.asarray(almost_one))
  assert masking.times(KEYS(512), jnp.arange(512), 512, least=0.0).min() > 0


def test_masks():
  probability = jnp.array([0.0, 0.3, 1.0])
  mask = np.asarray(masking.draw_mask(KEYS(3), probability, 10_000))
  assert mask[0].sum() == 0 and mask[2].all()
  assert abs(mask[1].mean() - 0.3) < 4 * (0.21 / 10_000) ** 0.5
  count = jnp.arange(1, 4).repeat(2000)
  exactly = np.asarray(masking.draw_exactly(KEYS(6000), count, 4))
  np.testing.assert_array_equal(exactly.sum(1), count)
  np.testing.assert_allclose(
    exactly.reshape(3, 2000, 4).mean(1), np.arange(1, 4)[:, None] / 4 * np.ones(4), atol=0.05
  )


def test_masked_loss_of_a_denoiser():
  """Against logits written out. A first token that is given, like every unmasked one, matters to
  the others and costs nothing."""
  config = tiny.model_config(family='mdlm', num_layers=1, first_token='given', length=17)
  model, params = tiny.init(config, scale=1.1)  # larger ones saturate the attention
  text = jax.random.randint(jax.random.key(3), (2, 17), 0, tiny.VOCAB)
  is_masked = masking.draw_mask(KEYS(2), jnp.array([0.3, 0.7]), 16)
  weights = jnp.array([1.5, 0.5])

  @jax.jit
  def loss(text):
    return masking.masked_loss(model, params, text, is_masked, weights, scale=0.1, loss_chunk=5)

  @jax.jit
  def log_p(text):
    tokens = jnp.where(is_masked, -1, text[:, 1:])
    hidden = model.apply({'params': params}, tokens, first_B=text[:, 0])
    return jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits'))

  total, nats = loss(text)
  chosen = np.take_along_axis(np.asarray(log_p(text)), np.asarray(text)[:, 1:, None], -1)[..., 0]
  expected = -(chosen * is_masked).sum(1) * weights
  np.testing.assert_allclose(nats, expected, rtol=1e-5)
  np.testing.assert_allclose(total, 0.1 * expected.sum(), rtol=1e-5)
  changed = text.at[:, 0].set((text[:, 0] + 1) % tiny.VOCAB)
  assert (np.abs(loss(changed)[1] - nats) > 1e-3).all()


def test_toy_tables_are_consistent():
  """Any order of exact conditionals gives the text's own probability."""
  np.testing.assert_allclose(toy.any_order(toy.exact()), -np.log(toy.PROBABILITY), rtol=1e-5)
  assert (toy.any_order(toy.arbitrary()) > 0).all()

"""BD3-LM's loss and bound are those of its paper; its ends are the AR model and MDLM."""

import functools
import math

import block_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.bd3lm import BD3LM

SETTINGS = DiffusionConfig(block_length=2, clip_low=0.3, clip_high=0.8)
METHOD, TEXTS = BD3LM(), jnp.asarray(toy.TEXTS)


def objective(settings, logits, text, u, keys):
  return np.asarray(
    METHOD.objective(
      toy.network(), jnp.asarray(logits), jnp.asarray(text), u, keys, settings, scale=1.0,
      loss_chunk=2,
    )[1],
    np.float64,
  )  # fmt: skip


def times(u):
  """Of both blocks: half a turn apart, in (0, 1]."""
  return np.stack([u, np.where(u > 0.5, u - 0.5, u + 0.5)], axis=1)


def test_training_loss_is_its_formula():
  """sum over blocks of 1/t sum over masked of -log p(x_n | x_t^b, x^<b), t in U[beta, omega]."""
  u = np.linspace(0.03, 1, 16)
  keys = jax.random.split(jax.random.key(0), 16)
  share = np.repeat(0.3 + 0.5 * times(u), 2, axis=1)
  draws = np.stack([jax.random.uniform(key, (4,)) for key in keys])
  nll = toy.nll(toy.arbitrary(), (draws < share)[:, None])[:, 0]
  expected = (nll / share).sum(1)
  found = objective(SETTINGS, toy.arbitrary(), toy.TEXTS, jnp.asarray(u, jnp.float32), keys)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def published_bound(logits):
  """Per text, sum over blocks of the integral over t of 1/t E[...], by quadrature."""
  x, w = np.polynomial.legendre.leggauss(16)
  t, w = (x + 1) / 2, w / 2
  nll = toy.nll(logits, np.broadcast_to(toy.MASKS, (16, *toy.MASKS.shape)))
  total = np.zeros(16)
  for s in range(2):
    own = slice(2 * s, 2 * s + 2)
    # The other block's masks change nothing in this one: each of them once.
    first = ~toy.MASKS[:, 2 - 2 * s :][:, :2].any(1)
    masks = toy.MASKS[first][:, own]
    count = masks.sum(1)
    chance = t[:, None] ** count * (1 - t[:, None]) ** (2 - count)
    total += np.einsum('q,qm,xm->x', w / t, chance, nll[:, first, own].sum(-1))
  return total


def test_bound_is_its_formula(monkeypatch):
  """Its expectation over counts and masks, of a network that is no distribution's conditionals."""
  counts, pairs = np.array([[1, 2], [2, 1]]), []
  for u, (a, b) in zip((0.25, 0.75), counts, strict=True):
    assert (np.ceil(2 * times(np.array([u]))) == [a, b]).all()
    for mask in toy.MASKS:
      if mask[:2].sum() == a and mask[2:].sum() == b:
        pairs.append((u, mask, 0.5 / math.comb(2, a) / math.comb(2, b)))
  u, masks, weight = (np.array(x) for x in zip(*pairs, strict=True))
  text = np.repeat(toy.TEXTS, len(u), axis=0)
  is_masked = jnp.asarray(np.tile(masks, (16, 1)))
  monkeypatch.setattr(masking, 'draw_in_blocks', lambda *_: is_masked)
  settings = METHOD.of_the_bound(SETTINGS)
  u_B = jnp.asarray(np.tile(u, 16), jnp.float32)
  keys = jax.random.split(jax.random.key(0), len(text))
  found = objective(settings, toy.arbitrary(), text, u_B, keys).reshape(16, -1) @ weight
  np.testing.assert_allclose(found, published_bound(toy.arbitrary()), rtol=1e-5)


def test_bound_is_unbiased_and_exact_conditionals_reach_the_likelihood():
  """Over 300 keys of every text, clipped in training or not: 4.5 standard errors."""
  text = np.repeat(toy.TEXTS, 300, axis=0)
  keys = jax.random.split(jax.random.key(2), len(text))
  run = jax.jit(
    functools.partial(METHOD.bound, toy.network(), settings=SETTINGS, samples=4, loss_chunk=4)
  )
  for logits, expected in (
    (toy.exact(), -np.log(toy.PROBABILITY)),
    (toy.arbitrary(), published_bound(toy.arbitrary())),
  ):
    nats = np.asarray(run(jnp.asarray(logits), jnp.asarray(text), keys), np.float64)
    nats = nats.reshape(16, 300)
    error = nats.mean(1) - expected
    assert (np.abs(error) < 4.5 * nats.std(1) / 300**0.5 + 1e-5).all()
    assert nats.std(1).max() > 0.01


@pytest.mark.parametrize(('num_slots', 'length'), [(12, 1), (12, 4), (11, 4), (11, 12)])
def test_draws_of_blocks(num_slots, length):
  """Every block has a time of its own; of a block that begins with a given token a slot less."""
  settings = DiffusionConfig(block_length=length, clip_low=0.2, clip_high=0.6)
  keys, u = jax.random.split(jax.random.key(1), 512), (jnp.arange(512) + 0.5) / 512
  training = METHOD.draw(u, keys, num_slots, settings)
  block = (np.arange(num_slots) + 12 - num_slots) // length
  share = 1 / np.asarray(training.weights_B)
  assert share.shape == (512, num_slots) and share.min() > 0.2 and share.max() <= 0.6
  for s in range(12 // length):
    same = share[:, block == s]
    np.testing.assert_array_equal(same, np.broadcast_to(same[:, :1], same.shape))
    # All shares alike, of every block.
    np.testing.assert_allclose(
      np.sort(same[:, 0]), 0.2 + 0.4 * (np.arange(512) + 0.5) / 512, atol=2e-3
    )
  masked = np.asarray(training.is_masked_BxN)
  np.testing.assert_allclose(masked.mean(), 0.4, atol=0.02)
  whole = METHOD.draw(u, keys, num_slots, METHOD.of_the_bound(settings))
  for s in range(12 // length):
    own = np.asarray(whole.is_masked_BxN)[:, block == s]
    count, size = own.sum(1), own.shape[1]
    assert {*count.tolist()} == {*range(1, size + 1)}
    np.testing.assert_allclose(np.asarray(whole.weights_B)[:, block == s][:, 0], size / count)
    np.testing.assert_allclose(own.mean(0), (size + 1) / 2 / size, atol=0.1)


def test_every_field_matters():
  keys, u = jax.random.split(jax.random.key(1), 64), jnp.linspace(0.1, 1, 64)
  draw = lambda **how: METHOD.draw(u, keys, 4, DiffusionConfig(**({'block_length': 2} | how)))
  base = draw()
  for change in ({'block_length': 4}, {'clip_low': 0.1}, {'clip_high': 0.6}):
    assert (draw(**change).weights_B != base.weights_B).any(), change

"""Chunked cross-entropy equals the plain one and holds no `[B, N, V]` logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.objectives.cross_entropy import weighted_nll


def plain(hidden, embedding, targets, weights, vocab_size):
  log_p = jax.nn.log_softmax((hidden @ embedding.T)[..., :vocab_size])
  return -jnp.sum(weights * jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0])


def problem(batch=3, positions=10, vocab=13, padded=16, width=8):
  keys = jax.random.split(jax.random.key(0), 4)
  return (
    jax.random.normal(keys[0], (batch, positions, width)),
    jax.random.normal(keys[1], (padded, width)),
    jax.random.randint(keys[2], (batch, positions), 0, vocab),
    jax.random.uniform(keys[3], (batch, positions)),
    vocab,
  )


@pytest.mark.parametrize('chunk', [1, 3, 10, 64])
def test_equals_plain(chunk):
  hidden, embedding, targets, weights, vocab = problem()
  ours = lambda h, e: 3 * weighted_nll(h, e, targets, weights, vocab, chunk)[0]
  theirs = lambda h, e: 3 * plain(h, e, targets, weights, vocab)
  value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, embedding)
  expected, expected_gradients = jax.value_and_grad(theirs, (0, 1))(hidden, embedding)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for got, want in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(got, want, atol=2e-6 * np.abs(want).max())
  assert (gradients[1][vocab:] == 0).all()
  # Without a gradient the same number comes out.
  np.testing.assert_allclose(ours(hidden, embedding), expected, rtol=1e-6)


def test_nats_per_position():
  hidden, embedding, targets, weights, vocab = problem()
  _, nll = weighted_nll(hidden, embedding, targets, weights, vocab, 3)
  log_p = jax.nn.log_softmax((hidden @ embedding.T)[..., :vocab])
  expected = -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)[..., 0]
  np.testing.assert_allclose(nll, expected, rtol=1e-5)

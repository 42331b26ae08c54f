"""Chunked cross-entropy equals the plain one and holds no `[B, N, V]` logits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.hardware import device
from armd_jax.objectives import cross_entropy
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


@pytest.mark.parametrize('chunk', [0, 1, 3, 10, 64])
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


def test_equals_plain_as_gpus_compute_it():
  with device.compiling_for(device.HOPPER):
    test_equals_plain(3)


def test_one_reduction_finds_the_largest_and_the_sum():
  x = np.random.default_rng(0).normal(0, 30, (2, 5, 97)).astype(np.float32)
  x[0, :, 60:] = -np.inf
  top, total = jax.jit(cross_entropy.top_and_sum_at_once)(x)
  np.testing.assert_array_equal(top, x.max(-1))
  expected = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True)).sum(-1)
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  # One of several devices may hold nothing but the vocabulary's padding.
  top, total = cross_entropy.top_and_sum_at_once(np.full((3, 7), -np.inf, np.float32))
  assert (top == -np.inf).all() and (total == 0).all()


def _largest_logits(chunk, batch=2, positions=5000):
  loss = lambda *args: weighted_nll(*args, 16, chunk)[0]
  shapes = (batch, positions, 8), (16, 8), (batch, positions), (batch, positions)
  dtypes = jnp.float32, jnp.float32, jnp.int32, jnp.float32
  arguments = map(jax.ShapeDtypeStruct, shapes, dtypes)
  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(*arguments)
  (scan,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'scan')
  made = [v.aval.shape for eqn in scan.params['jaxpr'].eqns for v in eqn.outvars]
  return max(math.prod(shape) // 16 for shape in made if shape[-1:] == (16,))


def test_chunks_of_a_device_are_as_large_as_rows_at_once():
  """Whatever the number of sequences; and they are as even as whole numbers can be."""
  assert _largest_logits(0) == 2 * 1667  # 5000 positions in 3 chunks of at most 4096 / 2
  assert _largest_logits(0, batch=5000, positions=3) == 5000
  assert _largest_logits(300) == 2 * 295  # 17 chunks


def test_nats_per_position():
  hidden, embedding, targets, weights, vocab = problem()
  _, nll = weighted_nll(hidden, embedding, targets, weights, vocab, 3)
  log_p = jax.nn.log_softmax((hidden @ embedding.T)[..., :vocab])
  expected = -np.take_along_axis(np.asarray(log_p), np.asarray(targets)[..., None], -1)[..., 0]
  np.testing.assert_allclose(nll, expected, rtol=1e-5)

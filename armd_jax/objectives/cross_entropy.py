"""Cross-entropy of a tied output layer without ever holding `[B, N, V]` logits.

Positions are walked in chunks. The gradient of a weighted sum of losses is known as soon as the
logits are, so the forward pass computes it chunk by chunk and the backward pass only scales it: no
logits are kept and none are computed twice. On a mesh every device has logits of its own sequences
and its own part of the vocabulary only.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from armd_jax.hardware import device
from armd_jax.parallel import axes

Array = jax.Array

# Of a device. Every chunk reads and writes the float32 gradient of the embedding and reads the
# embedding: beside a GPT-2's logits of so many rows that is little.
ROWS_AT_ONCE = 4096


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def weighted_nll(
  hidden_BxNxE: Array,
  embedding_VxE: Array,
  targets_BxN: Array,
  weights_BxN: Array,
  vocab_size: int,
  chunk: int,
  kind: str = 'cross_entropy',
) -> tuple[Array, Array]:
  """Sum over positions of `weight * -log softmax(hidden embedding^T)[target]`.

  With `kind='score_entropy'` a position costs `mean_v e^{x_v} - 1 - (x_target - log V)` instead,
  which is the cross-entropy where logits x have `mean_v e^{x_v} = 1`, and more elsewhere (SEDD).

  Args:
    hidden_BxNxE: rows in the compute dtype.
    embedding_VxE: float32, V padded to a multiple of something or not.
    targets_BxN: int32 in 0..vocab_size-1.
    weights_BxN: float32; no gradient flows to them.
    vocab_size: entries of V that are real; the others take no part.
    chunk: positions per sequence whose logits exist at once.
    kind: 'cross_entropy' or 'score_entropy'.
  Returns:
    float32 scalar in nats, and nll_BxN in nats per position, through which no gradient flows.
  """
  total, nll_BxN, _ = _walk(
    hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN, vocab_size, chunk, kind,
    with_gradient=False,
  )  # fmt: skip
  return total, nll_BxN


def _forward(hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN, vocab_size, chunk, kind):
  total, nll_BxN, gradients = _walk(
    hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN, vocab_size, chunk, kind,
    with_gradient=True,
  )  # fmt: skip
  return (total, nll_BxN), gradients


def _backward(vocab_size, chunk, kind, gradients, cotangents):
  del vocab_size, chunk, kind
  # The forward pass has multiplied by everything else already; nll_BxN has no gradient.
  scale, _ = cotangents
  hidden_BxNxE, embedding_VxE = gradients
  hidden_BxNxE = (hidden_BxNxE * scale).astype(hidden_BxNxE.dtype)
  return hidden_BxNxE, embedding_VxE * scale, None, None


weighted_nll.defvjp(_forward, _backward)


def _walk(
  hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN, vocab_size, chunk, kind, *, with_gradient
):
  """Total, nll_BxN and, if asked for, d total / d hidden and d total / d embedding."""
  rows = ('batch', None)
  walk = axes.split(
    functools.partial(_walk_part, vocab_size, chunk, kind, with_gradient),
    ((*rows, None), ('vocab', 'embed'), rows, rows),
    ((), rows, ((*rows, None), ('vocab', 'embed')) if with_gradient else None),
  )
  return walk(hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN)


def _top_and_sum(logits_BxCxV):
  """The largest logit of any device, and the sum of `e^(logit - largest)` over this one's."""
  if device.current().platform == 'gpu':
    my_top_BxC, sum_BxC = top_and_sum_at_once(logits_BxCxV)
    top_BxC = axes.largest(my_top_BxC, 'vocab')
    return top_BxC, sum_BxC * jnp.exp(my_top_BxC - top_BxC)
  top_BxC = axes.largest(jnp.max(logits_BxCxV, axis=-1), 'vocab')
  return top_BxC, jnp.sum(jnp.exp(logits_BxCxV - top_BxC[..., None]), axis=-1)


def top_and_sum_at_once(x: Array) -> tuple[Array, Array]:
  """`top = max(x)` and `sum(e^(x - top))` over the last axis, reading x once.

  For GPUs, which wait for memory here, and would read it twice for two reductions. TPUs find the
  largest while they multiply; a CPU computes the exponentials of two reductions faster. Of nothing
  but -inf, the sum is 0.

  Args:
    x: float32, without inf or nan.
  """

  def merge(a, b):
    (top_a, sum_a), (top_b, sum_b) = a, b
    top = jnp.maximum(top_a, top_b)
    # Both tops may be -inf, and no distance apart.
    less = jnp.where(top == -jnp.inf, 0, jnp.exp(jnp.minimum(top_a, top_b) - top))
    return top, jnp.where(top_a < top_b, sum_a * less + sum_b, sum_a + sum_b * less)

  ones = jnp.where(x == -jnp.inf, 0, jnp.ones_like(x))
  return jax.lax.reduce((x, ones), (-jnp.inf, 0.0), merge, (x.ndim - 1,))


def _walk_part(
  vocab_size, chunk, kind, with_gradient, hidden_BxNxE, embedding_VxE, targets_BxN, weights_BxN
):
  """`_walk` of one device: its sequences, and V its part of the vocabulary.

  Per chunk, devices exchange a few numbers per position. The embedding is gathered once, and both
  gradients are added up once, after the last chunk.
  """
  batch, num_positions = targets_BxN.shape
  num_chunks = -(-num_positions // (chunk or max(1, ROWS_AT_ONCE // batch)))
  # Evenly, so that few positions are padding.
  chunk = -(-num_positions // num_chunks)
  # Cast before it travels: half the bytes of float32.
  matrix_VxE = axes.gather(embedding_VxE.astype(hidden_BxNxE.dtype), 'embed', axis=1)
  index_V = jnp.arange(len(matrix_VxE)) + axes.first_index('vocab', len(matrix_VxE))
  is_real_V = index_V < vocab_size

  def split(x):
    tail = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, ((0, 0), (0, num_chunks * chunk - num_positions), *tail))
    return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]), 1, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :num_positions]

  def walk(gradient_VxE, xs):
    hidden_BxCxE, targets_BxC, weights_BxC = xs
    logits_BxCxV = jnp.einsum(
      'bce,ve->bcv', hidden_BxCxE, matrix_VxE, preferred_element_type=jnp.float32
    )
    logits_BxCxV = jnp.where(is_real_V, logits_BxCxV, -jnp.inf)
    is_target_BxCxV = index_V == targets_BxC[..., None]
    top_BxC, sum_BxC = _top_and_sum(logits_BxCxV)
    # A masked sum and no lookup: on devices that do not hold the target it is 0, and the total over
    # devices is right.
    chosen_BxC = jnp.sum(jnp.where(is_target_BxCxV, logits_BxCxV, 0), axis=-1)
    # Together, since for so few numbers an exchange costs its latency.
    sum_BxC, chosen_BxC = axes.total(jnp.stack([sum_BxC, chosen_BxC]), 'vocab')
    log_total_BxC = top_BxC + jnp.log(sum_BxC)
    if kind == 'score_entropy':
      # What cross-entropy normalises by is V here, and its own distance from V costs.
      log_size_BxC = jnp.full_like(log_total_BxC, math.log(vocab_size))
      nll_BxC = jnp.expm1(log_total_BxC - log_size_BxC) + log_size_BxC - chosen_BxC
      log_total_BxC = log_size_BxC
    else:
      nll_BxC = log_total_BxC - chosen_BxC
    if not with_gradient:
      return gradient_VxE, (nll_BxC, None)
    # The gradient of the loss by the logits, for both kinds.
    error_BxCxV = jnp.exp(logits_BxCxV - log_total_BxC[..., None]) - is_target_BxCxV
    error_BxCxV = (error_BxCxV * weights_BxC[..., None]).astype(hidden_BxCxE.dtype)
    gradient_BxCxE = jnp.einsum('bcv,ve->bce', error_BxCxV, matrix_VxE)
    gradient_VxE += jnp.einsum(
      'bcv,bce->ve', error_BxCxV, hidden_BxCxE, preferred_element_type=jnp.float32
    )
    return gradient_VxE, (nll_BxC, gradient_BxCxE)

  # float32: in bfloat16 a sum over many chunks would lose what the late ones add.
  carry = axes.zeros(matrix_VxE.shape, jnp.float32) if with_gradient else None
  xs = tuple(map(split, (hidden_BxNxE, targets_BxN, weights_BxN)))
  gradient_VxE, (nll_CxBxC, gradient_CxBxCxE) = jax.lax.scan(walk, carry, xs)
  nll_BxN = join(nll_CxBxC)
  total = axes.total(jnp.sum(nll_BxN * weights_BxN), 'batch')
  if not with_gradient:
    return total, nll_BxN, None
  hidden_gradient = axes.total(join(gradient_CxBxCxE), 'vocab')
  return total, nll_BxN, (hidden_gradient, axes.total_part(gradient_VxE, 'embed', 'batch', axis=1))

"""A source of which everything is known: 27 texts of 3 tokens, and networks that are tables."""

from __future__ import annotations

import functools
import itertools
import types

import jax.numpy as jnp
import numpy as np

from armd_jax.models.denoiser import MASK

N, V = 3, 3
TEXTS = np.array(list(itertools.product(range(V), repeat=N)))
PROBABILITY = np.random.RandomState(0).dirichlet(np.full(V**N, 0.7))
PROBABILITY = 0.9 * PROBABILITY + 0.1 / V**N
MASKS = np.array(list(itertools.product([False, True], repeat=N)))
_PLACES = (V + 1) ** np.arange(N)


class TableNetwork:
  """Stands in for a `Denoiser`: its parameters are the logits of every partly masked text.

  Attributes:
    config: the fields that objectives and samplers read.
  """

  vocab_size = V

  def __init__(self):
    self.config = types.SimpleNamespace(first_token='predicted', num_slots=N)

  def apply(self, variables, *args, method=None, rngs=None):
    assert rngs is None
    if method == 'embedding':
      return jnp.eye(V)
    if method == 'logits':
      return args[0]
    tokens_BxN = args[0]
    code_B = jnp.sum(jnp.where(tokens_BxN == MASK, V, tokens_BxN) * _PLACES, axis=1)
    return variables['params'][code_B]


@functools.cache
def network() -> TableNetwork:
  """One for all, so that what is compiled for it is found again."""
  return TableNetwork()


def table(conditional) -> np.ndarray:
  """float32 logits from `conditional(tokens_N) -> log p [N, V]`, for `TableNetwork`."""
  logits = np.zeros(((V + 1) ** N, N, V), np.float32)
  for tokens in itertools.product(range(V + 1), repeat=N):
    logits[np.dot(tokens, _PLACES)] = conditional(np.array(tokens))
  return logits


@functools.cache
def exact() -> np.ndarray:
  """The table of the source's own conditionals."""

  def conditional(tokens):
    weight = PROBABILITY * ((tokens == V) | (tokens == TEXTS)).all(1)
    p = np.array([[weight[TEXTS[:, n] == v].sum() for v in range(V)] for n in range(N)])
    # An unmasked slot is certain, which costs nothing and is never read.
    return np.log(np.maximum(p / weight.sum(), 1e-30))

  return table(conditional)


@functools.cache
def arbitrary() -> np.ndarray:
  """A table that is no distribution's: what a network says before it has learnt anything."""
  rng = np.random.RandomState(1)
  return table(lambda tokens: rng.normal(size=(N, V)))


def nll(logits: np.ndarray, masks=MASKS) -> np.ndarray:
  """-log p of every token of every text under every mask, [texts, masks, N], float64; 0 where the
  token is not masked."""
  z = np.where(masks[None], V, TEXTS[:, None])
  x = logits[z @ _PLACES].astype(np.float64)
  log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
  chosen = np.take_along_axis(log_p, np.broadcast_to(TEXTS[:, None, :, None], (*z.shape, 1)), -1)
  return -chosen[..., 0] * masks


def any_order(logits: np.ndarray) -> np.ndarray:
  """Mean over all 6 orders of the sequential negative log-likelihood, per text."""
  total = np.zeros(V**N)
  orders = list(itertools.permutations(range(N)))
  for order in orders:
    for step, n in enumerate(order):
      mask = np.ones((1, N), bool)
      mask[0, list(order[:step])] = False
      total += nll(logits, mask)[:, 0, n]
  return total / len(orders)


def enumerated(objective, probability_of_mask, u, weight_of_u, monkeypatch) -> np.ndarray:
  """The expectation of an objective over its times and masks, per text.

  Args:
    objective: `(text_BxN, u_B) -> nats_B`, which draws masks by `masking.draw_mask` or
      `masking.draw_exactly`; they get all masks in turn instead.
    probability_of_mask: `(u_Q, count_M) -> [Q, M]`, of one mask with so many masked slots.
    u, weight_of_u: nodes and weights, [Q].
    monkeypatch: of pytest.
  """
  from armd_jax.objectives import masking

  shape = (len(TEXTS), len(u), len(MASKS))
  spread = lambda x, axis: np.broadcast_to(
    np.expand_dims(x, [a for a in range(3) if a != axis]), shape + x.shape[1:]
  ).reshape(-1, *x.shape[1:])
  is_masked = jnp.asarray(spread(MASKS, 2))
  monkeypatch.setattr(masking, 'draw_mask', lambda *args: is_masked)
  monkeypatch.setattr(masking, 'draw_exactly', lambda *args: is_masked)
  nats = objective(jnp.asarray(spread(TEXTS, 0)), jnp.asarray(spread(u, 1), jnp.float32))
  weight = weight_of_u[:, None] * probability_of_mask(u, MASKS.sum(1))
  return (np.asarray(nats, np.float64).reshape(shape) * weight).sum((1, 2))


def independent(masked, count):
  """Probability of one mask with `count` masked slots when each is masked with this probability."""
  masked = np.asarray(masked, np.float64)[:, None]
  return masked**count * (1 - masked) ** (N - count)


def quadrature(points=24):
  """Gauss-Legendre nodes and weights on (0, 1)."""
  x, w = np.polynomial.legendre.leggauss(points)
  return (x + 1) / 2, w / 2

"""A source of 16 texts in two blocks of two tokens, and a network of sets that is a table."""

from __future__ import annotations

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax.models.denoiser import MASK

N, V, L = 4, 2, 2
BLOCKS = N // L
TEXTS = np.array(list(itertools.product(range(V), repeat=N)))
PROBABILITY = np.random.RandomState(3).dirichlet(np.full(V**N, 0.7))
PROBABILITY = 0.9 * PROBABILITY + 0.1 / V**N
MASKS = np.array(list(itertools.product([False, True], repeat=N)))


class TableNetwork:
  """Stands in for a `SetDenoiser`: its parameters are the logits of every partly masked block after
  every text before it, `[blocks, V^N, (V + 1)^L, L, V]`.

  Attributes:
    config: the fields that objectives and samplers read.
  """

  vocab_size = V

  def __init__(self):
    self.config = types.SimpleNamespace(first_token='predicted', num_slots=N, set_length=L)

  def apply(self, variables, *args, method='__call__', rngs=None, **options):
    assert rngs is None
    return getattr(self, f'_{method}')(variables.get('params'), *args, **options)

  def _embedding(self, _):
    return jnp.eye(V)

  def _logits(self, _, hidden):
    return hidden

  def ___call__(self, table, tokens_BxN, noise_B, first_B, length_B, index_B, clean_BxN):
    assert noise_B is first_B is length_B is None
    rows = [
      self._look_up(table, s, clean_BxN, tokens_BxN[:, s * L :][:, :L]) for s in range(BLOCKS)
    ]
    return jnp.concatenate(rows, axis=1)

  def _empty_caches(self, _, batch, rows):
    return jnp.full((batch, rows), MASK)

  def _extend(self, table, clean, noised, caches, offset_B=None):
    """Caches hold the tokens themselves."""
    if clean is not None:
      caches = jax.lax.dynamic_update_slice_in_dim(caches, clean.ids_BxW, offset_B[0], axis=1)
    if noised is None:
      return None, caches
    block = noised.length_BxW[0, 0] // L
    return self._look_up(table, block, caches, noised.ids_BxW), caches

  def _look_up(self, table, block, clean_BxK, own_BxL):
    seen_BxN = jnp.where(jnp.arange(N) < block * L, clean_BxK[:, :N], 0)
    own_BxL = jnp.where(own_BxL == MASK, V, own_BxL)
    return table[block, seen_BxN @ V ** np.arange(N), own_BxL @ (V + 1) ** np.arange(L)]


@functools.cache
def network() -> TableNetwork:
  """One for all, so that what is compiled for it is found again."""
  return TableNetwork()


def _table(conditional):
  logits = np.zeros((BLOCKS, V**N, (V + 1) ** L, L, V), np.float32)
  for s in range(BLOCKS):
    for before in itertools.product(range(V), repeat=s * L):
      for own in itertools.product(range(V + 1), repeat=L):
        at = np.dot(before, V ** np.arange(s * L)) if s else 0
        logits[s, at, np.dot(own, (V + 1) ** np.arange(L))] = conditional(s, before, np.array(own))
  return logits


@functools.cache
def exact() -> np.ndarray:
  """The table of the source's own conditionals."""

  def conditional(s, before, own):
    block = TEXTS[:, s * L :][:, :L]
    weight = (
      PROBABILITY * (TEXTS[:, : s * L] == before).all(1) * ((own == V) | (own == block)).all(1)
    )
    p = np.array([[weight[block[:, n] == v].sum() for v in range(V)] for n in range(L)])
    # A token that is shown is certain, which costs nothing and is never read.
    return np.log(np.maximum(p / weight.sum(), 1e-30))

  return _table(conditional)


@functools.cache
def arbitrary() -> np.ndarray:
  """A table that is no distribution's."""
  rng = np.random.RandomState(4)
  return _table(lambda *_: rng.normal(size=(L, V)))


def nll(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
  """-log p of every token of every text under its masks, float64 [texts, masks, N]; 0 where it is
  not masked.

  Args:
    logits: a table.
    masks: bool [texts, masks, N].
  """
  found = np.zeros((*masks.shape[:2], N))
  for b, text in enumerate(TEXTS):
    for m, mask in enumerate(masks[b]):
      for s in range(BLOCKS):
        own = slice(s * L, s * L + L)
        at = text[: s * L] @ V ** np.arange(s * L)
        state = np.where(mask[own], V, text[own]) @ (V + 1) ** np.arange(L)
        x = logits[s, at, state].astype(np.float64)
        log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
        found[b, m, own] = -log_p[np.arange(L), text[own]] * mask[own]
  return found

"""Drawing tokens from logits: exact draws, temperature, nucleus (top-p) truncation."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from armd_jax.errors import UserError, check_seed, is_whole, quoted
from armd_jax.hardware import device

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How texts are drawn, checked.

  Attributes:
    seed: of all draws, from 0 to 2**32 - 1.
    temperature: 0 takes the most likely tokens; others are of 1e-6 to 1e6, where float32 neither
      makes logits equal nor infinite.
    top_p: nucleus of the distribution to draw from, in (0, 1].
    stop: id of the token before which a text ends; None: none does.
  Raises:
    UserError: naming what cannot be sampled with, and the fix.
  """

  seed: int = 0
  temperature: float = 1.0
  top_p: float = 1.0
  stop: int | None = None

  def __post_init__(self) -> None:
    check_seed(self.seed)
    number = lambda x: is_whole(x) or isinstance(x, float | np.floating)
    for name, fine, fix in (
      (
        'temperature',
        lambda x: number(x) and (x == 0 or 1e-6 <= x <= 1e6),
        '0 (most likely), or a number from 1e-6 to 1e6',
      ),
      ('top_p', lambda x: number(x) and 0 < x <= 1, 'more than 0 and at most 1'),
      (
        'stop',
        lambda x: x is None or (is_whole(x) and 0 <= x < 2**31),
        'the id of a token, or None',
      ),
    ):
      if not fine(getattr(self, name)):
        raise UserError(f'{name} is {quoted(getattr(self, name))}; write {fix}')

  def draws(self, batch: int, sequence_B: Array | np.ndarray | None = None) -> Draws:
    """As compiled functions take it, of sequences whose indices are 0.. if None."""
    sequence_B = np.arange(batch) if sequence_B is None else np.asarray(sequence_B)
    return Draws(
      seed=np.uint32(self.seed),  # type: ignore[arg-type]
      sequence_B=sequence_B.astype(np.int32),  # type: ignore[arg-type]
      temperature=np.float32(self.temperature),  # type: ignore[arg-type]
      top_p=None if self.top_p == 1 else np.float32(self.top_p),  # type: ignore[arg-type]
    )


@flax.struct.dataclass
class Draws:
  """How tokens are drawn.

  Attributes:
    seed: uint32 scalar, of all draws.
    sequence_B: int32, index of each sequence among all that are generated.
    temperature: float32 scalar >= 0; 0 takes the most likely token.
    top_p: float32 scalar in (0, 1], or None to skip the sort over the vocabulary.
    sequence_keys_B: a key of each sequence; None: made from seed and index at every step.
  """

  seed: Array
  sequence_B: Array
  temperature: Array
  top_p: Array | None = None
  sequence_keys_B: Array | None = None

  def with_keys(self) -> Draws:
    """The same draws for many steps."""
    return self.replace(sequence_keys_B=_sequence_keys(jax.random.key(self.seed), self.sequence_B))

  def slot_keys(self, slot_BxW: Array) -> Array:
    """One key per draw; see `slot_keys`."""
    draws = self if self.sequence_keys_B is not None else self.with_keys()
    return _fold_slots(draws.sequence_keys_B, slot_BxW)  # type: ignore[arg-type]


def slot_keys(key: Array, sequence_B: Array, slot_BxW: Array) -> Array:
  """One key per draw, from (seed, sequence index, slot) alone, so batching changes nothing.

  Args:
    key: key made from the seed.
    sequence_B: int32, index of each sequence among all that are generated.
    slot_BxW: int32, `[B or 1, W]`.
  Returns:
    keys_BxW.
  """
  return _fold_slots(_sequence_keys(key, sequence_B), slot_BxW)


def _sequence_keys(key: Array, sequence_B: Array) -> Array:
  return jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)


def _fold_slots(sequence_keys_B: Array, slot_BxW: Array) -> Array:
  slot_BxW = jnp.broadcast_to(slot_BxW, (len(sequence_keys_B), slot_BxW.shape[1]))
  return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(sequence_keys_B, slot_BxW)


def nucleus(logits: Array, top_p: Array) -> Array:
  """Keeps the most likely tokens up to probability `top_p`, the rest become -inf.

  A token stays if the tokens before it, in order of falling probability, hold less than `top_p`;
  the most likely token always stays.
  """
  index = jnp.argsort(-logits, axis=-1, stable=True)
  descending = jax.nn.softmax(jnp.take_along_axis(logits, index, axis=-1), axis=-1)
  before = jnp.cumsum(descending, axis=-1) - descending
  keep = (before < top_p).at[..., 0].set(True)
  # argsort of a permutation is its inverse: back to the order of the vocabulary.
  keep = jnp.take_along_axis(keep, jnp.argsort(index, axis=-1), axis=-1)
  return jnp.where(keep, logits, -jnp.inf)


def draw(
  keys_BxW: Array, logits_BxWxV: Array, temperature: Array, top_p: Array | None = None
) -> tuple[Array, Array]:
  """Draws one token per row, and returns how close the decision was.

  float32 Gumbel noise made from 23 random bits never exceeds 16, which cuts the tails and lowers
  the temperature silently; `mode='high'` draws the tails too (the same draw as
  `jax.random.categorical`).

  Args:
    keys_BxW: one key per draw.
    logits_BxWxV: float32.
    temperature: float32 scalar >= 0; 0 takes the most likely token.
    top_p: float32 scalar in (0, 1], or None to skip the sort over the vocabulary.
  Returns:
    tokens_BxW: int32.
    gap_BxW: float32, by how much the best perturbed logit exceeds the second best, in nats; errors
      below half of it cannot change the token (but may change what `top_p` cuts off).
  """
  scaled_BxWxV = logits_BxWxV / jnp.where(temperature > 0, temperature, 1.0)
  if top_p is not None:
    scaled_BxWxV = nucleus(scaled_BxWxV, top_p)
  gumbel = lambda key: jax.random.gumbel(key, logits_BxWxV.shape[-1:], mode='high')
  drawn_BxWxV = scaled_BxWxV + jax.vmap(jax.vmap(gumbel))(keys_BxW)
  perturbed_BxWxV = jnp.where(temperature > 0, drawn_BxWxV, logits_BxWxV)
  # Other devices are slower at a reduction of three arrays than at three of one.
  two_best = _two_best_at_once if device.current().platform == 'gpu' else _two_best
  best_BxW, second_BxW, tokens_BxW = two_best(perturbed_BxWxV)
  return tokens_BxW, best_BxW - second_BxW


def _two_best(x_BxWxV: Array) -> tuple[Array, Array, Array]:
  """The largest, the largest of the others, and where the first is."""
  place_BxW = jnp.argmax(x_BxWxV, axis=-1).astype(jnp.int32)
  is_first_BxWxV = jnp.arange(x_BxWxV.shape[-1]) == place_BxW[..., None]
  second_BxW = jnp.max(jnp.where(is_first_BxWxV, -jnp.inf, x_BxWxV), axis=-1)
  return jnp.max(x_BxWxV, axis=-1), second_BxW, place_BxW


def _two_best_at_once(x_BxWxV: Array) -> tuple[Array, Array, Array]:
  """The same in one reduction, which takes half of the launches."""

  def join(a: Any, b: Any) -> tuple[Array, Array, Array]:
    (best_a, second_a, place_a), (best_b, second_b, place_b) = a, b
    is_a = (best_a > best_b) | ((best_a == best_b) & (place_a < place_b))
    second = jnp.maximum(jnp.minimum(best_a, best_b), jnp.maximum(second_a, second_b))
    return jnp.maximum(best_a, best_b), second, jnp.where(is_a, place_a, place_b)

  nothing = jnp.float32(-jnp.inf)
  place_BxWxV = jax.lax.broadcasted_iota(jnp.int32, x_BxWxV.shape, 2)
  start = nothing, nothing, jnp.int32(0)
  values = x_BxWxV, jnp.full_like(x_BxWxV, nothing), place_BxWxV
  return jax.lax.reduce(values, start, join, (2,))

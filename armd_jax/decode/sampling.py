"""Drawing tokens from logits: exact draws, temperature, nucleus (top-p) truncation."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

Array = jax.Array


@flax.struct.dataclass
class Draws:
  """How tokens are drawn.

  Attributes:
    seed: uint32 scalar, of all draws.
    sequence_B: int32, index of each sequence among all that are generated.
    temperature: float32 scalar >= 0; 0 takes the most likely token.
    top_p: float32 scalar in (0, 1], or None to skip the sort over the vocabulary.
  """

  seed: Array
  sequence_B: Array
  temperature: Array
  top_p: Array | None = None


def slot_keys(key: Array, sequence_B: Array, slot_BxW: Array) -> Array:
  """One key per draw, from (seed, sequence index, slot) alone, so batching changes nothing.

  Args:
    key: key made from the seed.
    sequence_B: int32, index of each sequence among all that are generated.
    slot_BxW: int32, `[B or 1, W]`.
  Returns:
    keys_BxW.
  """
  slot_BxW = jnp.broadcast_to(slot_BxW, (sequence_B.shape[0], slot_BxW.shape[1]))
  sequence_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_B)
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
  """Draws one token per row, and says how close it was.

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
  tokens_BxW = jnp.argmax(perturbed_BxWxV, axis=-1)
  is_chosen_BxWxV = jnp.arange(logits_BxWxV.shape[-1]) == tokens_BxW[..., None]
  best_BxW = jnp.max(perturbed_BxWxV, axis=-1)
  second_BxW = jnp.max(jnp.where(is_chosen_BxWxV, -jnp.inf, perturbed_BxWxV), axis=-1)
  return tokens_BxW.astype(jnp.int32), best_BxW - second_BxW

"""What the masked-diffusion baselines share: noise schedules, times, masks and the weighted loss.

Time t runs from 0, the text, to 1, where (nearly) all is masked. A token is masked at time t with
probability `1 - alpha(t)`, independently of the others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.models.denoiser import MASK
from armd_jax.models.params import Params
from armd_jax.objectives.cross_entropy import weighted_nll

Array = jax.Array

EPSILON = 1e-3  # alpha(1), and the least time of a training step (SEDD, MDLM, RADD)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How fast tokens are masked.

  Attributes:
    name: 'log_linear', alpha = 1 - (1 - epsilon) t (SEDD section 5, MDLM, RADD); or 'cosine',
      alpha = epsilon + (1 - epsilon) cos(pi t / 2) (MDLM appendix).
    epsilon: alpha(1), what is left of the text at the end.
  """

  name: str
  epsilon: float = EPSILON

  def alpha(self, t: Array) -> Array:
    """Probability that a token is not masked."""
    kept = {'log_linear': lambda: 1 - t, 'cosine': lambda: jnp.cos(jnp.pi / 2 * t)}[self.name]()
    return self.epsilon + (1 - self.epsilon) * kept

  def masked(self, t: Array) -> Array:
    """1 - alpha, without its rounding errors near t = 0."""
    lost = {'log_linear': lambda: t, 'cosine': lambda: 2 * jnp.sin(jnp.pi / 4 * t) ** 2}
    return (1 - self.epsilon) * lost[self.name]()

  def time(self, masked: Array) -> Array:
    """When so large a share is masked: the inverse of `masked`, at most 1."""
    lost = jnp.minimum(masked / (1 - self.epsilon), 1)
    inverse = {
      'log_linear': lambda: lost,
      'cosine': lambda: 4 / jnp.pi * jnp.arcsin(jnp.sqrt(lost / 2)),
    }
    return inverse[self.name]()

  def rate(self, t: Array) -> Array:
    """-d alpha / dt."""
    slope = {
      'log_linear': lambda: jnp.ones_like(t),
      'cosine': lambda: jnp.pi / 2 * jnp.sin(jnp.pi / 2 * t),
    }
    return (1 - self.epsilon) * slope[self.name]()


def times(keys_B: Array, index_B: Array, count: int, least: float) -> Array:
  """Low-discrepancy times: draw i of `count` is uniform in its own 1/count of [least, 1].

  MDLM appendix, after VDM. It lowers the variance of all families' losses, so all get it.

  Args:
    keys_B: one key per draw.
    index_B: int32, which of the `count` draws each is.
    count: draws that share the interval.
    least: smallest time.
  Returns:
    float32 t_B in (least, 1], and positive.
  """
  # Small numbers first: 1 - (count - 1 + u) / count would round to 0 for u near 1.
  u_B = (count - 1 - index_B) + (1 - jax.vmap(jax.random.uniform)(keys_B))
  return least + (1 - least) * u_B / count


def draw_mask(keys_B: Array, probability_B: Array, num_slots: int) -> Array:
  """bool [B, N], true with the sequence's probability, or each token's, one key per sequence."""
  u_BxN = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)
  # u is below 1, so that a probability of 1 masks every token.
  return u_BxN < _of_tokens(probability_B)


def _of_tokens(x: Array) -> Array:
  """`[B, N]`, or `[B, 1]` of what belongs to sequences."""
  return x if x.ndim == 2 else x[:, None]


def draw_exactly(keys_B: Array, count_B: Array, num_slots: int) -> Array:
  """bool [B, N] with exactly `count` true per sequence, all subsets alike."""
  rank_BxN = jax.vmap(lambda key: jax.random.permutation(key, num_slots))(keys_B)
  return rank_BxN < count_B[:, None]


def draw_in_blocks(keys_B: Array, count_BxS: Array, length: int, num_slots: int) -> Array:
  """bool [B, N] with exactly `count` true in each of S blocks of `length` slots, all subsets alike.

  Of the first block the first slots are missing, if there are fewer than S blocks of them.
  """
  missing = count_BxS.shape[1] * length - num_slots
  u_BxN = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)
  u_BxM = jnp.pad(u_BxN, ((0, 0), (missing, 0)), constant_values=2)
  u_BxSxL = u_BxM.reshape(*count_BxS.shape, length)
  # argsort of a permutation is its inverse: the rank of each.
  rank_BxSxL = jnp.argsort(jnp.argsort(u_BxSxL, axis=-1), axis=-1)
  return (rank_BxSxL < count_BxS[..., None]).reshape(u_BxM.shape)[:, missing:]


def masked_loss(
  model: Any,
  params: Params,
  text_BxN: Array,
  is_masked_BxN: Array,
  weights_B: Array,
  *,
  scale: float,
  loss_chunk: int,
  noise_B: Array | None = None,
  length_B: Array | None = None,
  dropout_key: Array | None = None,
  index_B: Array | None = None,
  kind: str = 'cross_entropy',
  weight_of_shown: float = 0.0,
  reads_clean: bool = False,
) -> tuple[Array, Array]:
  """Weighted loss of the masked tokens; the others cost nothing (MDLM's carry-over), unless they
  are given a weight.

  Args:
    model, params: a `Denoiser`.
    text_BxN: int32 ids; with `first_token='given'` the first is given and never masked, so that
      a mask has one slot less.
    is_masked_BxN: bool.
    weights_B: float32, of each sequence's sum over masked tokens; or of every token, `[B, N]`.
    scale: of the returned total, like 1 / (sequences x slots).
    loss_chunk: slots per sequence whose logits exist at once.
    noise_B: what the network reads, see `Denoiser`.
    length_B: int32, tokens of each text; None: all.
    dropout_key: turns dropout on.
    index_B: int32, index of each sequence in the whole batch, which its dropout depends on.
    kind: see `weighted_nll`.
    weight_of_shown: of every token that is not masked.
    reads_clean: whether the network reads the text, too, see `SetDenoiser`.
  Returns:
    `scale` times the sum over sequences, and nats_B of each, through which no gradient flows.
  """
  first_B = None
  if model.config.first_token == 'given':
    first_B, text_BxN = text_BxN[:, 0], text_BxN[:, 1:]
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  tokens_BxN = jnp.where(is_masked_BxN, MASK, text_BxN)
  beside = {'clean_BxN': text_BxN} if reads_clean else {}
  hidden_BxNxE = model.apply(
    {'params': params}, tokens_BxN, noise_B, first_B, length_B, index_B, rngs=rngs, **beside
  )
  embedding_VxE = model.apply({'params': params}, method='embedding')
  # A token of weight 0 is never read: what the network predicts in its place does not matter.
  weights_BxN = jnp.where(is_masked_BxN, _of_tokens(weights_B), weight_of_shown)
  total, loss_BxN = weighted_nll(
    hidden_BxNxE,
    embedding_VxE,
    text_BxN,
    weights_BxN * scale,
    model.vocab_size,
    loss_chunk,
    kind,
  )
  return total, jnp.sum(weights_BxN * loss_BxN, axis=1)

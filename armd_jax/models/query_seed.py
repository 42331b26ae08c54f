"""The query seed G^0: what a query row holds before the first layer (paper eq. 6).

  prefix          eq. 6: a linear attention, by position, over the content of earlier blocks
  mask_embedding  one learned vector for all slots; only RoPE tells them apart
  shift           the latest content row of earlier blocks, at that row's position: on left-to-right
                  orders the network is an AR model (the paper's rejected alternative)
  warm            `shift` plus a learned share of `prefix`, none at the start (our choice): how an
                  AR model's weights become an ARMD's

Nothing of a slot's own block may enter its seed: no later layer could take it out again.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.models import prefix_aggregation
from armd_jax.models.rows import Rows
from armd_jax.models.vocabulary import Vocabulary

Array = jax.Array


class Seed(NamedTuple):
  """G^0 and what comes with it."""

  # The query rows, in the compute dtype.
  g_BxWxE: Array
  # Where RoPE places them: at their slots, or where the rows that they copy are.
  position_BxW: Array
  # float32, the state of the prefix aggregation after this pass; None without a cache.
  aggregate_BxPxE: Array | None


class MaskEmbedding(nn.Module):
  """The seed of masked diffusion: the same vector wherever a token is missing."""

  config: ModelConfig

  def setup(self):
    self.mask_E = self.param('mask', nn.initializers.normal(0.02), (self.config.embed_dim,))

  def __call__(
    self, x_BxWxE: Array, rows: Rows, aggregate_BxPxE: Array | None, vocabulary: Vocabulary
  ) -> Seed:
    del vocabulary
    g_BxWxE = jnp.broadcast_to(self.mask_E, x_BxWxE.shape).astype(self.config.dtype)
    return Seed(g_BxWxE, rows.query_position_BxW, aggregate_BxPxE)


class Shift(nn.Module):
  """The seed of an AR model."""

  config: ModelConfig

  def __call__(
    self, x_BxWxE: Array, rows: Rows, aggregate_BxPxE: Array | None, vocabulary: Vocabulary
  ) -> Seed:
    del vocabulary
    return Seed(*_latest(x_BxWxE, rows), aggregate_BxPxE)


class Prefix(nn.Module):
  """Paper eq. 6."""

  config: ModelConfig

  def setup(self):
    c = self.config
    if c.position_rows == 'learned':
      self.pe_table = self.param('pe', nn.initializers.normal(1.0), (c.length + 1, c.position_dim))

  def __call__(
    self, x_BxWxE: Array, rows: Rows, aggregate_BxPxE: Array | None, vocabulary: Vocabulary
  ) -> Seed:
    del vocabulary
    g_BxWxE, aggregate_BxPxE = self.aggregate(x_BxWxE, rows, aggregate_BxPxE)
    return Seed(g_BxWxE.astype(self.config.dtype), rows.query_position_BxW, aggregate_BxPxE)

  def aggregate(self, x_BxWxE, rows, state_BxPxE):
    """g_BxWxE in float32, and the state after the pass, by the form that costs least."""
    c = self.config
    lengths_BxW = _new_lengths(rows)
    pe_q_BxWxP, pe_k_BxWxP = map(self._pe, (rows.query_position_BxW, rows.content_position_BxW))
    if rows.sees_all:
      # A step of decoding: with its own content rows in it, the state is all that a slot reads.
      state_BxPxE = prefix_aggregation.update(state_BxPxE, pe_k_BxWxP, x_BxWxE, rows.count_B)
      g_BxWxE = prefix_aggregation.read(state_BxPxE, pe_q_BxWxP)
    elif state_BxPxE is not None:
      # A prefill: the rows of this pass see different numbers of each other.
      g_BxWxE = prefix_aggregation.read(state_BxPxE, pe_q_BxWxP)
      g_BxWxE += prefix_aggregation.quadratic(pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, lengths_BxW)
      state_BxPxE = prefix_aggregation.update(state_BxPxE, pe_k_BxWxP, x_BxWxE, rows.count_B)
    elif c.query_seed_chunk:
      g_BxWxE = prefix_aggregation.chunked(
        pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, lengths_BxW, c.query_seed_chunk
      )
    else:
      g_BxWxE = prefix_aggregation.quadratic(pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, lengths_BxW)
    if c.query_seed_norm == 'rms':
      g_BxWxE *= jax.lax.rsqrt(jnp.mean(jnp.square(g_BxWxE), axis=-1, keepdims=True) + 1e-6)
    return g_BxWxE, state_BxPxE

  def _pe(self, position):
    if self.config.position_rows != 'learned':
      return prefix_aggregation.POSITION_ROWS[self.config.position_rows](
        position, self.config.position_dim
      )
    # Of unit length, as the fixed kinds are: whatever is learned, a position weighs itself by 1.
    rows = jnp.asarray(self.pe_table)[position]
    return rows * jax.lax.rsqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))


class Warm(Prefix):
  """An AR model as long as the gain is 0."""

  def setup(self):
    self.gain = self.param('gain', nn.initializers.zeros, ())
    super().setup()

  def __call__(
    self, x_BxWxE: Array, rows: Rows, aggregate_BxPxE: Array | None, vocabulary: Vocabulary
  ) -> Seed:
    g_BxWxE, aggregate_BxPxE = self.aggregate(x_BxWxE, rows, aggregate_BxPxE)
    shift_BxWxE, position_BxW = _latest(x_BxWxE, rows)
    if self.config.architecture == 'gpt2':
      # The shifted row carries the learned position of its own slot; the gain moves it to this one.
      g_BxWxE += vocabulary.at(rows.query_position_BxW) - vocabulary.at(position_BxW)
    return Seed(
      (shift_BxWxE + self.gain * g_BxWxE).astype(self.config.dtype),
      # RoPE is a rotation by any real number, so the gain moves positions continuously as well.
      position_BxW + self.gain * (rows.query_position_BxW - position_BxW),
      aggregate_BxPxE,
    )


SEEDS = {'prefix': Prefix, 'mask_embedding': MaskEmbedding, 'shift': Shift, 'warm': Warm}


def _new_lengths(rows: Rows) -> Array:
  """How many content rows of this pass each slot sees; what is cached comes from the state."""
  return rows.query_length_BxW - rows.content_offset_B[:, None]


def _latest(x_BxWxE: Array, rows: Rows) -> tuple[Array, Array]:
  """The latest content row that each slot may see, and its position."""
  batch, width, _ = x_BxWxE.shape
  latest_BxW = jnp.clip(_new_lengths(rows) - 1, 0, width - 1)
  position_BxW = jnp.broadcast_to(rows.content_position_BxW, (latest_BxW.shape[0], width))
  position_BxW = jnp.take_along_axis(position_BxW, latest_BxW, axis=1)
  latest_BxW = jnp.broadcast_to(latest_BxW, (batch, width))
  return jnp.take_along_axis(x_BxWxE, latest_BxW[..., None], axis=1), position_BxW

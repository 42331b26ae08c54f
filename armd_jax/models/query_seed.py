"""The query seed G^0: what a query row holds before the first layer (paper eq. 6).

  prefix          eq. 6: a linear attention, by position, over the content of earlier blocks
  neighbours      the content beside the slot, by offset, as far as earlier blocks hold it (our
                  choice): left differs from right, and known from unknown
  mask_embedding  one learned vector for all slots; only RoPE distinguishes them
  shift           the latest content row of earlier blocks, at that row's position: on left-to-right
                  orders the network is an AR model (the paper's rejected alternative)
  warm            the token on the slot's left, at that token's position, plus a learned share of
                  `neighbours`, none at the start (our choice): how an AR model's weights become an
                  ARMD's; each of S text streams starts as that AR model

Nothing of a slot's own block may enter its seed: no later layer could take it out again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from armd_jax.config import ModelConfig
from armd_jax.models import prefix_aggregation
from armd_jax.models.rows import Rows
from armd_jax.models.vocabulary import Vocabulary
from armd_jax.parallel import axes

Array = jax.Array


class Seed(NamedTuple):
  """G^0 and what comes with it."""

  # The query rows, in the compute dtype.
  g_BxWxE: Array
  # Where RoPE places them: at their slots, or where the rows that they copy are.
  position_BxW: Array
  # The state of the seed after this pass of the content; None for a whole sequence.
  state: Any


@flax.struct.dataclass
class Beside:
  """The state of `Neighbours`: the content by its place in the text.

  Attributes:
    x_BxTxE: content rows, where they are known.
    row_BxT: int32, which content row it is, counted in generation order.
  """

  x_BxTxE: Array
  row_BxT: Array


_NO_ROW = 2**30  # later than any row, so that no slot sees it


class MaskEmbedding(nn.Module):
  """The seed of masked diffusion: the same vector wherever a token is missing."""

  config: ModelConfig

  def setup(self):
    self.mask_E = self.param('mask', nn.initializers.normal(0.02), (self.config.embed_dim,))

  @staticmethod
  def empty_state(config: ModelConfig, batch: int) -> None:
    """Nothing is remembered."""
    del config, batch

  def __call__(self, x_BxWxE: Array, rows: Rows, state: None, vocabulary: Vocabulary) -> Seed:
    del vocabulary
    g_BxWxE = jnp.broadcast_to(self.mask_E, x_BxWxE.shape).astype(self.config.dtype)
    return Seed(g_BxWxE, rows.query_position_BxW, state)


class Shift(nn.Module):
  """The seed of an AR model."""

  config: ModelConfig

  @staticmethod
  def empty_state(config: ModelConfig, batch: int) -> None:
    """Nothing is remembered."""
    del config, batch

  def __call__(self, x_BxWxE: Array, rows: Rows, state: None, vocabulary: Vocabulary) -> Seed:
    del vocabulary
    return Seed(*_latest(x_BxWxE, rows), state)


class Prefix(nn.Module):
  """Paper eq. 6."""

  config: ModelConfig

  def setup(self):
    c = self.config
    if c.position_rows == 'learned':
      self.pe_table = self.param('pe', nn.initializers.normal(1.0), (c.length + 1, c.position_dim))

  @staticmethod
  def empty_state(config: ModelConfig, batch: int) -> Array:
    """The aggregation over no rows, float32."""
    c = config
    zeros_BxPxE = jnp.zeros((batch, c.position_dim, c.embed_dim), jnp.float32)
    return axes.constrain(zeros_BxPxE, 'batch', None, None)

  def __call__(
    self, x_BxWxE: Array, rows: Rows, state_BxPxE: Array | None, vocabulary: Vocabulary
  ) -> Seed:
    del vocabulary
    g_BxWxE, state_BxPxE = self.aggregate(x_BxWxE, rows, state_BxPxE)
    return Seed(g_BxWxE.astype(self.config.dtype), rows.query_position_BxW, state_BxPxE)

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
    return _normed(c, g_BxWxE), state_BxPxE

  def _pe(self, position):
    if self.config.position_rows == 'sinusoidal':
      return prefix_aggregation.sinusoidal(position, self.config.position_dim)
    # Of unit length, as the fixed ones are, so that a position always weighs itself by 1.
    rows = jnp.asarray(self.pe_table)[position]
    return rows * jax.lax.rsqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))


class Neighbours(nn.Module):
  """The tokens beside a slot that are known, each weighed by a learned vector of its offset.

  A token that is not known leaves a learned vector of its offset instead, so that a slot has its
  distance to what is known on either side. Text order makes this a short convolution.
  """

  config: ModelConfig

  def setup(self):
    radius, width = self.config.query_seed_radius, self.config.embed_dim

    def signs(key, shape):
      # Of other signs than its neighbours', so that offsets differ in sums.
      return jax.random.rademacher(key, shape, jnp.float32) / jnp.abs(self.offsets)[:, None]

    self.known_DxE = self.param('neighbours', signs, (2 * radius, width))
    self.unknown_DxE = self.param('unknown', nn.initializers.normal(0.02), (2 * radius, width))

  @property
  def offsets(self) -> np.ndarray:
    radius = self.config.query_seed_radius
    return np.array([d for d in range(-radius, radius + 1) if d])

  @staticmethod
  def empty_state(config: ModelConfig, batch: int) -> Beside:
    """No token is known. A margin of the radius is on either side of the text and BOS."""
    c = config
    room = c.length + 1 + 2 * c.query_seed_radius
    return Beside(
      x_BxTxE=axes.constrain(jnp.zeros((batch, room, c.embed_dim), c.dtype), 'batch', None, None),
      row_BxT=axes.constrain(jnp.full((batch, room), _NO_ROW, jnp.int32), 'batch', None),
    )

  def __call__(
    self, x_BxWxE: Array, rows: Rows, state: Beside | None, vocabulary: Vocabulary
  ) -> Seed:
    del vocabulary
    g_BxWxE, state = self.beside(x_BxWxE, rows, state)
    return Seed(g_BxWxE.astype(self.config.dtype), rows.query_position_BxW, state)

  def beside(self, x_BxWxE: Array, rows: Rows, state: Beside | None) -> tuple[Array, Beside]:
    """g_BxWxE in float32, and the state after the pass."""
    beside = self._write(state or self.empty_state(self.config, len(x_BxWxE)), x_BxWxE, rows)
    g_BxWxE = (self._of_slots if state else self._of_text)(beside, rows)
    return _normed(self.config, g_BxWxE), beside

  def _write(self, state, x_BxWxE, rows):
    """Puts the new content rows at their places in the text."""
    batch, width, _ = x_BxWxE.shape
    index_W = jnp.arange(width)
    is_real_BxW = index_W < rows.count_B[:, None]
    # Padding goes past the end, where nothing is written.
    place_BxW = jnp.where(is_real_BxW, self._place(rows.content_position_BxW), _NO_ROW)
    row_BxW = rows.content_offset_B[:, None] + index_W
    put = jax.vmap(lambda old, place_W, new: old.at[place_W].set(new, mode='drop'))
    whole = lambda array: jnp.broadcast_to(array, (batch, width))
    return Beside(
      x_BxTxE=put(state.x_BxTxE, whole(place_BxW), x_BxWxE),
      row_BxT=put(state.row_BxT, whole(place_BxW), whole(row_BxW)),
    )

  def _place(self, position):
    return position + self.config.query_seed_radius

  def _sum(self, look: Callable[[int], tuple[Array, Array]]) -> Array:
    """The sum over offsets, float32; `look` gives the x at one and whether it is known."""
    total = jnp.zeros((), jnp.float32)
    for index, offset in enumerate(self.offsets):
      x, is_known = look(int(offset))
      known = x.astype(jnp.float32) * self.known_DxE[index]
      total += jnp.where(is_known[..., None], known, self.unknown_DxE[index])
    return total

  def _of_slots(self, beside, rows):
    """For few slots: every one looks at the places beside it."""
    place_BxW = self._place(rows.query_position_BxW)
    place_BxW = jnp.broadcast_to(place_BxW, (len(beside.row_BxT), place_BxW.shape[1]))

    def look(offset):
      row_BxW = jnp.take_along_axis(beside.row_BxT, place_BxW + offset, axis=1)
      x_BxWxE = jnp.take_along_axis(beside.x_BxTxE, (place_BxW + offset)[..., None], axis=1)
      return x_BxWxE, row_BxW < rows.query_length_BxW

    return self._sum(look)

  def _of_text(self, beside, rows):
    """For all slots: in text order the places beside them are the text moved by an offset."""
    radius = self.config.query_seed_radius
    index_BxN = rows.query_position_BxW - 1
    index_BxN = jnp.broadcast_to(index_BxN, (len(beside.row_BxT), index_BxN.shape[1]))
    size = index_BxN.shape[1]
    length_BxN = jnp.broadcast_to(rows.query_length_BxW, index_BxN.shape)
    # In text order: how many content rows the slot of each position sees.
    length_BxN = jnp.take_along_axis(length_BxN, jnp.argsort(index_BxN, axis=1), axis=1)

    def look(offset):
      first = radius + 1 + offset  # of position 1
      at = slice(first, first + size)
      return beside.x_BxTxE[:, at], beside.row_BxT[:, at] < length_BxN

    return jnp.take_along_axis(self._sum(look), index_BxN[..., None], axis=1)


class Warm(Neighbours):
  """An AR model as long as the gain is 0."""

  def setup(self):
    self.gain = self.param('gain', nn.initializers.zeros, ())
    super().setup()

  def __call__(
    self, x_BxWxE: Array, rows: Rows, state: Beside | None, vocabulary: Vocabulary
  ) -> Seed:
    g_BxWxE, state = self.beside(x_BxWxE, rows, state)
    left_BxWxE, is_known_BxW = self._left(state, rows)
    position_BxW = rows.query_position_BxW - 1
    if self.config.architecture == 'gpt2':
      # A row carries a learned position: BOS in place of a token goes there, and the gain moves all
      # from there to their slots.
      at_BxWxE = vocabulary.at(position_BxW)
      moved_BxWxE = left_BxWxE + at_BxWxE - vocabulary.at(jnp.zeros_like(position_BxW))
      left_BxWxE = jnp.where(is_known_BxW[..., None], left_BxWxE, moved_BxWxE)
      g_BxWxE += vocabulary.at(rows.query_position_BxW) - at_BxWxE
    return Seed(
      (left_BxWxE + self.gain * g_BxWxE).astype(self.config.dtype),
      # RoPE is a rotation by any real number, so the gain moves positions continuously as well.
      position_BxW + self.gain,
      state,
    )

  def _left(self, beside, rows):
    """The content on the left of each slot, BOS where it is not known, and whether it is."""
    place_BxW = self._place(rows.query_position_BxW - 1)
    place_BxW = jnp.broadcast_to(place_BxW, (len(beside.row_BxT), place_BxW.shape[1]))
    row_BxW = jnp.take_along_axis(beside.row_BxT, place_BxW, axis=1)
    is_known_BxW = row_BxW < rows.query_length_BxW
    place_BxW = jnp.where(is_known_BxW, place_BxW, self._place(0))
    return jnp.take_along_axis(beside.x_BxTxE, place_BxW[..., None], axis=1), is_known_BxW


SEEDS: dict[str, Any] = {
  'prefix': Prefix,
  'neighbours': Neighbours,
  'mask_embedding': MaskEmbedding,
  'shift': Shift,
  'warm': Warm,
}


def _normed(config: ModelConfig, g_BxWxE: Array) -> Array:
  if config.query_seed_norm == 'none':
    return g_BxWxE
  return g_BxWxE * jax.lax.rsqrt(jnp.mean(jnp.square(g_BxWxE), axis=-1, keepdims=True) + 1e-6)


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

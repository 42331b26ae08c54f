"""The transformer of families that noise sets of tokens beside a clean copy of the text.

BD3-LM's sets are blocks of `block_length` consecutive tokens (arXiv 2503.09573, section 3.2),
SetDLM's the tokens that an order reveals (arXiv 2607.01775). Two streams of rows run through the
denoiser's own layers:

  clean rows    the text                  see the clean rows of sets up to their own
  noised rows   the text, partly masked   see the clean of earlier sets, the noised of their own

Parameters are those of `Denoiser`, so that a run may begin with MDLM's (`init_from`), as the
released models do. As theirs, the network reads no noise level.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.models.denoiser import MASK, Denoiser
from armd_jax.models.layers import KVCache, View, rope_rotation, side_by_side

Array = jax.Array


@flax.struct.dataclass
class SetRows:
  """Some rows of one stream; int32, `[B or 1, W]` but for the ids.

  Attributes:
    ids_BxW: tokens, `MASK` where masked.
    position_BxW: in the text, from 1; 0 of a given first token.
    length_BxW: how many of the clean rows each sees.
  """

  ids_BxW: Array
  position_BxW: Array
  length_BxW: Array


class SetDenoiser(Denoiser):
  """Predicts every token from earlier sets and what its own shows.

  Dropout is on exactly when a 'dropout' key is passed to `apply`.
  """

  def __call__(
    self,
    tokens_BxN: Array,
    noise_B: Array | None = None,
    first_B: Array | None = None,
    length_B: Array | None = None,
    index_B: Array | None = None,
    clean_BxN: Array | None = None,
  ) -> Array:
    """One denoising pass; see `Denoiser`.

    Args:
      tokens_BxN: int32 ids in text order, `MASK` where masked.
      noise_B: None; there is no noise level.
      first_B: int32, token given at position 0, the first of its block (`first_token='given'`).
      length_B: int32, tokens of each text; later ones count as masked, as all are in training.
      index_B: int32, index of each sequence in the whole batch, which its dropout depends on.
      clean_BxN: the text without masks; None: as far as `tokens_BxN` shows it, which is all that
        rows see where no earlier block has a mask.
    Returns:
      hidden_BxNxE; `logits` of row n predict token n, if it is masked.
    """
    if noise_B is not None:
      raise ValueError('a network of sets reads no noise level')
    if length_B is not None:
      is_real_BxN = jnp.arange(tokens_BxN.shape[1]) < length_B[:, None]
      tokens_BxN = jnp.where(is_real_BxN, tokens_BxN, MASK)
    given = self.config.length - self.config.num_slots
    whole = lambda x_BxN: self._whole(x_BxN, first_B)
    row_1xK = jnp.arange(self.config.length)[None]
    start_1xK = row_1xK // self.config.set_length * self.config.set_length
    rows = lambda ids, length_1xK: SetRows(whole(ids), row_1xK + 1 - given, length_1xK)
    clean = rows(tokens_BxN if clean_BxN is None else clean_BxN, start_1xK + self.config.set_length)
    hidden_BxKxE, _ = self.extend(clean, rows(tokens_BxN, start_1xK), index_B=index_B)
    return hidden_BxKxE[:, given:]

  def _whole(self, x_BxN: Array, first_B: Array | None) -> Array:
    """With the given first token, if there is one, in front; it is masked, if none is given."""
    given = self.config.length - self.config.num_slots
    first = MASK if first_B is None else first_B[:, None]
    return jnp.append(jnp.broadcast_to(first, (len(x_BxN), given)), x_BxN, axis=1)

  def extend(
    self,
    clean: SetRows | None,
    noised: SetRows | None,
    caches: tuple[KVCache, ...] | None = None,
    offset_B: Array | None = None,
    index_B: Array | None = None,
  ) -> tuple[Array, tuple[KVCache, ...] | None]:
    """Runs rows of both streams, as many of each, or of one.

    With caches, which need `scan_layers=False`, clean rows are appended to them, at `offset_B`.

    Args:
      clean, noised: the rows; those of a set are consecutive.
      caches: of clean rows, a cache per layer; None: there are no rows but these.
      offset_B: int32 `[B or 1]`, clean rows in the caches.
      index_B: see `__call__`.
    Returns:
      hidden_BxWxE of the noised rows, or of the clean ones, if there are no others; and the caches.
    """
    c = self.config
    streams: list[Any] = [rows for rows in (clean, noised) if rows is not None]
    embed = lambda rows: self.embedding_dropout(self.vocabulary.embed(rows.ids_BxW), index_B)
    rotations = [rope_rotation(c, rows.position_BxW) for rows in streams]
    # Keys have the streams one after the other.
    source = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *rotations)
    lengths = [rows.length_BxW.astype(jnp.int32) for rows in streams]
    view = View(
      rotation_BxRxNxD2=side_by_side(*rotations),
      source_rotation_BxKxD2=source,
      lengths_BxRxN=side_by_side(*lengths),
      offset_B=offset_B,
      index_B=index_B,
      condition_BxC=self.noise_embedding(jnp.zeros(1)),
      set_length=0 if noised is None else c.set_length,
    )
    x_BxRxWxE, caches = self.stack(side_by_side(*map(embed, streams)), view, caches)
    return self.final_norm(x_BxRxWxE[:, -1]), caches

  def empty_caches(self, batch: int, rows: int) -> tuple[KVCache, ...]:
    """Caches with room for `rows` clean rows."""
    c = self.config
    return tuple(KVCache.empty(c, batch, rows) for _ in range(c.num_layers))


class OrderedSetDenoiser(SetDenoiser):
  """The same of sets that follow in any order, of one token each in training.

  A noised row is then a mask, which sees itself beside the clean rows of earlier tokens; a clean
  row sees the clean rows of earlier tokens and itself.
  """

  def __call__(
    self,
    tokens_BxN: Array,
    noise_B: Array | None = None,
    first_B: Array | None = None,
    length_B: Array | None = None,
    index_B: Array | None = None,
    position_BxN: Array | None = None,
  ) -> Array:
    """All N predictions along an order, or those of a partly masked text.

    Args:
      tokens_BxN: int32 ids. Along an order, of the text without masks, in the order; else in text
        order, `MASK` where masked: those that are shown then come first, in text order.
      noise_B: None; there is no noise level.
      first_B: int32, token given at position 0, before all others (`first_token='given'`).
      length_B: int32, tokens of a partly masked text, later ones count as masked; None: all.
      index_B: int32, index of each sequence in the whole batch, which its dropout depends on.
      position_BxN: int32, order of the text's positions, from 1; None: there is none.
    Returns:
      hidden_BxNxE, whose `logits` of row n predict token n: in the order, from the tokens before
      it; or in text order, from all that are shown.
    """
    if noise_B is not None:
      raise ValueError('a network of sets reads no noise level')
    slots, given = tokens_BxN.shape[1], self.config.length - self.config.num_slots
    row_1xK = jnp.arange(self.config.length)[None]
    seen_BxK, index_BxN = row_1xK, None
    if position_BxN is None:
      is_shown_BxN = tokens_BxN != MASK
      if length_B is not None:
        is_shown_BxN &= jnp.arange(slots) < length_B[:, None]
      index_BxN = jnp.argsort(~is_shown_BxN, axis=1, stable=True)
      position_BxN = index_BxN + 1
      tokens_BxN = jnp.take_along_axis(tokens_BxN, index_BxN, axis=1)
      seen_BxK = jnp.broadcast_to(
        given + jnp.sum(is_shown_BxN, axis=1, keepdims=True), (len(tokens_BxN), slots + given)
      )
    position_BxK = jnp.pad(position_BxN, ((0, 0), (given, 0)))
    own_BxK = jnp.broadcast_to(row_1xK + 1, seen_BxK.shape)
    masks_BxK = jnp.full((len(tokens_BxN), slots + given), MASK)
    clean = SetRows(self._whole(tokens_BxN, first_B), position_BxK, own_BxK)
    noised = SetRows(masks_BxK, position_BxK, seen_BxK)
    hidden_BxNxE = self.extend(clean, noised, index_B=index_B)[0][:, given:]
    if index_BxN is None:
      return hidden_BxNxE
    # Sorting a permutation gives its inverse.
    return jnp.take_along_axis(hidden_BxNxE, jnp.argsort(index_BxN, axis=1)[:, :, None], axis=1)

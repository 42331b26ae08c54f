"""The ARMD network: strictly causal, permutation-equivariant, two streams (paper section 3).

Two kinds of rows run through the network, both in generation order:

  content rows X   BOS, then the tokens of slots 1..N-1    see blocks up to their own     (M^c)
  query rows   G   slots 1..N, without their own token     see strictly earlier blocks    (M^sc)

With `content_mask='row'` (Eso-LM) a content row sees itself and the rows before it, and of its own
block no more.

The first `num_two_stream_layers` layers update both with the same weights, keys and values coming
from X. The others run block-causal attention on G alone, so all N conditionals come out of one
pass. Cached decoding (`extend`) is the same computation on the few rows that are new.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax

from armd_jax.config import ModelConfig
from armd_jax.models.layers import (
  Dropout,
  KVCache,
  Stack,
  View,
  make_norm,
  remat_block,
  rope_rotation,
  side_by_side,
)
from armd_jax.models.query_seed import SEEDS
from armd_jax.models.rows import Rows, content_of, full_rows, up_to_themselves
from armd_jax.models.vocabulary import Vocabulary
from armd_jax.order import GenerationOrder
from armd_jax.parallel import axes

Array = jax.Array
Rotation = tuple[Array, Array] | None  # see `rope_rotation`


@flax.struct.dataclass
class ArmdState:
  """What the network keeps of the rows that it has computed.

  Attributes:
    two_stream: caches of the two-stream layers, of content rows.
    causal: caches of the causal layers, of query rows.
    seed: the state of the query seed; see `query_seed`.
  """

  two_stream: tuple[KVCache, ...]
  causal: tuple[KVCache, ...]
  seed: Any


class _Pass(NamedTuple):
  """What all layers of a pass share."""

  rows: Rows
  # Computed once, because every layer needs the same cosines.
  content_rotation: Rotation
  query_rotation: Rotation
  index_B: Array | None


class ARMD(nn.Module):
  """Auto-regressive masked diffusion (paper section 3, eqs. 3-7).

  Dropout is on exactly when a 'dropout' key is passed to `apply`.
  """

  config: ModelConfig
  vocab_size: int

  def setup(self):
    c = self.config
    self.vocabulary = Vocabulary(c, self.vocab_size)
    self.query_seed = SEEDS[c.query_seed](c)
    # Checkpoints have the seed's parameters ('mask', 'pe', 'gain') at the top, beside the layers.
    nn.share_scope(self, self.query_seed)
    self.two_stream = Stack(c, max(c.num_two_stream_layers - 1, 0))
    # No layer reads the content rows after the last two-stream layer, so it updates queries only; a
    # layer inside a scan cannot be different, which is why it is a module of its own.
    if c.num_two_stream_layers:
      self.last_two_stream = remat_block(dataclasses.replace(c, scan_layers=False))(c)
    self.causal = Stack(c, c.num_layers - c.num_two_stream_layers)
    self.final_norm = make_norm(c)
    self.embedding_dropout = Dropout(c.dropout)

  def __call__(
    self,
    tokens_BxN: Array,
    order: GenerationOrder,
    first_B: Array | None = None,
    index_B: Array | None = None,
  ) -> Array:
    """All N conditionals in one pass.

    Args:
      tokens_BxN: int32 token ids in generation order.
      order: `[B or 1, N]`.
      first_B: int32, token that takes BOS's place (`first_token='given'`), or None.
      index_B: int32, index of each sequence in the whole batch, which its dropout depends on; 0..
        if None.
    Returns:
      hidden_BxNxE of the query rows; `logits` of row n predict the token of slot n.
    """
    content_BxN = content_of(tokens_BxN, first_B)
    return self._run(content_BxN, full_rows(order), None, index_B)[0]

  def extend(self, content_BxW: Array, rows: Rows, state: ArmdState) -> tuple[Array, ArmdState]:
    """Commits W content rows to the caches and predicts W slots from all committed rows.

    Needs `scan_layers=False`. Padding rows (past `rows.count_B`) are written after the real ones,
    where no row sees them before the next call overwrites them.

    Args:
      content_BxW: int32 token ids of the content rows, `BOS` for the BOS row.
      rows: positions and prefix lengths of the rows.
      state: caches so far.
    Returns:
      hidden_BxWxE of the query rows, and the new state.
    """
    return self._run(content_BxW, rows, state)

  def logits(self, hidden: Array) -> Array:
    """float32 logits, `hidden.shape[:-1] + (V padded,)`; padding of V is -inf."""
    return self.vocabulary.logits(hidden)

  def embedding(self) -> Array:
    """The float32 matrix of the logits, `[V padded, E]`; see `Vocabulary.output`."""
    return self.vocabulary.output()

  def empty_state(self, batch: int, rows: int) -> ArmdState:
    """Caches with room for `rows` rows."""
    c = self.config
    caches = lambda count: tuple(KVCache.empty(c, batch, rows) for _ in range(count))
    return ArmdState(
      two_stream=caches(c.num_two_stream_layers),
      causal=caches(c.num_layers - c.num_two_stream_layers),
      seed=SEEDS[c.query_seed].empty_state(c, batch),
    )

  # ----- eqs. 3-7, in order

  def _run(self, content_BxW, rows, state, index_B=None):
    """One pass: over a whole sequence, or, with a state, over the rows that are new to it."""
    if self.config.content_mask == 'row':
      rows = up_to_themselves(rows)
    x_BxWxE = self._embed(content_BxW, rows, index_B)
    g_BxWxE, position_BxW, seed_state = self._seed(x_BxWxE, rows, state)
    shared = _Pass(
      rows,
      rope_rotation(self.config, rows.content_position_BxW),
      rope_rotation(self.config, position_BxW),
      index_B,
    )
    # Without two-stream layers, query rows receive content through the seed alone.
    two_stream, last = (), ()
    if self.config.num_two_stream_layers:
      x_BxWxE, g_BxWxE, two_stream = self._two_stream_layers(x_BxWxE, g_BxWxE, shared, state)
      g_BxWxE, last = self._last_two_stream_layer(x_BxWxE, g_BxWxE, shared, state)
    g_BxWxE, causal = self._causal_layers(g_BxWxE, shared, state)
    hidden_BxWxE = self.final_norm(g_BxWxE)
    if state is None:
      return hidden_BxWxE, None
    return hidden_BxWxE, ArmdState((*two_stream, *last), causal, seed_state)

  def _embed(self, content_BxW, rows, index_B):
    """X^0."""
    x_BxWxE = self.vocabulary.embed(content_BxW, rows.content_position_BxW)
    return self.embedding_dropout(x_BxWxE, index_B)

  def _seed(self, x_BxWxE, rows, state):
    """G^0 (eq. 6), the positions of the query rows, and the state of the seed after them."""
    seed_state = None if state is None else state.seed
    seed = self.query_seed(x_BxWxE, rows, seed_state, self.vocabulary)
    return seed._replace(g_BxWxE=axes.constrain(seed.g_BxWxE, 'batch', None, None))

  def _two_stream_layers(self, x_BxWxE, g_BxWxE, shared, state):
    """X^l under M^c and G^l under M^sc (eqs. 3 and 4), for all two-stream layers but the last."""
    rows = shared.rows
    view = View(
      rotation_BxRxNxD2=side_by_side(shared.content_rotation, shared.query_rotation),
      source_rotation_BxKxD2=shared.content_rotation,
      lengths_BxRxN=side_by_side(rows.content_length_BxW, rows.query_length_BxW),
      offset_B=rows.content_offset_B,
      index_B=shared.index_B,
    )
    # A product with a weight matrix takes both streams at once, and the matrix is read once.
    rows_BxRxWxE = side_by_side(x_BxWxE, g_BxWxE)
    caches = None if state is None else state.two_stream[:-1]
    rows_BxRxWxE, caches = self.two_stream(rows_BxRxWxE, view, caches)
    return rows_BxRxWxE[:, 0], rows_BxRxWxE[:, 1], caches

  def _last_two_stream_layer(self, x_BxWxE, g_BxWxE, shared, state):
    """G^l under M^sc (eq. 4); X is read for keys and values and not updated."""
    rows = shared.rows
    view = View(
      rotation_BxRxNxD2=side_by_side(shared.query_rotation),
      source_rotation_BxKxD2=shared.content_rotation,
      lengths_BxRxN=side_by_side(rows.query_length_BxW),
      offset_B=rows.content_offset_B,
      index_B=shared.index_B,
    )
    cache = None if state is None else state.two_stream[-1]
    g_Bx1xWxE, cache = self.last_two_stream(side_by_side(g_BxWxE), view, cache, x_BxWxE)
    return g_Bx1xWxE[:, 0], (cache,)

  def _causal_layers(self, g_BxWxE, shared, state):
    """G^l under M^c, keys and values from G itself: causal after strictly causal stays strict,
    since no row of a block has seen its own token."""
    rows = shared.rows
    view = View(
      rotation_BxRxNxD2=side_by_side(shared.query_rotation),
      source_rotation_BxKxD2=shared.query_rotation,
      lengths_BxRxN=side_by_side(rows.causal_length_BxW),
      offset_B=rows.query_offset_B,
      index_B=shared.index_B,
    )
    caches = None if state is None else state.causal
    g_Bx1xWxE, caches = self.causal(side_by_side(g_BxWxE), view, caches)
    return g_Bx1xWxE[:, 0], caches

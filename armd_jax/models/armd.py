"""The ARMD network: strictly causal, permutation-equivariant, two streams (paper section 3).

Two kinds of rows run through the network, both in generation order:

  content rows X   BOS, then the tokens of slots 1..N-1    see blocks up to their own     (M^c)
  query rows   G   slots 1..N, without their own token     see strictly earlier blocks    (M^sc)

The first `num_two_stream_layers` layers update both with the same weights, keys and values coming
from X. The others run block-causal attention on G alone, so all N conditionals come out of one
pass. Cached decoding (`extend`) is the same computation on the few rows that are new.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.models import prefix_aggregation
from armd_jax.models.layers import (
  Dropout,
  KVCache,
  Stack,
  View,
  make_norm,
  remat_block,
  rope_rotation,
)
from armd_jax.order import GenerationOrder, block_bounds
from armd_jax.parallel import axes

Array = jax.Array

SPECIAL = -1  # among token ids, a learned vector that is not a vocabulary entry
BOS = SPECIAL  # here it is the row before the text
LOOKED_UP_AT_ONCE = 8192  # tokens whose part of the embedding exists at once, where it is cut


@flax.struct.dataclass
class Rows:
  """W new content rows and W new query rows, W the same for both; shapes `[B or 1, W]`.

  Attributes:
    content_position_BxW, query_position_BxW: int32 text positions, BOS at 0.
    content_length_BxW, query_length_BxW: int32, how many content rows (BOS first, cached ones
      included) each row sees: 1 + block_end and 1 + block_start of its slot.
    causal_length_BxW: int32, how many query rows a query row sees in the causal layers: block_end.
    content_offset_B, query_offset_B: int32 `[B or 1]`, rows that are cached already.
    count_B: int32 `[B or 1]`, how many of the W content rows are real; the others are padding.
    sees_all: whether every query row sees all real content rows, as in a step of decoding.
  """

  content_position_BxW: Array
  query_position_BxW: Array
  content_length_BxW: Array
  query_length_BxW: Array
  causal_length_BxW: Array
  content_offset_B: Array
  query_offset_B: Array
  count_B: Array
  sees_all: bool = flax.struct.field(pytree_node=False, default=False)


def full_rows(order: GenerationOrder) -> Rows:
  """The rows of a whole sequence: content BOS and slots 1..N-1, queries slots 1..N."""
  num_slots = order.num_slots
  start_BxN, end_BxN = block_bounds(order.block_BxN)
  shift = lambda x_BxN: jnp.pad(x_BxN[:, :-1], ((0, 0), (1, 0)))  # BOS: position 0, block_end 0
  zero_B = jnp.zeros(1, jnp.int32)
  return Rows(
    content_position_BxW=shift(order.position_BxN),
    query_position_BxW=order.position_BxN,
    # The last slot has no content row; only rows of its own block would see it, and nobody sees
    # those.
    content_length_BxW=jnp.minimum(1 + shift(end_BxN), num_slots),
    query_length_BxW=1 + start_BxN,
    causal_length_BxW=end_BxN,
    content_offset_B=zero_B,
    query_offset_B=zero_B,
    count_B=jnp.full(1, num_slots, jnp.int32),
  )


@flax.struct.dataclass
class ArmdState:
  """What the network remembers of the rows it has seen.

  Attributes:
    two_stream: caches of the two-stream layers, of content rows.
    causal: caches of the causal layers, of query rows.
    aggregate_BxPxE: float32, state of the prefix aggregation.
  """

  two_stream: tuple[KVCache, ...]
  causal: tuple[KVCache, ...]
  aggregate_BxPxE: Array


class Vocabulary(nn.Module):
  """The tied embedding and one vector beside it: BOS (paper section 3), or a denoiser's mask."""

  config: ModelConfig
  vocab_size: int
  special: str = 'bos'

  def setup(self):
    init = nn.initializers.normal(0.02)
    shape = (self.config.padded(self.vocab_size), self.config.embed_dim)
    self.embedding_VxE = self.param('embedding', init, shape)
    self.special_E = self.param(self.special, init, (self.config.embed_dim,))
    if self.config.style == 'gpt2':
      # Query rows stand at 1..N, content rows, which GPT-2 has, at 0..N-1.
      self.positions_MxE = self.param('positions', init, (self.config.length + 1, shape[1]))

  def embed(self, ids: Array, position: Array | None = None) -> Array:
    """Rows of ids, `SPECIAL` included, in the compute dtype.

    Args:
      ids: int32.
      position: int32, read in the style that has learned positions.
    """
    look_up = functools.partial(_look_up, self.config.dtype)
    find = axes.split(look_up, (('vocab', 'embed'), ('batch', None)), ('batch', None, None))
    rows = find(self.embedding_VxE, jnp.maximum(ids, 0))
    special_E = self.special_E.astype(self.config.dtype)
    rows = jnp.where((ids == SPECIAL)[..., None], special_E, rows)
    return rows + self.at(position) if self.config.style == 'gpt2' else rows

  def at(self, position: Array) -> Array:
    """Learned position rows in the compute dtype."""
    return self.positions_MxE[position].astype(self.config.dtype)

  def logits(self, hidden: Array) -> Array:
    """float32 logits over the padded vocabulary; padding gets -inf."""
    embedding_VxE = self.embedding_VxE.astype(self.config.dtype)
    logits = jnp.einsum('...e,ve->...v', hidden, embedding_VxE, preferred_element_type=jnp.float32)
    # Whole on every device that holds the sequence, for who draws from them.
    logits = axes.constrain(logits, 'batch', *[None] * (logits.ndim - 1))
    return jnp.where(jnp.arange(embedding_VxE.shape[0]) < self.vocab_size, logits, -jnp.inf)


def _look_up(dtype: str, table_VxE: Array, ids_BxW: Array) -> Array:
  """Rows of the table on a mesh: few rows travel instead of the table.

  A device looks up the ids of all sequences of its fsdp group, among the entries and in the columns
  that it holds; then the group exchanges columns for sequences. Rows travel in the compute dtype,
  and so do their gradients, which are added up in the table's.
  """
  batch, width = ids_BxW.shape
  ids_BxW = axes.gather(ids_BxW, 'embed', axis=0)
  ids_BxW -= axes.first_index('vocab', len(table_VxE))

  def rows_of(ids_W):
    is_here_W = (ids_W >= 0) & (ids_W < len(table_VxE))
    rows_WxE = table_VxE[jnp.clip(ids_W, 0, len(table_VxE) - 1)]
    return jnp.where(is_here_W[:, None], rows_WxE, 0).astype(dtype)

  if axes.size('embed') == 1:
    return axes.total(jax.vmap(rows_of)(ids_BxW), 'vocab')
  # TPUs fill up what comes last to 128, and a device may hold three columns: all rows at once would
  # take 40 times their size.
  columns_of = lambda ids_W: rows_of(ids_W).T.ravel()
  at_once = max(1, LOOKED_UP_AT_ONCE // width)
  columns_BxEW = jax.lax.map(columns_of, ids_BxW, batch_size=at_once)
  columns_BxEW = axes.total(axes.exchange(columns_BxEW, 'embed', give=0, take=1), 'vocab')
  return jnp.moveaxis(columns_BxEW.reshape(batch, -1, width), 1, 2)


class ARMD(nn.Module):
  """Auto-regressive masked diffusion (paper section 3, eqs. 3-7).

  Dropout is on exactly when a 'dropout' key is passed to `apply`.
  """

  config: ModelConfig
  vocab_size: int

  def setup(self):
    c = self.config
    self.vocabulary = Vocabulary(c, self.vocab_size)
    self.two_stream = Stack(c, max(c.num_two_stream_layers - 1, 0))
    # Nobody reads the content rows after the last two-stream layer, so it updates queries only; a
    # layer inside a scan cannot be different, which is why it stands alone.
    if c.num_two_stream_layers:
      self.last_two_stream = remat_block(dataclasses.replace(c, scan_layers=False))(c)
    self.causal = Stack(c, c.num_layers - c.num_two_stream_layers)
    self.final_norm = make_norm(c)
    self.embedding_dropout = Dropout(c.dropout)
    if c.g0 == 'mask_embedding':
      self.mask_E = self.param('mask', nn.initializers.normal(0.02), (c.embed_dim,))
    if c.g0 == 'warm':
      self.gain = self.param('gain', nn.initializers.zeros, ())
    if c.g0 in ('prefix', 'warm') and c.pe == 'learned':
      self.pe_table = self.param('pe', nn.initializers.normal(1.0), (c.length + 1, c.pe_dim))

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
      first_B: int32, token that takes BOS's place (`bos='first_token_given'`), or None.
      index_B: int32, index of each sequence in the whole batch, which its dropout depends on; 0..
        if None.
    Returns:
      hidden_BxNxE of the query rows; `logits` of row n predict the token of slot n.
    """
    first_B = jnp.full(tokens_BxN.shape[0], BOS, jnp.int32) if first_B is None else first_B
    content_BxN = jnp.concatenate([first_B[:, None], tokens_BxN[:, :-1]], axis=1)
    return self._run(content_BxN, full_rows(order), None, index_B)[0]

  def extend(self, content_BxW: Array, rows: Rows, state: ArmdState) -> tuple[Array, ArmdState]:
    """Commits W content rows to the caches and predicts W slots from all committed rows.

    Needs `scan_layers=False`. Padding rows (past `rows.count_B`) are written behind the real ones,
    where nobody sees them before the next call overwrites them.

    Args:
      content_BxW: int32 token ids of the content rows, `BOS` for the BOS row.
      rows: what the rows are and see.
      state: caches so far.
    Returns:
      hidden_BxWxE of the query rows, and the new state.
    """
    return self._run(content_BxW, rows, state)

  def logits(self, hidden: Array) -> Array:
    """float32 logits, `hidden.shape[:-1] + (V padded,)`; padding of V is -inf."""
    return self.vocabulary.logits(hidden)

  def embedding(self) -> Array:
    """The tied float32 embedding, `[V padded, E]`."""
    return self.vocabulary.embedding_VxE

  def empty_state(self, batch: int, rows: int) -> ArmdState:
    """Caches with room for `rows` rows."""
    c = self.config
    caches = lambda count: tuple(KVCache.empty(c, batch, rows) for _ in range(count))
    return ArmdState(
      two_stream=caches(c.num_two_stream_layers),
      causal=caches(c.num_layers - c.num_two_stream_layers),
      aggregate_BxPxE=axes.constrain(
        jnp.zeros((batch, c.pe_dim, c.embed_dim), jnp.float32), 'batch', None, None
      ),
    )

  def _run(self, content_BxW, rows, state, index_B=None):
    c = self.config
    x_BxWxE = self.vocabulary.embed(content_BxW, rows.content_position_BxW)
    x_BxWxE = self.embedding_dropout(x_BxWxE, index_B)
    g_BxWxE, query_position_BxW, aggregate = self._seed(x_BxWxE, rows, state)
    g_BxWxE = axes.constrain(g_BxWxE, 'batch', None, None)

    content_rotation = rope_rotation(c, rows.content_position_BxW)
    query_rotation = rope_rotation(c, query_position_BxW)
    one = lambda pair: jax.tree.map(lambda x: x[:, None], pair)
    caches = (None, None, None)
    if state is not None:
      caches = (state.two_stream[:-1], state.two_stream[-1:], state.causal)

    first, last, causal = (), (), ()
    if c.num_two_stream_layers:
      both = lambda x, g: jnp.stack([x, g], axis=1)
      view = View(
        rotation_BxRxNxD2=jax.tree.map(both, content_rotation, query_rotation),
        source_rotation_BxKxD2=content_rotation,
        lengths_BxRxN=both(rows.content_length_BxW, rows.query_length_BxW),
        offset_B=rows.content_offset_B,
        index_B=index_B,
      )
      rows_BxRxWxE, first = self.two_stream(both(x_BxWxE, g_BxWxE), view, caches[0])
      view = view.replace(
        rotation_BxRxNxD2=one(query_rotation), lengths_BxRxN=rows.query_length_BxW[:, None]
      )
      x_BxWxE, g_BxWxE = rows_BxRxWxE[:, 0], rows_BxRxWxE[:, 1]
      g_Bx1xWxE, last = self.last_two_stream(
        g_BxWxE[:, None], view, caches[1][0] if state is not None else None, x_BxWxE
      )
      g_BxWxE, last = g_Bx1xWxE[:, 0], (last,)
    view = View(
      rotation_BxRxNxD2=one(query_rotation),
      source_rotation_BxKxD2=query_rotation,
      lengths_BxRxN=rows.causal_length_BxW[:, None],
      offset_B=rows.query_offset_B,
      index_B=index_B,
    )
    g_Bx1xWxE, causal = self.causal(g_BxWxE[:, None], view, caches[2])
    hidden_BxWxE = self.final_norm(g_Bx1xWxE[:, 0])
    if state is None:
      return hidden_BxWxE, None
    return hidden_BxWxE, ArmdState((*first, *last), causal, aggregate)

  def _seed(self, x_BxWxE, rows, state):
    """G^0, the RoPE positions of the query rows, and the new aggregation state."""
    c = self.config
    # Lengths among the rows of this call; what is cached comes from the state.
    local_BxW = rows.query_length_BxW - rows.content_offset_B[:, None]
    aggregate = None if state is None else state.aggregate_BxPxE
    if c.g0 == 'mask_embedding':
      return (
        jnp.broadcast_to(self.mask_E, x_BxWxE.shape).astype(c.dtype),
        rows.query_position_BxW,
        aggregate,
      )
    if c.g0 == 'shift':
      return *_latest(x_BxWxE, rows.content_position_BxW, local_BxW), aggregate
    pe_q_BxWxP, pe_k_BxWxP = map(self._pe, (rows.query_position_BxW, rows.content_position_BxW))
    if rows.sees_all:
      aggregate = prefix_aggregation.update(aggregate, pe_k_BxWxP, x_BxWxE, rows.count_B)
      g_BxWxE = prefix_aggregation.read(aggregate, pe_q_BxWxP)
    elif state is not None:
      g_BxWxE = prefix_aggregation.read(aggregate, pe_q_BxWxP)
      g_BxWxE += prefix_aggregation.quadratic(pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, local_BxW)
      aggregate = prefix_aggregation.update(aggregate, pe_k_BxWxP, x_BxWxE, rows.count_B)
    elif c.g0_chunk:
      g_BxWxE = prefix_aggregation.chunked(pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, local_BxW, c.g0_chunk)
    else:
      g_BxWxE = prefix_aggregation.quadratic(pe_q_BxWxP, pe_k_BxWxP, x_BxWxE, local_BxW)
    if c.g0_norm == 'rms':
      g_BxWxE *= jax.lax.rsqrt(jnp.mean(jnp.square(g_BxWxE), axis=-1, keepdims=True) + 1e-6)
    if c.g0 == 'prefix':
      return g_BxWxE.astype(c.dtype), rows.query_position_BxW, aggregate
    # 'warm': an AR model as long as the gain is 0 (our choice).
    shift_BxWxE, position_BxW = _latest(x_BxWxE, rows.content_position_BxW, local_BxW)
    if c.style == 'gpt2':
      g_BxWxE += self.vocabulary.at(rows.query_position_BxW) - self.vocabulary.at(position_BxW)
    g_BxWxE = (shift_BxWxE + self.gain * g_BxWxE).astype(c.dtype)
    return g_BxWxE, position_BxW + self.gain * (rows.query_position_BxW - position_BxW), aggregate

  def _pe(self, position):
    if self.config.pe != 'learned':
      return getattr(prefix_aggregation, self.config.pe)(position, self.config.pe_dim)
    rows = self.pe_table[position]
    return rows * jax.lax.rsqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))


def _latest(x_BxWxE, position_BxW, length_BxW):
  """The latest content row that each slot may see, and its position: the seed of an AR model."""
  batch, width, _ = x_BxWxE.shape
  latest_BxW = jnp.clip(length_BxW - 1, 0, width - 1)
  position_BxW = jnp.broadcast_to(position_BxW, (latest_BxW.shape[0], width))
  position_BxW = jnp.take_along_axis(position_BxW, latest_BxW, axis=1)
  latest_BxW = jnp.broadcast_to(latest_BxW, (batch, width))
  return jnp.take_along_axis(x_BxWxE, latest_BxW[..., None], axis=1), position_BxW

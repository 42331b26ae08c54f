"""Where tokens enter and leave a network: the embedding, learned positions, and logits."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.parallel import axes

Array = jax.Array

SPECIAL = -1  # among token ids, a learned vector that is not a vocabulary entry
BOS = SPECIAL  # in ARMD and AR it is the row before the text
LOOKED_UP_AT_ONCE = 8192  # tokens, where devices share the embedding


class Vocabulary(nn.Module):
  """The embedding, tied to the logits or not, and one vector beside it: BOS (paper section 3), or a
  denoiser's mask."""

  config: ModelConfig
  vocab_size: int
  special: str = 'bos'

  def setup(self):
    init = nn.initializers.normal(0.02)
    shape = (self.config.padded(self.vocab_size), self.config.embed_dim)
    self.embedding_VxE = self.param('embedding', init, shape)
    if not self.config.tied_head:
      self.head_VxE = self.param('head', init, shape)
    # A parameter of its own and no row of the table: a row would also get a logit, and the network
    # would give probability to a token that no text contains.
    self.special_E = self.param(self.special, init, (self.config.embed_dim,))
    if self.config.architecture == 'gpt2':
      # Query rows have the positions 1..N, content rows, as in GPT-2, 0..N-1.
      self.positions_MxE = self.param('positions', init, (self.config.length + 1, shape[1]))

  def embed(self, ids: Array, position: Array | None = None) -> Array:
    """Rows of ids, `SPECIAL` included, in the compute dtype.

    Args:
      ids: int32.
      position: int32, read in the style that has learned positions.
    """
    look_up = functools.partial(_look_up, self.config.dtype)
    find = axes.split(look_up, (('vocab', 'embed'), ('batch', None)), ('batch', None, None))
    # Parameters may be NumPy's, which take no traced indices.
    rows = find(jnp.asarray(self.embedding_VxE), jnp.maximum(ids, 0))
    special_E = self.special_E.astype(self.config.dtype)
    rows = jnp.where((ids == SPECIAL)[..., None], special_E, rows)
    return (
      rows + self.at(position)  # type: ignore[arg-type]
      if self.config.architecture == 'gpt2'
      else rows
    )

  def at(self, position: Array) -> Array:
    """Learned position rows in the compute dtype."""
    return jnp.asarray(self.positions_MxE)[position].astype(self.config.dtype)

  def output(self) -> Array:
    """The float32 matrix of the logits, `[V padded, E]`: the embedding, where they are tied."""
    return self.embedding_VxE if self.config.tied_head else self.head_VxE

  def logits(self, hidden: Array) -> Array:
    """float32 logits over the padded vocabulary; padding gets -inf."""
    output_VxE = self.output().astype(self.config.dtype)
    # The operands may be bfloat16, the sums are not: softmax takes small differences of them.
    logits = jnp.einsum('...e,ve->...v', hidden, output_VxE, preferred_element_type=jnp.float32)
    # Replicated over `tensor`: sampling and ranking need the whole vocabulary of a row.
    logits = axes.constrain(logits, 'batch', *[None] * (logits.ndim - 1))
    return jnp.where(jnp.arange(output_VxE.shape[0]) < self.vocab_size, logits, -jnp.inf)


def _look_up(dtype: str, table_VxE: Array, ids_BxW: Array) -> Array:
  """Rows of the table on a mesh: few rows travel instead of the table.

  A device looks up the ids of all sequences of its fsdp group, among the entries and in the columns
  that it holds; then the group exchanges columns for sequences. Rows travel in the compute dtype,
  and so do their gradients, which are added up in the table's.
  """
  batch, width = ids_BxW.shape
  ids_BxW = axes.gather(ids_BxW, 'embed', axis=0)
  # Ids that another device holds become negative or too large, and their rows zeros: the sum over
  # devices below then has one term that counts.
  ids_BxW -= axes.first_index('vocab', len(table_VxE))

  def rows_of(ids_W):
    is_here_W = (ids_W >= 0) & (ids_W < len(table_VxE))
    rows_WxE = table_VxE[jnp.clip(ids_W, 0, len(table_VxE) - 1)]
    return jnp.where(is_here_W[:, None], rows_WxE, 0).astype(dtype)

  if axes.size('embed') == 1:
    return axes.total(jax.vmap(rows_of)(ids_BxW), 'vocab')
  # TPUs pad the last axis to 128, and a device may hold three columns: all rows at once would take
  # 40 times their size. So columns come first and rows last, and few sequences are looked up at a
  # time.
  columns_of = lambda ids_W: rows_of(ids_W).T.ravel()
  at_once = max(1, LOOKED_UP_AT_ONCE // width)
  columns_BxEW = jax.lax.map(columns_of, ids_BxW, batch_size=at_once)
  columns_BxEW = axes.total(axes.exchange(columns_BxEW, 'embed', give=0, take=1), 'vocab')
  return jnp.moveaxis(columns_BxEW.reshape(batch, -1, width), 1, 2)

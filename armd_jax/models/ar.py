"""The auto-regressive transformer of the same size: one stream, causal attention.

ARMD with `query_seed='shift'` and left-to-right order computes exactly this, which the tests use as
their strongest oracle; benchmarks use it as the cost that ARMD is compared with.
"""

from __future__ import annotations

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
  rope_rotation,
  side_by_side,
)
from armd_jax.models.rows import Rows, content_of, full_rows
from armd_jax.models.vocabulary import Vocabulary
from armd_jax.order import GenerationOrder

Array = jax.Array


@flax.struct.dataclass
class ArState:
  """Key/value caches, one per layer."""

  caches: tuple[KVCache, ...]


class AR(nn.Module):
  """A GPT-style language model behind the interface of `ARMD`; orders must be left-to-right."""

  config: ModelConfig
  vocab_size: int

  def setup(self):
    self.vocabulary = Vocabulary(self.config, self.vocab_size)
    self.stack = Stack(self.config, self.config.num_layers)
    self.final_norm = make_norm(self.config)
    self.embedding_dropout = Dropout(self.config.dropout)

  def __call__(
    self,
    tokens_BxN: Array,
    order: GenerationOrder,
    first_B: Array | None = None,
    index_B: Array | None = None,
  ) -> Array:
    """hidden_BxNxE whose row n predicts token n from the tokens before it; see `ARMD`."""
    content_BxN = content_of(tokens_BxN, first_B)
    return self._run(content_BxN, full_rows(order), None, index_B)[0]

  def extend(self, content_BxW: Array, rows: Rows, state: ArState) -> tuple[Array, ArState]:
    """Appends W tokens to the caches and predicts the token after each; see `ARMD.extend`."""
    hidden_BxWxE, caches = self._run(content_BxW, rows, state.caches)
    return hidden_BxWxE, ArState(caches)

  def logits(self, hidden: Array) -> Array:
    """float32 logits; see `ARMD.logits`."""
    return self.vocabulary.logits(hidden)

  def embedding(self) -> Array:
    """The float32 matrix of the logits, `[V padded, E]`; see `Vocabulary.output`."""
    return self.vocabulary.output()

  def empty_state(self, batch: int, rows: int) -> ArState:
    """Caches with room for `rows` rows."""
    c = self.config
    return ArState(tuple(KVCache.empty(c, batch, rows) for _ in range(c.num_layers)))

  def _run(self, content_BxW, rows, caches, index_B=None):
    c = self.config
    x_BxWxE = self.vocabulary.embed(content_BxW, rows.content_position_BxW)
    x_BxWxE = self.embedding_dropout(x_BxWxE, index_B)
    rotation = rope_rotation(c, rows.content_position_BxW)
    view = View(
      rotation_BxRxNxD2=side_by_side(rotation),
      source_rotation_BxKxD2=rotation,
      # In singleton blocks, up to and including a row itself: plain causal attention.
      lengths_BxRxN=side_by_side(rows.content_length_BxW),
      offset_B=rows.content_offset_B,
      index_B=index_B,
    )
    x_Bx1xWxE, caches = self.stack(side_by_side(x_BxWxE), view, caches)
    return self.final_norm(x_Bx1xWxE[:, 0]), caches

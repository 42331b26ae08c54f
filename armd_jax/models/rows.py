"""Which rows a pass of an ordered network computes, and what each of them may see."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.models.vocabulary import BOS
from armd_jax.order import GenerationOrder, block_bounds

Array = jax.Array


@flax.struct.dataclass
class Rows:
  """W new content rows and W new query rows, W the same for both; int32, `[B or 1, W]` and
  `[B or 1]`."""

  # Text positions; BOS has 0.
  content_position_BxW: Array
  query_position_BxW: Array
  # How many content rows each row sees, BOS and cached ones included: 1 + block_end of a content
  # row's slot (M^c), 1 + block_start of a query row's (M^sc).
  content_length_BxW: Array
  query_length_BxW: Array
  # How many query rows a query row sees in the causal layers: block_end of its slot (M^c).
  causal_length_BxW: Array
  # Rows that are cached already.
  content_offset_B: Array
  query_offset_B: Array
  # How many of the W content rows are real; the others are padding.
  count_B: Array
  # Whether every query row sees all real content rows, as in a step of decoding.
  sees_all: bool = flax.struct.field(pytree_node=False, default=False)


def full_rows(order: GenerationOrder) -> Rows:
  """The rows of a whole sequence: content BOS and slots 1..N-1, queries slots 1..N."""
  num_slots = order.num_slots
  start_BxN, end_BxN = block_bounds(order.block_BxN)
  # Content row n holds slot n - 1, and BOS, row 0, has position 0 and block_end 0.
  shift = lambda x_BxN: jnp.pad(x_BxN[:, :-1], ((0, 0), (1, 0)))
  zero_B = jnp.zeros(1, jnp.int32)
  return Rows(
    content_position_BxW=shift(order.position_BxN),
    query_position_BxW=order.position_BxN,
    # The last slot has no content row; only rows of its own block would see it, and no row sees
    # those.
    content_length_BxW=jnp.minimum(1 + shift(end_BxN), num_slots),
    query_length_BxW=1 + start_BxN,
    causal_length_BxW=end_BxN,
    content_offset_B=zero_B,
    query_offset_B=zero_B,
    count_B=jnp.full(1, num_slots, jnp.int32),
  )


def up_to_themselves(rows: Rows) -> Rows:
  """The same rows, but content rows see none behind them, not even of their own block."""
  index_W = jnp.arange(1, rows.content_length_BxW.shape[1] + 1, dtype=jnp.int32)
  content_BxW, query_BxW = jnp.broadcast_arrays(
    rows.content_offset_B[:, None] + index_W, rows.query_length_BxW
  )
  return rows.replace(content_length_BxW=content_BxW, query_length_BxW=query_BxW)


def content_of(tokens_BxN: Array, first_B: Array | None) -> Array:
  """int32 ids of the content rows of `full_rows`: BOS, or `first_B` in its place, then all tokens
  but the last, which no slot is predicted from."""
  first_B = jnp.full(tokens_BxN.shape[0], BOS, jnp.int32) if first_B is None else first_B
  return jnp.concatenate([first_B[:, None], tokens_BxN[:, :-1]], axis=1)

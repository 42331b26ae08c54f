"""What decoding remembers between steps, and the one step that all generation orders share.

A step commits the previous block (content rows into the caches) and predicts the next one, of up to
`width` slots. Sequences of a batch may be at different slots; arrays that describe progress are
`[B]`, or `[1]` when all sequences go in step, which lets the caches be written by plain slices.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.decode import fused, panels
from armd_jax.models.layers import KVCache, unstack_layers
from armd_jax.models.rows import Rows
from armd_jax.order import GenerationOrder, block_bounds
from armd_jax.parallel import axes

Array = jax.Array

CACHE_ROWS = 8  # Hopper's kernels take keys by eights: a ragged cache would be copied at every step


@flax.struct.dataclass
class Task:
  """What is to be generated; nothing in it changes while decoding.

  Attributes:
    order: `[B or 1, N]`; given tokens come first, as singletons.
    num_given_B: int32, with the batch size of the order, leading slots that are given.
    length_B: int32, likewise, slots that are given or generated; later ones are padding.
    first_B: int32 `[B]`, token in BOS's place, or `armd_jax.models.vocabulary.BOS`.
    end_BxN: int32 `[B or 1, N]`, where the block of each slot ends; None: found at every step.
  """

  order: GenerationOrder
  num_given_B: Array
  length_B: Array
  first_B: Array
  end_BxN: Array | None = None

  def with_ends(self) -> Task:
    """The same task for many steps."""
    return self.replace(end_BxN=block_bounds(self.order.block_BxN)[1])


@flax.struct.dataclass
class DecodeState:
  """Progress of a batch.

  Attributes:
    tokens_BxM: int32, tokens in generation order; N slots and room for the padding of a step.
    filled_B: int32 `[B or 1]`, leading slots that hold a given or generated token.
    committed_B: int32 `[B or 1]`, content rows in the caches, BOS included.
    network: the network's caches.
    steps: int32 scalar, forward passes since the prefill.
    margin_B: float32 `[B]`, nats, the closest draw so far; see `generate.Generated`.
  """

  tokens_BxM: Array
  filled_B: Array
  committed_B: Array
  network: Any
  steps: Array
  margin_B: Array


def decoding_form(config: ModelConfig, params: Any) -> tuple[ModelConfig, Any]:
  """The same network, unrolled, without remat, its matrices cast, and gathered over the fsdp axis,
  once instead of per step."""

  def prepare(path, x):
    names = [key.key for key in path]
    if names[-1] in ('panels', 'matrix') or fused.NAME in names:  # cast and whole already
      return x
    is_matrix = path[-1].key in ('kernel', 'embedding')
    names = (None if name == 'embed' else name for name in axes.of_parameter(path, x))
    return axes.constrain(x.astype(config.dtype) if is_matrix else x, *names)

  params = jax.tree_util.tree_map_with_path(prepare, unstack_layers(params))
  return dataclasses.replace(config, scan_layers=False, remat='none'), params


def start(
  model: Any,
  params: Any,
  task: Task,
  tokens_BxN: Array,
  prefill: int,
  width: int,
  room: int | None = None,
) -> DecodeState:
  """Fills the caches with the given tokens in one pass through both streams.

  Args:
    model, params: in `decoding_form`.
    task: what to generate.
    tokens_BxN: int32 in generation order; only the given slots are read.
    prefill: at least the largest number of given tokens and at most N; static.
    width: the widest block that will be decoded; static.
    room: rows that the caches have room for, at first; `whole_room` if None.
  Returns:
    The state before the first step.
  """
  batch, num_slots = tokens_BxN.shape
  state = DecodeState(
    tokens_BxM=axes.constrain(jnp.pad(tokens_BxN, ((0, 0), (0, width))), 'batch', None),
    filled_B=task.num_given_B,
    committed_B=jnp.zeros_like(task.num_given_B),
    network=model.empty_state(batch, room or whole_room(num_slots, width)),
    steps=jnp.zeros((), jnp.int32),
    margin_B=axes.constrain(jnp.full(batch, jnp.inf, jnp.float32), 'batch'),
  )
  if prefill == 0:
    return state
  slot_1xP = jnp.arange(prefill, dtype=jnp.int32)[None]
  zero_B = state.committed_B
  content_BxP, content_position_BxP = _content(task, state, zero_B, prefill)
  rows = Rows(
    content_position_BxW=content_position_BxP,
    query_position_BxW=task.order.position_BxN[:, :prefill],
    content_length_BxW=slot_1xP + 1,
    query_length_BxW=slot_1xP + 1,
    causal_length_BxW=slot_1xP + 1,
    content_offset_B=zero_B,
    query_offset_B=zero_B,
    count_B=task.num_given_B,
  )
  variables = {'params': panels.whole(params)}
  with panels.reading():
    _, network = model.apply(variables, content_BxP, rows, state.network, method='extend')
  return state.replace(network=network, committed_B=task.num_given_B)


def whole_room(num_slots: int, width: int) -> int:
  """Rows of caches for whole texts and the padding of the widest step behind them."""
  up = lambda rows: -rows // CACHE_ROWS * -CACHE_ROWS
  return up(num_slots + up(width))


def with_room(state: DecodeState, rows: int) -> DecodeState:
  """The same state, its caches with room for so many rows."""
  is_cache = lambda x: isinstance(x, KVCache)
  grow = lambda x: x.with_room(rows) if is_cache(x) else x
  return state.replace(network=jax.tree.map(grow, state.network, is_leaf=is_cache))


def next_width(task: Task, state: DecodeState) -> Array:
  """int32 `[B or 1]`: slots of each sequence's next block; 0 when it is complete."""
  task = task if task.end_BxN is not None else task.with_ends()
  end_B = _at(task.end_BxN, state.filled_B[:, None])[:, 0]
  return jnp.maximum(jnp.minimum(end_B, task.length_B) - state.filled_B, 0)


def predict(
  model: Any, params: Any, task: Task, state: DecodeState, width: int
) -> tuple[Array, Array, DecodeState]:
  """Commits the previous block and predicts the next one (paper section 3.1).

  Args:
    model, params: in `decoding_form`.
    width: static; at least the previous block's and the next block's number of slots.
  Returns:
    logits_BxWxV: float32, of slots `filled + 0..width-1`; those past the block are padding.
    width_B: how many of them are real.
    state: with the previous block committed; `fill` puts the chosen tokens in.
  """
  width_B = next_width(task, state)
  batch = len(state.tokens_BxM)
  num_rows = fused.padded(params, batch, width)
  content_BxW, content_position_BxW = _content(task, state, state.committed_B, num_rows)
  slot_BxW = state.filled_B[:, None] + jnp.arange(num_rows)
  seen_BxW = jnp.broadcast_to(state.filled_B[:, None] + 1, slot_BxW.shape)
  rows = Rows(
    content_position_BxW=content_position_BxW,
    query_position_BxW=_at(task.order.position_BxN, slot_BxW),
    content_length_BxW=seen_BxW,
    query_length_BxW=seen_BxW,
    causal_length_BxW=jnp.broadcast_to((state.filled_B + width_B)[:, None], slot_BxW.shape),
    content_offset_B=state.committed_B,
    query_offset_B=state.filled_B,
    count_B=state.filled_B + 1 - state.committed_B,
    sees_all=True,
  )
  variables = {'params': params}
  with panels.reading(), fused.reading():
    hidden_BxWxE, network = model.apply(
      variables, content_BxW, rows, state.network, method='extend'
    )
    # As many as a product takes at once.
    several = fused.ROWS // math.gcd(batch, fused.ROWS)
    scored = min(num_rows, -width // several * -several)
    logits_BxWxV = model.apply(variables, hidden_BxWxE[:, :scored], method='logits')[:, :width]
  state = state.replace(network=network, committed_B=state.filled_B + 1, steps=state.steps + 1)
  return logits_BxWxV, width_B, state


def fill(state: DecodeState, tokens_BxW: Array, width_B: Array) -> DecodeState:
  """Puts the next block's tokens in; the padding behind them is overwritten by the next call."""
  if state.filled_B.shape[0] == 1:
    place = (0, state.filled_B[0])
    tokens_BxM = jax.lax.dynamic_update_slice(state.tokens_BxM, tokens_BxW, place)
  else:
    put = lambda row, new, offset: jax.lax.dynamic_update_slice(row, new, (offset,))
    tokens_BxM = jax.vmap(put)(state.tokens_BxM, tokens_BxW, state.filled_B)
  return state.replace(tokens_BxM=tokens_BxM, filled_B=state.filled_B + width_B)


def _content(task, state, offset_B, width):
  """Token ids and positions of the `width` content rows from `offset_B` on; row r holds slot r."""
  row_BxW = offset_B[:, None] + jnp.arange(width)
  is_first_BxW = row_BxW == 0
  position_BxW = jnp.where(is_first_BxW, 0, _at(task.order.position_BxN, row_BxW - 1))
  ids_BxW = jnp.where(is_first_BxW, task.first_B[:, None], _at(state.tokens_BxM, row_BxW - 1))
  return ids_BxW, position_BxW


def _at(x_BxN, index_BxW):
  """x[b, index[b, w]], where the index may be shared by the batch; it is clipped to the array."""
  index_BxW = jnp.clip(index_BxW, 0, x_BxN.shape[1] - 1)
  index_BxW = jnp.broadcast_to(index_BxW, (x_BxN.shape[0], index_BxW.shape[1]))
  return jnp.take_along_axis(x_BxN, index_BxW, axis=1)

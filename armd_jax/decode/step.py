"""A step of decoding, which all generation orders share, and the loop of steps.

A step commits the previous block (content rows into the caches) and predicts the next one, of up to
`width` slots; then its tokens are drawn and filled in.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from armd_jax.decode import sampling
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Plan
from armd_jax.decode.state import DecodeState, Task
from armd_jax.models.armd import Rows
from armd_jax.order import to_text
from armd_jax.parallel import axes

Array = jax.Array


@flax.struct.dataclass
class Generated:
  """A generated batch.

  Attributes:
    tokens_BxN: int32, in text order; positions past a sequence's length hold padding.
    length_B: int32, tokens of each sequence up to its end (an EOS it stopped at is not counted).
    steps: int32 scalar, forward passes after the prefill.
    margin_B: float32, nats, the closest decision of each sequence: by how much a drawn token's
      perturbed logit exceeded the second best. On other hardware, or other numbers of devices,
      logits that differ by half of it may change a token.
  """

  tokens_BxN: Array
  length_B: Array
  steps: Array
  margin_B: Array


def start(network: Network, plan: Plan, task: Task, tokens_BxN: Array) -> DecodeState:
  """Fills the caches with the given tokens in one pass through both streams.

  Args:
    network, plan: how to decode; of the plan `prefill`, `width` and `room`.
    task: what to generate.
    tokens_BxN: int32 in generation order; only the given slots are read.
  Returns:
    The state before the first step.
  """
  batch, prefill = len(tokens_BxN), plan.prefill
  state = DecodeState(
    tokens_BxM=axes.constrain(jnp.pad(tokens_BxN, ((0, 0), (0, plan.width))), 'batch', None),
    filled_B=task.num_given_B,
    committed_B=jnp.zeros_like(task.num_given_B),
    network=network.empty_caches(batch, plan.room),
    steps=jnp.zeros((), jnp.int32),
    margin_B=axes.constrain(jnp.full(batch, jnp.inf, jnp.float32), 'batch'),
  )
  if prefill == 0:
    return state
  # Given tokens are singletons, each of which sees BOS and those before it: lengths count up. Rows
  # past `num_given_B` are padding: what they write to the caches is behind every prefix that is
  # read, until the first step overwrites it. Query rows take part, since keys of causal layers are
  # theirs.
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
  _, caches = network.whole().extend(content_BxP, rows, state.network)
  return state.replace(network=caches, committed_B=task.num_given_B)


def advance(
  network: Network,
  task: Task,
  draws: sampling.Draws,
  plan: Plan,
  state: DecodeState,
  until: Callable[[DecodeState, int], Array] | None = None,
) -> DecodeState:
  """Steps until every text is complete or has stopped.

  Args:
    network, task, draws, state: of a batch that may be filled up to what the devices share.
    plan: how to decode.
    until: also ends where this holds, of a state and the width of the next step.
  """
  draws = draws.with_keys()
  # Heads come one by one and groups `width` at a time, and, in some orders, many again one by one:
  # a loop each, so that these cost few rows each.
  widths = [*sorted({plan.narrow, plan.width}), *[plan.tail] * bool(plan.tail)]
  for loop, width in enumerate(widths):
    is_last = loop == len(widths) - 1

    def more(state: DecodeState, width: int = width, is_last: bool = is_last) -> Array:
      go_on = jnp.any(wanted(plan, task, state))
      # The shape of a step is static, its need is not: a narrow loop hands over as soon as one
      # sequence needs more rows, the wide one once no sequence ever will again.
      if width < plan.width and not is_last:
        go_on &= jnp.max(step_rows(task, state)) <= width
      elif not is_last:
        go_on &= ~_in_tail(plan, task, state)
      return go_on if until is None else go_on & ~until(state, width)

    body = lambda state, width=width: step(network, task, draws, state, width)
    state = jax.lax.while_loop(more, body, state)
  return state


def step(
  network: Network, task: Task, draws: sampling.Draws, state: DecodeState, width: int
) -> DecodeState:
  """One forward pass: commits a block, predicts the next one and draws it; see `predict`."""
  slot_BxW = state.filled_B[:, None] + jnp.arange(width)
  logits_BxWxV, width_B, state = predict(network, task, state, width)
  keys_BxW = draws.slot_keys(slot_BxW)
  tokens_BxW, gap_BxW = sampling.draw(keys_BxW, logits_BxWxV, draws.temperature, draws.top_p)
  is_real_BxW = jnp.arange(width) < width_B[:, None]
  margins_BxW = jnp.where(is_real_BxW, gap_BxW, jnp.inf)
  margins_BxW = jnp.concatenate([state.margin_B[:, None], margins_BxW], axis=1)
  state = state.replace(margin_B=jnp.min(margins_BxW, axis=1))
  return fill(state, tokens_BxW, width_B)


def predict(
  network: Network, task: Task, state: DecodeState, width: int
) -> tuple[Array, Array, DecodeState]:
  """Commits the previous block and predicts the next one (paper section 3.1).

  Args:
    network, task, state: of a batch.
    width: static; at least the previous block's and the next block's number of slots.
  Returns:
    logits_BxWxV: float32, of slots `filled + 0..width-1`; those past the block are padding.
    width_B: how many of them are real.
    state: with the previous block committed; `fill` puts the chosen tokens in.
  """
  # Content rows of the block before (its tokens have only just been drawn) and query rows of the
  # next one go through the layers together: one pass over the weights a step instead of two. The
  # queries of a layer attend after its content rows have been written.
  width_B = next_width(task, state)
  num_rows, num_scored = network.form.step_rows(len(state.tokens_BxM), width)
  content_BxW, content_position_BxW = _content(task, state, state.committed_B, num_rows)
  slot_BxW = state.filled_B[:, None] + jnp.arange(num_rows)
  # All of a block see the same prefix, BOS and every slot that is filled: given that, its tokens
  # are independent of each other, which is what lets them be drawn at once.
  seen_BxW = jnp.broadcast_to(state.filled_B[:, None] + 1, slot_BxW.shape)
  rows = Rows(
    content_position_BxW=content_position_BxW,
    query_position_BxW=_at(task.order.position_BxN, slot_BxW),
    content_length_BxW=seen_BxW,
    query_length_BxW=seen_BxW,
    # Keys of causal layers are of query rows, which hold no token of their block.
    causal_length_BxW=jnp.broadcast_to((state.filled_B + width_B)[:, None], slot_BxW.shape),
    content_offset_B=state.committed_B,
    query_offset_B=state.filled_B,
    count_B=state.filled_B + 1 - state.committed_B,
    sees_all=True,
  )
  hidden_BxWxE, caches = network.extend(content_BxW, rows, state.network)
  logits_BxWxV = network.logits(hidden_BxWxE[:, :num_scored])[:, :width]
  state = state.replace(network=caches, committed_B=state.filled_B + 1, steps=state.steps + 1)
  return logits_BxWxV, width_B, state


def fill(state: DecodeState, tokens_BxW: Array, width_B: Array) -> DecodeState:
  """Puts the next block's tokens in; the padding behind them is overwritten by the next call."""
  # One place for all is a slice; a place for each becomes a scatter.
  if state.filled_B.shape[0] == 1:
    place = (0, state.filled_B[0])
    tokens_BxM = jax.lax.dynamic_update_slice(state.tokens_BxM, tokens_BxW, place)
  else:
    put = lambda row, new, offset: jax.lax.dynamic_update_slice(row, new, (offset,))
    tokens_BxM = jax.vmap(put)(state.tokens_BxM, tokens_BxW, state.filled_B)
  return state.replace(tokens_BxM=tokens_BxM, filled_B=state.filled_B + width_B)


def next_width(task: Task, state: DecodeState) -> Array:
  """int32 `[B or 1]`: slots of each sequence's next block; 0 when it is complete."""
  end_B = _at(task.end_BxN, state.filled_B[:, None])[:, 0]
  return jnp.maximum(jnp.minimum(end_B, task.length_B) - state.filled_B, 0)


def step_rows(task: Task, state: DecodeState) -> Array:
  """int32 [B or 1]: rows that the next step needs, which commits the block before it, too."""
  return jnp.maximum(next_width(task, state), state.filled_B + 1 - state.committed_B)


def _in_tail(plan: Plan, task: Task, state: DecodeState) -> Array:
  """bool scalar: no step to come needs more than `plan.tail` rows of a sequence."""
  slot_N = jnp.arange(task.order.num_slots)
  is_free_BxN = (slot_N >= task.num_given_B[:, None]) & (slot_N < task.length_B[:, None])
  end_BxN = jnp.minimum(task.end_BxN, task.length_B[:, None])
  wide_end_B = jnp.max(jnp.where(is_free_BxN & (end_BxN - slot_N > plan.tail), end_BxN, 0), axis=1)
  return jnp.all(state.filled_B >= wide_end_B) & (jnp.max(step_rows(task, state)) <= plan.tail)


def wanted(plan: Plan, task: Task, state: DecodeState) -> Array:
  """bool [B or 1]: sequences that still have a block to come that somebody waits for."""
  wanted_B = next_width(task, state) > 0
  if plan.stop_token is not None:
    wanted_B &= ~_stopped(task, state, plan.stop_token)
    wanted_B &= jnp.arange(len(state.tokens_BxM)) < plan.batch
  return wanted_B


def finish(plan: Plan, task: Task, state: DecodeState) -> Generated:
  """What has been generated so far, of the sequences that somebody waits for."""
  num_slots = task.order.num_slots
  length_B = jnp.broadcast_to(task.length_B, state.tokens_BxM.shape[:1])
  if plan.stop_token is not None:
    length_B = jnp.minimum(length_B, _first_stop(task, state, plan.stop_token) - 1)
  tokens_BxN = to_text(state.tokens_BxM[:, :num_slots], task.order)
  whole = lambda x: axes.constrain(x, *[None] * x.ndim)[: plan.batch]
  return Generated(whole(tokens_BxN), whole(length_B), state.steps, whole(state.margin_B))


def _first_stop(task: Task, state: DecodeState, stop_token: int) -> Array:
  """int32 [B]: smallest text position where the stop token was generated; beyond N if none was."""
  num_slots = task.order.num_slots
  slot_N = jnp.arange(num_slots)
  is_generated_BxN = (slot_N >= task.num_given_B[:, None]) & (slot_N < state.filled_B[:, None])
  is_stop_BxN = is_generated_BxN & (state.tokens_BxM[:, :num_slots] == stop_token)
  position_BxN = jnp.where(is_stop_BxN, task.order.position_BxN, num_slots + 1)
  return jnp.min(position_BxN, axis=1)


def _stopped(task: Task, state: DecodeState, stop_token: int) -> Array:
  """bool [B]: a stop token is there and every earlier position is filled."""
  # In text order, not in order of generation: a stop token in the second stream ends the text
  # there, but the first stream still has to be written up to it.
  first_B = _first_stop(task, state, stop_token)
  is_filled_BxN = jnp.arange(task.order.num_slots) < state.filled_B[:, None]
  before_BxN = is_filled_BxN & (task.order.position_BxN < first_B[:, None])
  return jnp.sum(before_BxN, axis=1) == first_B - 1


def _content(task: Task, state: DecodeState, offset_B: Array, width: int) -> tuple[Array, Array]:
  """Token ids and positions of the `width` content rows from `offset_B` on; row r holds slot r."""
  # Row 0 of the caches is BOS at position 0, so that row r is slot r - 1 and a prefix of f filled
  # slots has f + 1 rows.
  row_BxW = offset_B[:, None] + jnp.arange(width)
  is_first_BxW = row_BxW == 0
  position_BxW = jnp.where(is_first_BxW, 0, _at(task.order.position_BxN, row_BxW - 1))
  ids_BxW = jnp.where(is_first_BxW, task.first_B[:, None], _at(state.tokens_BxM, row_BxW - 1))
  return ids_BxW, position_BxW


def _at(x_BxN: Array, index_BxW: Array) -> Array:
  """x[b, index[b, w]], where the index may be shared by the batch; it is clipped to the array."""
  index_BxW = jnp.clip(index_BxW, 0, x_BxN.shape[1] - 1)
  index_BxW = jnp.broadcast_to(index_BxW, (x_BxN.shape[0], index_BxW.shape[1]))
  return jnp.take_along_axis(x_BxN, index_BxW, axis=1)

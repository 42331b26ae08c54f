"""Parallel generation of a batch in one compiled call, for any generation order."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import models
from armd_jax.config import ModelConfig
from armd_jax.decode import sampling
from armd_jax.decode.state import (
  DecodeState,
  Task,
  decoding_form,
  fill,
  next_width,
  predict,
  start,
)
from armd_jax.models.armd import BOS
from armd_jax.order import block_bounds, given_first, to_generation, to_text

Array = jax.Array


@flax.struct.dataclass
class Generated:
  """A generated batch.

  Attributes:
    tokens_BxN: int32, in text order; positions past a sequence's length hold padding.
    length_B: int32, tokens of each sequence up to its end (an EOS it stopped at is not counted).
    steps: int32 scalar, forward passes after the prefill.
  """

  tokens_BxN: Array
  length_B: Array
  steps: Array


def task_of(
  given_BxN: np.ndarray, length_B: np.ndarray, streams: int, first_token: int = BOS
) -> Task:
  """Strided generation around given tokens (paper section 3.1).

  Args:
    given_BxN: bool, by text position, which tokens are given.
    length_B: int, tokens per sequence; positions above are left alone.
    streams: S, how many runs the missing positions are cut into.
    first_token: token in BOS's place, for `bos='first_token_given'`.
  Returns:
    The task, its arrays `[1, ...]` where all sequences agree.
  """
  batch = given_BxN.shape[0]
  if (given_BxN == given_BxN[:1]).all() and (length_B == length_B[0]).all():
    given_BxN, length_B = given_BxN[:1], length_B[:1]
  order = jax.jit(given_first)(given_BxN, jnp.asarray(length_B, jnp.int32), streams)
  real_BxN = np.arange(given_BxN.shape[1]) < length_B[:, None]
  return Task(
    order=order,
    num_given_B=jnp.asarray((given_BxN & real_BxN).sum(axis=1), jnp.int32),
    length_B=jnp.asarray(length_B, jnp.int32),
    first_B=jnp.full(batch, first_token, jnp.int32),
  )


def generate(
  config: ModelConfig,
  vocab_size: int,
  params: Any,
  task: Task,
  tokens_BxN: Array,
  *,
  seed: int = 0,
  sequence_B: Array | None = None,
  temperature: float = 1.0,
  top_p: float = 1.0,
  stop_token: int | None = None,
) -> Generated:
  """Generates what the task asks for.

  Args:
    config, vocab_size, params: the network, as trained.
    task: from `task_of`, or made by hand for any other generation order.
    tokens_BxN: int32 in text order; only given positions are read.
    seed: of all draws.
    sequence_B: int32, index of each sequence among all that are generated, 0.. if None; a draw
      depends on (seed, sequence index, slot) alone.
    temperature: >= 0; 0 takes the most likely tokens.
    top_p: in (0, 1].
    stop_token: a text ends at its first such token by position, and the batch ends early once every
      sequence has one with nothing missing before it; None: never.
  Returns:
    The texts.
  Raises:
    ValueError: if temperature or top_p is out of range.
  """
  if not temperature >= 0:
    raise ValueError(f'temperature is {temperature}; write 0 or more')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p is {top_p}; write more than 0 and at most 1')
  if sequence_B is None:
    sequence_B = jnp.arange(tokens_BxN.shape[0])
  return _generate(
    config,
    vocab_size,
    params,
    task,
    jnp.asarray(tokens_BxN, jnp.int32),
    jax.random.key(seed),
    jnp.asarray(sequence_B),
    jnp.float32(temperature),
    None if top_p == 1 else jnp.float32(top_p),
    stop_token,
    *static_sizes(task),
  )


def compile_generate(
  config: ModelConfig, vocab_size: int, params: Any, task: Task
) -> tuple[Callable[[Array], Generated], float]:
  """`generate` at temperature 1, compiled ahead, for those who time it.

  Returns:
    A function of tokens_BxN (int32, text order), and the seconds that compiling took.
  """
  batch = task.first_B.shape[0]
  tokens_BxN = jnp.zeros((batch, config.num_slots), jnp.int32)
  arrays = (jax.random.key(0), jnp.arange(batch), jnp.float32(1), None)
  start = time.perf_counter()
  lowered = _generate.lower(
    config, vocab_size, params, task, tokens_BxN, *arrays, None, *static_sizes(task)
  )
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  return lambda tokens_BxN: compiled(params, task, tokens_BxN, *arrays), seconds


def static_sizes(task: Task) -> tuple[int, int]:
  """(rows to prefill, widest generated block): what the compiled program depends on."""
  start_BxN, end_BxN = map(np.asarray, block_bounds(task.order.block_BxN))
  num_given_B, length_B = np.asarray(task.num_given_B), np.asarray(task.length_B)
  slot_N = np.arange(start_BxN.shape[1])
  is_generated_BxN = (slot_N >= num_given_B[:, None]) & (slot_N < length_B[:, None])
  width_BxN = np.minimum(end_BxN, length_B[:, None]) - start_BxN
  return int(num_given_B.max()), int(np.where(is_generated_BxN, width_BxN, 1).max())


@functools.partial(
  jax.jit, static_argnames=('config', 'vocab_size', 'stop_token', 'prefill', 'width')
)
def _generate(
  config, vocab_size, params, task, tokens_BxN, key, sequence_B, temperature, top_p, stop_token,
  prefill, width,
):  # fmt: skip
  config, params = decoding_form(config, params)
  model = models.build(config, vocab_size)
  state = start(model, params, task, to_generation(tokens_BxN, task.order), prefill, width)

  def step(width, state: DecodeState) -> DecodeState:
    slot_BxW = state.filled_B[:, None] + jnp.arange(width)
    logits_BxWxV, width_B, state = predict(model, params, task, state, width)
    keys_BxW = sampling.slot_keys(key, sequence_B, slot_BxW)
    return fill(state, sampling.draw(keys_BxW, logits_BxWxV, temperature, top_p), width_B)

  # Heads come one by one and groups `width` at a time: two loops, so that heads cost one row each.
  for loop_width in sorted({1, width}):

    def more(state, loop_width=loop_width):
      width_B = next_width(task, state)
      fits = True if loop_width == width else jnp.max(width_B) <= loop_width
      wanted_B = width_B > 0
      if stop_token is not None:
        wanted_B &= ~_stopped(task, state, stop_token)
      return jnp.any(wanted_B) & fits

    state = jax.lax.while_loop(more, functools.partial(step, loop_width), state)

  num_slots = tokens_BxN.shape[1]
  length_B = jnp.broadcast_to(task.length_B, tokens_BxN.shape[:1])
  if stop_token is not None:
    length_B = jnp.minimum(length_B, _first_stop(task, state, stop_token) - 1)
  tokens_BxN = to_text(state.tokens_BxM[:, :num_slots], task.order)
  return Generated(tokens_BxN, length_B, state.steps)


def _first_stop(task, state, stop_token):
  """int32 [B]: smallest text position where the stop token was generated; beyond N if none was."""
  num_slots = task.order.num_slots
  slot_N = jnp.arange(num_slots)
  is_generated_BxN = (slot_N >= task.num_given_B[:, None]) & (slot_N < state.filled_B[:, None])
  is_stop_BxN = is_generated_BxN & (state.tokens_BxM[:, :num_slots] == stop_token)
  position_BxN = jnp.where(is_stop_BxN, task.order.position_BxN, num_slots + 1)
  return jnp.min(position_BxN, axis=1)


def _stopped(task, state, stop_token):
  """bool [B]: a stop token is there and every earlier position is filled."""
  first_B = _first_stop(task, state, stop_token)
  is_filled_BxN = jnp.arange(task.order.num_slots) < state.filled_B[:, None]
  before_BxN = is_filled_BxN & (task.order.position_BxN < first_B[:, None])
  return jnp.sum(before_BxN, axis=1) == first_B - 1

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
from jax.sharding import Mesh

from armd_jax import axes, models, sharding
from armd_jax.config import ModelConfig
from armd_jax.decode import sampling
from armd_jax.decode.state import (
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
    margin_B: float32, nats, the closest decision of each sequence: by how much a drawn token's
      perturbed logit exceeded the second best. On other hardware, or other numbers of devices,
      logits that differ by half of it may change a token.
  """

  tokens_BxN: Array
  length_B: Array
  steps: Array
  margin_B: Array


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
  mesh: Mesh | None = None,
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
    mesh: where the parameters lie, which shares the batch and the heads; None: on one device. Every
      process calls with the same arguments, and holds the result.
  Returns:
    The texts.
  Raises:
    ValueError: if temperature or top_p is out of range.
  """
  if not temperature >= 0:
    raise ValueError(f'temperature is {temperature}; write 0 or more')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p is {top_p}; write more than 0 and at most 1')
  batch = len(tokens_BxN)
  sequence_B = np.arange(batch) if sequence_B is None else np.asarray(sequence_B)
  rows = task, np.asarray(tokens_BxN, np.int32), sequence_B.astype(np.int32)
  return _generate(
    config,
    vocab_size,
    params,
    *(rows if mesh is None else _on_mesh(*rows, mesh, sharding.put)),
    np.uint32(seed % 2**32),
    np.float32(temperature),
    None if top_p == 1 else np.float32(top_p),
    stop_token,
    *static_sizes(task),
    batch,
    mesh,
  )


def _on_mesh(task, tokens_BxN, sequence_B, mesh, put):
  """The arguments laid out by `put`, with as many sequences as the devices can share."""

  def rows(x):
    return put(sharding.filled_up(np.asarray(x), mesh), sharding.batch_sharding(mesh))

  def progress(x):
    return put(np.asarray(x), sharding.replicated(mesh)) if len(x) == 1 else rows(x)

  task = jax.tree.map(progress, task).replace(first_B=rows(task.first_B))
  return task, rows(tokens_BxN), rows(sequence_B)


def lower_generate(
  config: ModelConfig, vocab_size: int, params: Any, task: Task, mesh: Mesh | None = None
) -> jax.stages.Lowered:
  """`generate` at temperature 1, traced and lowered, for those who time it or compile it ahead.

  Compiled, it is a function of params, task, tokens_BxN, sequence_B (int32), the seed (uint32),
  the temperature (float32) and None.

  Args:
    config, vocab_size: the network.
    params: arrays, or shapes with shardings on the mesh.
    task: what to generate.
    mesh: real, or of described devices; None: one device.
  """
  batch = len(task.first_B)
  rows = task, np.zeros((batch, config.num_slots), np.int32), np.zeros(batch, np.int32)
  shape = lambda x, where=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  rows = jax.tree.map(shape, rows) if mesh is None else _on_mesh(*rows, mesh, shape)
  settings = np.uint32(0), np.float32(1), None, None
  return _generate.lower(
    config, vocab_size, params, *rows, *settings, *static_sizes(task), batch, mesh
  )


def compile_generate(
  config: ModelConfig, vocab_size: int, params: Any, task: Task
) -> tuple[Callable[[Array], Generated], float]:
  """`generate` at temperature 1, compiled ahead, for those who time it.

  Returns:
    A function of tokens_BxN (int32, text order), and the seconds that compiling took.
  """
  start = time.perf_counter()
  compiled = lower_generate(config, vocab_size, params, task).compile()
  seconds = time.perf_counter() - start
  settings = jnp.arange(len(task.first_B), dtype=jnp.int32), np.uint32(0), np.float32(1), None
  return lambda tokens_BxN: compiled(params, task, tokens_BxN, *settings), seconds


def static_sizes(task: Task) -> tuple[int, int]:
  """(rows to prefill, widest generated block): what the compiled program depends on."""
  start_BxN, end_BxN = map(np.asarray, block_bounds(task.order.block_BxN))
  num_given_B, length_B = np.asarray(task.num_given_B), np.asarray(task.length_B)
  slot_N = np.arange(start_BxN.shape[1])
  is_generated_BxN = (slot_N >= num_given_B[:, None]) & (slot_N < length_B[:, None])
  width_BxN = np.minimum(end_BxN, length_B[:, None]) - start_BxN
  return int(num_given_B.max()), int(np.where(is_generated_BxN, width_BxN, 1).max())


@functools.partial(
  jax.jit,
  static_argnames=('config', 'vocab_size', 'stop_token', 'prefill', 'width', 'batch', 'mesh'),
)
def _generate(
  config, vocab_size, params, task, tokens_BxN, sequence_B, seed, temperature, top_p, stop_token,
  prefill, width, batch, mesh,
):  # fmt: skip
  with axes.on(mesh):
    return _generate_here(
      config, vocab_size, params, task, tokens_BxN, sequence_B, jax.random.key(seed), temperature,
      top_p, stop_token, prefill, width, batch,
    )  # fmt: skip


def _generate_here(
  config, vocab_size, params, task, tokens_BxN, sequence_B, key, temperature, top_p, stop_token,
  prefill, width, batch,
):  # fmt: skip
  config, params = decoding_form(config, params)
  model = models.build(config, vocab_size)
  state = start(model, params, task, to_generation(tokens_BxN, task.order), prefill, width)
  carry = state, axes.constrain(jnp.full(len(tokens_BxN), jnp.inf), 'batch')

  def step(width, carry):
    state, margin_B = carry
    slot_BxW = state.filled_B[:, None] + jnp.arange(width)
    logits_BxWxV, width_B, state = predict(model, params, task, state, width)
    keys_BxW = sampling.slot_keys(key, sequence_B, slot_BxW)
    tokens_BxW, gap_BxW = sampling.draw(keys_BxW, logits_BxWxV, temperature, top_p)
    is_real_BxW = jnp.arange(width) < width_B[:, None]
    margin_B = jnp.minimum(margin_B, jnp.min(jnp.where(is_real_BxW, gap_BxW, jnp.inf), axis=1))
    return fill(state, tokens_BxW, width_B), margin_B

  # Heads come one by one and groups `width` at a time: two loops, so that heads cost one row each.
  for loop_width in sorted({1, width}):

    def more(carry, loop_width=loop_width):
      state, _ = carry
      width_B = next_width(task, state)
      fits = True if loop_width == width else jnp.max(width_B) <= loop_width
      wanted_B = width_B > 0
      if stop_token is not None:
        wanted_B &= ~_stopped(task, state, stop_token)
        wanted_B &= jnp.arange(len(tokens_BxN)) < batch
      return jnp.any(wanted_B) & fits

    carry = jax.lax.while_loop(more, functools.partial(step, loop_width), carry)
  state, margin_B = carry

  num_slots = tokens_BxN.shape[1]
  length_B = jnp.broadcast_to(task.length_B, tokens_BxN.shape[:1])
  if stop_token is not None:
    length_B = jnp.minimum(length_B, _first_stop(task, state, stop_token) - 1)
  tokens_BxN = to_text(state.tokens_BxM[:, :num_slots], task.order)
  whole = lambda x: axes.constrain(x, *[None] * x.ndim)[:batch]
  return Generated(whole(tokens_BxN), whole(length_B), state.steps, whole(margin_B))


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

"""Parallel generation of a batch in one compiled call, for any generation order."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax import models
from armd_jax.config import ModelConfig
from armd_jax.decode import fused, panels, sampling
from armd_jax.decode.state import (
  CACHE_ROWS,
  DecodeState,
  Task,
  decoding_form,
  fill,
  next_width,
  predict,
  start,
  whole_room,
  with_room,
)
from armd_jax.hardware import device
from armd_jax.models.vocabulary import BOS
from armd_jax.order import block_bounds, given_first, to_generation, to_text
from armd_jax.parallel import axes, sharding

Array = jax.Array

ROOM = 128  # rows by which caches grow, at least


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
  rows = _rows(task, tokens_BxN, sequence_B, temperature, top_p, seed)
  rows = rows if mesh is None else _on_mesh(*rows, mesh, sharding.put)
  settings = stop_token, *static_sizes(task), len(tokens_BxN), mesh
  return _GENERATE(config, vocab_size, params, *rows, *settings)


def stream(
  config: ModelConfig,
  vocab_size: int,
  params: Any,
  task: Task,
  tokens_BxN: Array,
  *,
  chunk: int = 8,
  seed: int = 0,
  temperature: float = 1.0,
  top_p: float = 1.0,
  stop_token: int | None = None,
  mesh: Mesh | None = None,
) -> Iterator[tuple[Generated, np.ndarray]]:
  """`generate`, told about while it goes on: the same tokens, in three compiled parts.

  Args:
    chunk: steps between two reports.
  Yields:
    What there is after the prefill and after every chunk, and known_BxN (bool, by text position),
    which tokens of it are given or generated. The last one is what `generate` returns.
  Raises:
    ValueError: if temperature or top_p is out of range.
  """
  rows = _rows(task, tokens_BxN, None, temperature, top_p, seed)
  task, tokens_BxN, draws = rows if mesh is None else _on_mesh(*rows, mesh, sharding.put)
  prefill, width = static_sizes(task)
  batch = len(rows[1])
  where = stop_token, batch, mesh
  params, state = _begin(config, vocab_size, params, task, tokens_BxN, prefill, width, mesh)
  going_on = True
  while going_on:
    generated, known_BxN = _so_far(task, state, *where)
    yield generated, np.asarray(known_BxN)
    settings = np.int32(generated.steps + chunk), width, *where
    state, going_on = _ADVANCE(config, vocab_size, params, task, draws, state, *settings)
  generated, known_BxN = _so_far(task, state, *where)
  yield generated, np.asarray(known_BxN)


def _rows(task, tokens_BxN, sequence_B, temperature, top_p, seed):
  """The arguments as the compiled functions take them."""
  if not temperature >= 0:
    raise ValueError(f'temperature is {temperature}; write 0 or more')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p is {top_p}; write more than 0 and at most 1')
  sequence_B = np.arange(len(tokens_BxN)) if sequence_B is None else np.asarray(sequence_B)
  draws = sampling.Draws(
    seed=np.uint32(seed % 2**32),
    sequence_B=sequence_B.astype(np.int32),
    temperature=np.float32(temperature),
    top_p=None if top_p == 1 else np.float32(top_p),
  )
  return task, np.asarray(tokens_BxN, np.int32), draws


def _on_mesh(task, tokens_BxN, draws, mesh, put):
  """The arguments laid out by `put`, with as many sequences as the devices can share."""

  def rows(x):
    return put(sharding.filled_up(np.asarray(x), mesh), sharding.batch_sharding(mesh))

  def progress(x):
    return put(np.asarray(x), sharding.replicated(mesh)) if len(x) == 1 else rows(x)

  task = jax.tree.map(progress, task).replace(first_B=rows(task.first_B))
  return task, rows(tokens_BxN), draws.replace(sequence_B=rows(draws.sequence_B))


def lower_generate(
  config: ModelConfig, vocab_size: int, params: Any, task: Task, mesh: Mesh | None = None
) -> jax.stages.Lowered:
  """`generate` without top-p, traced and lowered, for those who time it or compile it ahead.

  Compiled, it is a function of params, task, tokens_BxN (int32) and `Draws`.

  Args:
    config, vocab_size: the network.
    params: arrays, or shapes with shardings on the mesh.
    task: what to generate.
    mesh: real, or of described devices; None: one device.
  """
  batch = len(task.first_B)
  rows = _rows(task, np.zeros((batch, config.num_slots)), None, 1.0, 1.0, 0)
  shape = lambda x, where=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  rows = jax.tree.map(shape, rows) if mesh is None else _on_mesh(*rows, mesh, shape)
  return _GENERATE.lower(config, vocab_size, params, *rows, None, *static_sizes(task), batch, mesh)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """`generate` at temperature 1, compiled for one task.

  Attributes:
    run: a function of tokens_BxN (int32, text order).
    seconds: that compiling took.
    bytes: that the program needs at once, weights included.
  """

  run: Callable[[Array], Generated]
  seconds: float
  bytes: int


def compile_generate(config: ModelConfig, vocab_size: int, params: Any, task: Task) -> Compiled:
  """Compiles ahead, for those who time it; `params` may come from `prepare`."""
  begin = time.perf_counter()
  compiled = lower_generate(config, vocab_size, params, task).compile()
  seconds = time.perf_counter() - begin
  said = compiled.memory_analysis()
  size = said.argument_size_in_bytes + said.output_size_in_bytes + said.temp_size_in_bytes
  run = lambda tokens_BxN: compiled(params, *_rows(task, tokens_BxN, None, 1.0, 1.0, 0))
  return Compiled(run, seconds, size - said.alias_size_in_bytes)


def static_sizes(task: Task) -> tuple[int, int]:
  """(rows to prefill, widest generated block): what the compiled program depends on."""
  start_BxN, end_BxN = map(np.asarray, block_bounds(task.order.block_BxN))
  num_given_B, length_B = np.asarray(task.num_given_B), np.asarray(task.length_B)
  slot_N = np.arange(start_BxN.shape[1])
  is_generated_BxN = (slot_N >= num_given_B[:, None]) & (slot_N < length_B[:, None])
  width_BxN = np.minimum(end_BxN, length_B[:, None]) - start_BxN
  return int(num_given_B.max()), int(np.where(is_generated_BxN, width_BxN, 1).max())


def _jit(*static: str, **options: Any) -> Callable[..., Any]:
  return functools.partial(jax.jit, static_argnames=static, **options)


class _Loop:
  """`jax.jit` of a function of a config and more that runs steps, compiled as its layers want."""

  def __init__(self, function: Callable[..., Any], *static: str, **options: Any):
    jit = functools.partial(jax.jit, function, static_argnames=static, **options)
    self._plain, self._fused = jit(), jit(compiler_options=fused.COMPILER_OPTIONS)

  def __call__(self, config: ModelConfig, *args: Any) -> Any:
    return self._jitted(config)(config, *args)

  def lower(self, config: ModelConfig, *args: Any) -> jax.stages.Lowered:
    return self._jitted(config).lower(config, *args)

  def _jitted(self, config):
    return self._fused if fused.serve(config) else self._plain


@_jit('config')
def prepare(config: ModelConfig, params: Any) -> Any:
  """Parameters as decoding reads them, for those who call with them many times: `generate` takes
  either, and makes these from trained ones at every call."""
  return _form(config, params, 1, None)[1]


def _generate(
  config, vocab_size, params, task, tokens_BxN, draws, stop_token, prefill, width, batch, mesh
):
  with axes.on(mesh):
    config, params = _form(config, params, 2 * len(tokens_BxN) * width, mesh)
    model = models.build(config, vocab_size)
    width = max(width, narrowest(len(tokens_BxN)))
    tokens_BxN = to_generation(tokens_BxN, task.order)
    rooms = _rooms(tokens_BxN.shape[1], prefill, width)
    state = start(model, params, task, tokens_BxN, prefill, width, rooms[0])
    where = width, stop_token, batch, None
    for room in rooms:
      state = with_room(state, room)
      state = advance(model, params, task, draws, state, *where, room, room == rooms[0])
    return finish(task, state, stop_token, batch)


_GENERATE = _Loop(
  _generate, 'config', 'vocab_size', 'stop_token', 'prefill', 'width', 'batch', 'mesh'
)


def _form(config, params, rows, mesh):
  """`decoding_form`, as matrices are multiplied fastest with so many rows."""
  config, params = decoding_form(config, params)
  if mesh is None or mesh.size == 1:
    if panels.serve(config, rows):
      return config, panels.cut(params)
    if fused.serve(config):
      return config, fused.fuse(params)
  return config, panels.whole(params)


def _rooms(num_slots, prefill, width):
  """Rows of the caches, one size after the other, where a step would read all of them. Kernels read
  what is filled, whatever the size."""
  whole = whole_room(num_slots, width)
  if device.current().platform != 'cpu':
    return (whole,)
  # A loop per size: the heads, one row each, belong into the first.
  first = prefill + 2 * width
  step = max(ROOM, -(whole // 4) // CACHE_ROWS * -CACHE_ROWS)
  return (*(room for room in range(step, whole, step) if room >= first), whole)


@_jit('config', 'vocab_size', 'prefill', 'width', 'mesh')
def _begin(config, vocab_size, params, task, tokens_BxN, prefill, width, mesh):
  with axes.on(mesh):
    config, params = _form(config, params, 2 * len(tokens_BxN) * width, mesh)
    model = models.build(config, vocab_size)
    width = max(width, narrowest(len(tokens_BxN)))
    tokens_BxN = to_generation(tokens_BxN, task.order)
    return params, start(model, params, task, tokens_BxN, prefill, width)


def _advance(
  config, vocab_size, params, task, draws, state, until, width, stop_token, batch, mesh
):  # fmt: skip
  with axes.on(mesh):
    config, _ = decoding_form(config, {})
    model = models.build(config, vocab_size)
    width = max(width, narrowest(len(state.tokens_BxM)))
    state = advance(model, params, task, draws, state, width, stop_token, batch, until)
    return state, jnp.any(wanted(task, state, stop_token, batch))


_ADVANCE = _Loop(
  _advance, 'config', 'vocab_size', 'width', 'stop_token', 'batch', 'mesh', donate_argnames='state'
)


@_jit('stop_token', 'batch', 'mesh')
def _so_far(task, state, stop_token, batch, mesh):
  with axes.on(mesh):
    num_slots = task.order.num_slots
    is_known_BxN = jnp.arange(num_slots) < state.filled_B[:, None]
    is_known_BxN = to_text(jnp.broadcast_to(is_known_BxN, (batch, num_slots)), task.order)
    return finish(task, state, stop_token, batch), axes.constrain(is_known_BxN, None, None)


def advance(
  model: Any,
  params: Any,
  task: Task,
  draws: sampling.Draws,
  state: DecodeState,
  width: int,
  stop_token: int | None,
  batch: int,
  until: Array | None = None,
  room: int | None = None,
  heads: bool = True,
) -> DecodeState:
  """Steps until every text is complete or has stopped, `until` steps are done, or the caches full.

  Args:
    model, params: in `decoding_form`.
    task, draws, state: of a batch that may be filled up to what the devices share.
    width: the widest block, static.
    stop_token: see `generate`.
    batch: sequences that somebody waits for.
    room: rows of the caches, if they do not hold whole texts.
    heads: whether blocks of one are taken apart; they are right either way.
  """
  task, draws = task.with_ends(), draws.with_keys()
  # Heads come one by one and groups `width` at a time: two loops, so that heads cost few rows each.
  narrow = narrowest(len(state.tokens_BxM))
  for loop_width in sorted({narrow, width}) if heads else (width,):

    def more(state, loop_width=loop_width):
      fits = True if loop_width == width else jnp.max(step_rows(task, state)) <= loop_width
      early = True if until is None else state.steps < until
      has_room = True if room is None else jnp.max(state.filled_B) + loop_width <= room
      return jnp.any(wanted(task, state, stop_token, batch)) & fits & early & has_room

    body = functools.partial(step, model, params, task, draws, width=loop_width)
    state = jax.lax.while_loop(more, body, state)
  return state


def narrowest(batch: int) -> int:
  """The fewest slots of each sequence that a step is compiled for.

  On a GPU no product gets a single row: XLA would multiply elementwise and add up, by way of arrays
  of the matrices' size, so that a step would read and write half as much again as its weights.
  """
  alone = batch == axes.size('batch')
  return 2 if alone and device.current().platform == 'gpu' else 1


def step(
  model: Any, params: Any, task: Task, draws: sampling.Draws, state: DecodeState, width: int
) -> DecodeState:
  """One forward pass: commits a block, predicts the next one and draws it; see `predict`."""
  slot_BxW = state.filled_B[:, None] + jnp.arange(width)
  logits_BxWxV, width_B, state = predict(model, params, task, state, width)
  keys_BxW = draws.slot_keys(slot_BxW)
  tokens_BxW, gap_BxW = sampling.draw(keys_BxW, logits_BxWxV, draws.temperature, draws.top_p)
  is_real_BxW = jnp.arange(width) < width_B[:, None]
  margins_BxW = jnp.where(is_real_BxW, gap_BxW, jnp.inf)
  margins_BxW = jnp.concatenate([state.margin_B[:, None], margins_BxW], axis=1)
  state = state.replace(margin_B=jnp.min(margins_BxW, axis=1))
  return fill(state, tokens_BxW, width_B)


def step_rows(task: Task, state: DecodeState) -> Array:
  """int32 [B or 1]: rows that the next step needs, which commits the block before it, too."""
  return jnp.maximum(next_width(task, state), state.filled_B + 1 - state.committed_B)


def wanted(task: Task, state: DecodeState, stop_token: int | None, batch: int) -> Array:
  """bool [B or 1]: sequences that still have a block to come that somebody waits for."""
  wanted_B = next_width(task, state) > 0
  if stop_token is not None:
    wanted_B &= ~_stopped(task, state, stop_token)
    wanted_B &= jnp.arange(len(state.tokens_BxM)) < batch
  return wanted_B


def finish(task: Task, state: DecodeState, stop_token: int | None, batch: int) -> Generated:
  """What has been generated so far, of the first `batch` sequences."""
  num_slots = task.order.num_slots
  length_B = jnp.broadcast_to(task.length_B, state.tokens_BxM.shape[:1])
  if stop_token is not None:
    length_B = jnp.minimum(length_B, _first_stop(task, state, stop_token) - 1)
  tokens_BxN = to_text(state.tokens_BxM[:, :num_slots], task.order)
  whole = lambda x: axes.constrain(x, *[None] * x.ndim)[:batch]
  return Generated(whole(tokens_BxN), whole(length_B), state.steps, whole(state.margin_B))


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

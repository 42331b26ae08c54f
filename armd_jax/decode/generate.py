"""Parallel generation of a batch in one compiled call, for any generation order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax import orders
from armd_jax.decode import cpu, fused
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Form, Plan
from armd_jax.decode.sampling import Draws, Sampling
from armd_jax.decode.state import DecodeState, Task, whole_room
from armd_jax.decode.step import Generated, advance, finish, start, wanted
from armd_jax.hardware import device
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import BOS
from armd_jax.order import GenerationOrder, given_first, to_generation, to_text
from armd_jax.parallel import axes, sharding

Array = jax.Array
Model = ARMD | AR

SHORTEST_TAIL = 16  # steps of a slot each at the end, that get a loop of their own
FEWEST_PREFILL = 16  # rows of the pass over given tokens; other sizes are twice another


def task_of(
  given_BxN: Array | np.ndarray,
  length_B: Array | np.ndarray,
  streams: int,
  first_token: int = BOS,
  order: GenerationOrder | None = None,
) -> Task:
  """Strided generation around given tokens (paper section 3.1), or along another order.

  Args:
    given_BxN: bool, by text position, which tokens are given.
    length_B: int, tokens per sequence; positions above are left alone.
    streams: S, how many parts the missing positions are cut into.
    first_token: token in BOS's place, for a config's `first_token='given'`.
    order: of the missing tokens, `[1, n]`; None: strided.
  Returns:
    The task, its arrays `[1, ...]` where all sequences agree.
  """
  batch = given_BxN.shape[0]
  # One order for all where they agree: caches are then written by slices (`decode.state`).
  if (given_BxN == given_BxN[:1]).all() and (length_B == length_B[0]).all():
    given_BxN, length_B = given_BxN[:1], length_B[:1]
  if order is None:
    order = jax.jit(given_first)(given_BxN, jnp.asarray(length_B, jnp.int32), streams)
  else:
    order = orders.around(np.asarray(given_BxN), np.asarray(length_B), order)
  real_BxN = np.arange(given_BxN.shape[1]) < length_B[:, None]
  num_given_B = jnp.asarray((given_BxN & real_BxN).sum(axis=1), jnp.int32)
  first_B = jnp.full(batch, first_token, jnp.int32)
  return Task.of(order, num_given_B, jnp.asarray(length_B, jnp.int32), first_B)


def plan_of(
  model: Model,
  task: Task,
  stop_token: int | None = None,
  mesh: Mesh | None = None,
  by_chance: bool = False,
) -> Plan:
  """How a task is decoded on the device that is traced for, or on the mesh.

  Args:
    by_chance: whether other tasks of the kind have blocks of other sizes: the width is then a power
      of two, so that they seldom compile anew.
  """
  num_slots, batch = task.order.num_slots, len(task.first_B)
  num_given_B, length_B = np.asarray(task.num_given_B), np.asarray(task.length_B)
  slot_N = np.arange(num_slots)
  is_generated_BxN = (slot_N >= num_given_B[:, None]) & (slot_N < length_B[:, None])
  # In NumPy, before any tracing: sizes of arrays follow from the largest block.
  left_BxN = np.minimum(np.asarray(task.end_BxN), length_B[:, None]) - slot_N  # of a slot's block
  width_BxN = np.where(is_generated_BxN, left_BxN, 1)
  width = int(width_BxN.max())
  width = 1 << (width - 1).bit_length() if by_chance else width
  form = device_form()
  if mesh is None or mesh.size == 1:
    form = form.for_steps(model.config, 2 * batch * width)
  narrow = form.narrowest(-(-batch // (1 if mesh is None else sharding.batch_parts(mesh))))
  prefill, width = prefill_rows(int(num_given_B.max()), num_slots), max(width, narrow)
  room = whole_room(num_slots, width)
  wide_end_B = np.where(width_BxN > narrow, slot_N + left_BxN, 0).max(axis=1)
  # Eso-LM's orders end left to right, a slot a step, which at the width of its blocks would cost as
  # many times the rows.
  has_tail = 0 < wide_end_B.max() <= (length_B - SHORTEST_TAIL).min()
  tail = narrow if has_tail else 0
  return Plan(form, batch, prefill, width, narrow, room, tail, stop_token, mesh)


def prefill_rows(given: int, num_slots: int) -> int:
  """Rows of the pass over so many given tokens: few sizes, so that prompts of other lengths seldom
  compile anew. The rows beyond the given ones are padding, which no row sees."""
  sizes = (FEWEST_PREFILL << n for n in itertools.count())
  return min(num_slots, next(size for size in sizes if size >= given)) if given else 0


def device_form() -> Form:
  """The form of the device that is traced for."""
  return {'cpu': cpu.CPU, 'gpu': fused.GPU}.get(device.current().platform, Form)()


def prepare(model: Model, params: Params) -> Network:
  """Weights as decoding on one device reads them, for those who call with them many times:
  `generate` takes either, and makes these from trained ones at every call."""
  return _prepare(model, params, device_form().for_steps(model.config, 1))


_prepare = jax.jit(Network.of, static_argnames=('model', 'form'))


def generate(
  model: Model,
  params: Params | Network,
  task: Task,
  tokens_BxN: Array | np.ndarray,
  sampling: Sampling,
  *,
  sequence_B: Array | None = None,
  mesh: Mesh | None = None,
  by_chance: bool = False,
) -> Generated:
  """Generates the missing tokens of a task.

  Args:
    model: as trained.
    params: as trained, or from `prepare`.
    task: from `task_of`, or made by hand for any other generation order.
    tokens_BxN: int32 in text order; only given positions are read.
    sampling: how tokens are drawn and where a text ends.
    sequence_B: int32, index of each sequence among all that are generated, 0.. if None; a draw
      depends on (seed, sequence index, slot) alone.
    mesh: where the parameters are, which shares the batch and the heads; None: on one device. Every
      process calls with the same arguments, and gets the result.
    by_chance: see `plan_of`.
  """
  plan = plan_of(model, task, sampling.stop, mesh, by_chance)
  inputs = _inputs(mesh, task, tokens_BxN, sampling.draws(len(tokens_BxN), sequence_B))
  return _generate_jitted(model, plan)(plan, model, params, *inputs)


def stream(
  model: Model,
  params: Params | Network,
  task: Task,
  tokens_BxN: Array | np.ndarray,
  sampling: Sampling,
  *,
  chunk: int = 8,
  mesh: Mesh | None = None,
) -> Iterator[tuple[Generated, np.ndarray]]:
  """`generate` with intermediate results: the same tokens, in three compiled parts.

  Args:
    chunk: steps between two reports.
  Yields:
    What there is after the prefill and after every chunk, and known_BxN (bool, by text position),
    which tokens of it are given or generated. The last one is what `generate` returns.
  """
  plan = plan_of(model, task, sampling.stop, mesh)
  draws = sampling.draws(len(tokens_BxN))
  task, tokens_BxN, draws = _inputs(mesh, task, tokens_BxN, draws)
  network, state = _begin(plan, model, params, task, tokens_BxN)
  # The state is donated: caches are most of the memory, and are written in place.
  static = {'static_argnames': 'plan', 'donate_argnames': 'state'}
  run = _jitted(_advance, _options(model, plan), **static)
  going_on = True
  while going_on:
    generated, known_BxN = _so_far(plan, task, state)
    yield generated, np.asarray(known_BxN)
    until = np.int32(generated.steps + chunk)
    state, going_on = run(plan, network, task, draws, until, state)
  generated, known_BxN = _so_far(plan, task, state)
  yield generated, np.asarray(known_BxN)


def _inputs(
  mesh: Mesh | None,
  task: Task,
  tokens_BxN: Array | np.ndarray,
  draws: Draws,
  put: Callable[..., Any] = sharding.put,
) -> tuple[Task, Array | np.ndarray, Draws]:
  """The arguments as compiled functions take them: on a mesh laid out by `put`, with as many
  sequences as the devices can share."""
  tokens_BxN = np.asarray(tokens_BxN, np.int32)
  if mesh is None:
    return task, tokens_BxN, draws

  def rows(x: Any) -> Any:
    return put(sharding.filled_up(np.asarray(x), mesh), sharding.batch_sharding(mesh))

  # What has one row for all sequences keeps it, on every device.
  def progress(x: Any) -> Any:
    return put(np.asarray(x), sharding.replicated(mesh)) if len(x) == 1 else rows(x)

  task = jax.tree.map(progress, task).replace(first_B=rows(task.first_B))
  return task, rows(tokens_BxN), draws.replace(sequence_B=rows(draws.sequence_B))


def lower_generate(
  model: Model, params: Params | Network, task: Task, mesh: Mesh | None = None
) -> jax.stages.Lowered:
  """`generate` without top-p, traced and lowered, for those who time it or compile it ahead.

  Compiled, it is a function of params, task, tokens_BxN (int32) and `Draws`.

  Args:
    model: as trained.
    params: arrays, or shapes with shardings on the mesh.
    task: what to generate.
    mesh: real, or of described devices; None: one device.
  """
  plan = plan_of(model, task, mesh=mesh)
  shape = lambda x, where=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
  empty_BxN = np.zeros((plan.batch, task.order.num_slots))
  inputs = _inputs(mesh, task, empty_BxN, Sampling().draws(plan.batch), shape)
  inputs = jax.tree.map(shape, inputs) if mesh is None else inputs
  return _generate_jitted(model, plan).lower(plan, model, params, *inputs)


@dataclasses.dataclass(frozen=True)
class Compiled:
  """`generate` at temperature 1, compiled for one task.

  Attributes:
    run: a function of tokens_BxN (int32, text order).
    seconds: that compiling took.
    bytes: that the program needs at once, weights included.
    text: the program as XLA has optimised it.
  """

  run: Callable[[Array], Generated]
  seconds: float
  bytes: int
  text: Callable[[], str]


def compile_generate(model: Model, params: Params | Network, task: Task) -> Compiled:
  """Compiles ahead, for those who time it; `params` may come from `prepare`."""
  begin = time.perf_counter()
  compiled = lower_generate(model, params, task).compile()
  seconds = time.perf_counter() - begin
  said: Any = compiled.memory_analysis()
  size = said.argument_size_in_bytes + said.output_size_in_bytes + said.temp_size_in_bytes
  draws = Sampling().draws(len(task.first_B))
  run = lambda tokens_BxN: compiled(params, *_inputs(None, task, tokens_BxN, draws))
  # XLA has a text of every program; jax's signature allows for compilers without one.
  return Compiled(run, seconds, size - said.alias_size_in_bytes, compiled.as_text)  # type: ignore[arg-type]


def _generate_jitted(model: Model, plan: Plan) -> jax.stages.Wrapped:
  return _jitted(_generate, _options(model, plan), static_argnames=('plan', 'model'))


def _options(model: Model, plan: Plan) -> tuple[tuple[str, Any], ...]:
  return tuple(plan.form.compiler_options(model.config).items())


@functools.cache
def _jitted(
  function: Callable[..., Any], options: tuple[tuple[str, Any], ...], **jit: Any
) -> jax.stages.Wrapped:
  """`jax.jit` of a function that runs steps, with the compiler options of a plan's form."""
  return jax.jit(function, compiler_options=dict(options) or None, **jit)


def _generate(
  plan: Plan,
  model: Model,
  params: Params | Network,
  task: Task,
  tokens_BxN: Array,
  draws: Draws,
) -> Generated:
  with axes.on(plan.mesh):
    network = Network.of(model, params, plan.form)
    tokens_BxN = to_generation(tokens_BxN, task.order)
    begin = lambda plan: start(network, plan, task, tokens_BxN)
    state = plan.form.run(plan, begin, functools.partial(advance, network, task, draws))
    return finish(plan, task, state)


@functools.partial(jax.jit, static_argnames=('plan', 'model'))
def _begin(
  plan: Plan, model: Model, params: Params | Network, task: Task, tokens_BxN: Array
) -> tuple[Network, DecodeState]:
  with axes.on(plan.mesh):
    network = Network.of(model, params, plan.form)
    return network, start(network, plan, task, to_generation(tokens_BxN, task.order))


def _advance(
  plan: Plan, network: Network, task: Task, draws: Draws, until: Array, state: DecodeState
) -> tuple[DecodeState, Array]:
  with axes.on(plan.mesh):
    is_due = lambda state, width: state.steps >= until
    state = advance(network, task, draws, plan, state, is_due)
    return state, jnp.any(wanted(plan, task, state))


@functools.partial(jax.jit, static_argnames='plan')
def _so_far(plan: Plan, task: Task, state: DecodeState) -> tuple[Generated, Array]:
  with axes.on(plan.mesh):
    num_slots = task.order.num_slots
    is_known_BxN = jnp.arange(num_slots) < state.filled_B[:, None]
    is_known_BxN = to_text(jnp.broadcast_to(is_known_BxN, (plan.batch, num_slots)), task.order)
    return finish(plan, task, state), axes.constrain(is_known_BxN, None, None)

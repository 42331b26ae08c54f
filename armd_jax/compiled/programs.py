"""Training and decoding programs compiled for hardware that is not here, and what they need."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax import models, training
from armd_jax.compiled import flops, hlo, roofline, targets
from armd_jax.config import Config, MeshConfig
from armd_jax.decode import generate, step
from armd_jax.decode.network import Network
from armd_jax.decode.state import Task
from armd_jax.errors import UserError
from armd_jax.hardware import device
from armd_jax.hardware.chips import GIB
from armd_jax.parallel import sharding
from armd_jax.training import loop

# Streams and given tokens of the text that decoding is compiled for: SBP's fastest, half a prompt.
DECODE_STREAMS = 4


SEQUENCES_PER_DEVICE = 8


REMAT_POLICIES = ('none', 'dots', 'full')  # what each recomputes grows


def mesh_for(
  config: Config, target: targets.Target, vocab_size: int, say: Callable[[str], None]
) -> tuple[Config, Mesh]:
  """The config's mesh, or, where it does not suit the devices and the batch, one that does.

  What suits: all devices along fsdp, or the chips of a process along tensor as well.

  Raises:
    UserError: none does.
  """
  local = len(target.devices) // target.processes
  refused = None
  for mesh_config in (config.mesh, MeshConfig(1, -1, 1), MeshConfig(1, -1, local)):
    changed = dataclasses.replace(config, mesh=mesh_config)
    try:
      mesh = sharding.make_mesh(mesh_config, list(target.devices))
      loop.check_batch(changed, mesh)
      training.abstract_state(changed, vocab_size, mesh)
    except UserError as error:
      refused = refused or error
      continue
    if refused:
      sizes = ' '.join(f'--config.mesh.{name}={size}' for name, size in mesh.shape.items())
      say(f'another mesh is taken ({sizes}), because {refused}')
    return changed, mesh
  raise refused  # type: ignore[misc]  # nothing suited, so there is a reason


@contextlib.contextmanager
def _kernels(target: targets.Target) -> Iterator[None]:
  with device.compiling_for(target.kernels):
    yield


def lower_train(
  config: Config, vocab_size: int, mesh: Mesh, target: targets.Target
) -> jax.stages.Lowered:
  """The training step."""
  state = training.abstract_state(config, vocab_size, mesh)
  text_BxN = jax.ShapeDtypeStruct(
    (config.train.batch_size, config.model.length),
    jnp.int32,
    sharding=sharding.batch_sharding(mesh),
  )
  with _kernels(target):
    return training.train_step(config, vocab_size, mesh).lower(state, text_BxN)


def decode_task(config: Config, batch: int) -> Task:
  """A text half of which is given, to be gone on with in DECODE_STREAMS streams."""
  slots = config.model.num_slots
  given_BxN = np.zeros((batch, slots), bool)
  given_BxN[:, : slots // 2] = True
  return generate.task_of(given_BxN, np.full(batch, slots), DECODE_STREAMS)


def lower_decode(
  config: Config, vocab_size: int, mesh: Mesh, target: targets.Target
) -> jax.stages.Lowered:
  """Prefill and decoding loops, one program."""
  params = training.abstract_params(config, vocab_size, mesh)
  task = decode_task(config, SEQUENCES_PER_DEVICE * sharding.batch_parts(mesh))
  with _kernels(target):
    return generate.lower_generate(
      models.build(config.model, vocab_size),  # type: ignore[arg-type]
      params,
      task,
      mesh,
    )


def train_flops(config: Config, vocab_size: int) -> flops.MatmulFlops:
  """Of one step of all devices, its orders left-to-right."""
  one = dataclasses.replace(
    config, train=dataclasses.replace(config.train, batch_size=1, accumulation=1)
  )
  params = jax.eval_shape(lambda: training.init_state(one, vocab_size).params)
  text_BxN = jax.ShapeDtypeStruct((1, config.model.length), jnp.int32)
  counted = flops.count(
    lambda *args: training.loss_and_gradients(one, vocab_size, *args),
    params,
    jnp.int32(0),
    text_BxN,
  )
  return counted.times(config.train.batch_size)


def decode_flops(config: Config, vocab_size: int, batch: int) -> dict[str, flops.MatmulFlops]:
  """Of all devices: the prefill, and one step of DECODE_STREAMS tokens per sequence in mid-text."""
  task = decode_task(config, 1)
  shapes = jax.eval_shape(lambda: training.init_params(config, vocab_size))
  model, form = models.build(config.model, vocab_size), generate.device_form()  # type: Any, Any
  network = jax.eval_shape(lambda params: Network.of(model, params, form), shapes)
  tokens_BxN = jnp.zeros((1, config.model.num_slots), jnp.int32)
  plan = generate.plan_of(model, task)
  start = lambda network, tokens_BxN: step.start(network, plan, task, tokens_BxN)
  state = jax.eval_shape(start, network, tokens_BxN)
  middle = (task.num_given_B + task.length_B) // 2
  state = state.replace(filled_B=middle, committed_B=middle + 1 - plan.width)
  one_step = lambda network, state: step.predict(network, task, state, plan.width)[0]
  return {
    'prefill': flops.count(start, network, tokens_BxN).times(batch),
    'decode': flops.count(one_step, network, state).times(batch),
  }


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """The compiler's figures for a program that it refuses: bytes wanted and bytes there are."""

  wanted: float
  there: float


def compile_program(lowered: jax.stages.Lowered, target: targets.Target):
  """The compiled program, or TooLarge."""
  options = dict(target.options)
  try:
    try:
      return lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
      if 'No supported config found for HLO' not in str(error):
        raise
      # Where nothing can be timed, XLA of jax 0.11 has no tiles for some products that it has given
      # to Triton; cuBLAS takes them all.
      return lowered.compile(options | {'xla_gpu_enable_triton_gemm': False})
  except jax.errors.JaxRuntimeError as error:
    sizes = re.findall(r'([\d.]+)([KMGT])', str(error).partition('memory')[2])
    if 'RESOURCE_EXHAUSTED' not in str(error) or len(sizes) < 2:
      raise
    bytes_of = lambda size: float(size[0]) * 1024 ** ('KMGT'.index(size[1]) + 1)
    return TooLarge(*map(bytes_of, sizes[:2]))


def memory(compiled: Any, target: targets.Target) -> dict[str, float]:
  """Bytes of one device; donated arguments and their outputs count once."""
  if isinstance(compiled, TooLarge):
    return {'total': compiled.wanted, 'usable': compiled.there, 'fits': False}
  said = compiled.memory_analysis()
  arguments, outputs = said.argument_size_in_bytes, said.output_size_in_bytes
  code, temporary = said.generated_code_size_in_bytes, said.temp_size_in_bytes
  total = arguments + outputs - said.alias_size_in_bytes + temporary + code
  usable = target.chip.hbm - target.chip.reserved
  return {
    'arguments': arguments,
    'temporary': temporary,
    'code': code,
    'total': total,
    'usable': usable,
    'fits': total <= usable,
  }


def held(tree: Any) -> int:
  """Bytes of one device's part of a tree of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def measured(
  cost: hlo.Cost, counted: flops.MatmulFlops, mesh: Mesh, target: targets.Target
) -> dict:
  """Numbers of one program or of one round of its loop, per device."""
  dense, visible = counted.dense / mesh.size, counted.visible / mesh.size
  time = roofline.estimate(target.chip, mesh, dense, visible, cost)
  by_axis = sorted(cost.sent.items(), key=lambda item: -item[1])
  return {
    'dense_flops': dense,
    'visible_flops': visible,
    'product_flops_outside_kernels': cost.product_flops,
    'hbm_bytes': cost.hbm_bytes,
    'sent_bytes': sum(cost.sent.values()),
    'launches': cost.kernels,
    'collectives': [
      {'kind': kind, 'axis': axis, 'bytes': sent, 'launches': cost.launches[kind, axis]}
      for (kind, axis), sent in by_axis
    ],
    'seconds': {
      'compute': time.compute,
      'memory': time.memory,
      'network': time.network,
      'overlapped': time.overlapped,
      'serial': time.serial,
    },
    'mfu': {'overlapped': time.mfu_overlapped, 'serial': time.mfu_serial},
  }


def settings(config: Config, mesh: Mesh) -> dict[str, Any]:
  """What a row is about."""
  return {
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'batch_size': config.train.batch_size,
    'accumulation': config.train.accumulation,
    'remat': config.model.remat,
  }


def fingerprint(lowered: jax.stages.Lowered, target: targets.Target) -> str:
  """A hash of all that the compiled program depends on, compilers aside."""
  text = f'{target.name} {target.options}\n{lowered.as_text()}'
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def train_report(
  config: Config, vocab_size: int, mesh: Mesh, target: targets.Target, compiled: Any
) -> dict[str, Any]:
  """Numbers of the training step, from what `compile_program` returned."""
  state = training.abstract_state(config, vocab_size, mesh)
  parts = {'parameters': state.params, 'ema': state.ema, 'optimizer': state.opt_state}
  report = settings(config, mesh) | {
    'num_parameters': sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
    'memory': {name: held(tree) for name, tree in parts.items()} | memory(compiled, target),
  }
  if not isinstance(compiled, TooLarge):
    program = hlo.Program(compiled.as_text(), dict(mesh.shape))
    report |= measured(program.cost, train_flops(config, vocab_size), mesh, target)
  return report


def decode_report(
  config: Config, vocab_size: int, mesh: Mesh, target: targets.Target, compiled: Any
) -> dict[str, Any]:
  """Numbers of the prefill and of one decoding step."""
  batch = SEQUENCES_PER_DEVICE * sharding.batch_parts(mesh)
  report = {
    'devices': mesh.size,
    'mesh': dict(mesh.shape),
    'sequences': batch,
    'memory': memory(compiled, target),
  }
  if not isinstance(compiled, TooLarge):
    program = hlo.Program(compiled.as_text(), dict(mesh.shape))
    counted = decode_flops(config, vocab_size, batch)
    # Of the two loops, stream heads one by one and S tokens at a time, the second runs longest.
    costs = {'prefill': program.cost, 'decode': list(program.rounds.values())[-1]}
    report |= {name: measured(costs[name], counted[name], mesh, target) for name in costs}
  return report


def fixes(config: Config, mesh: Mesh) -> Iterator[tuple[str, Config]]:
  """Settings that need less memory, those that cost least first, as flags and as configs."""
  sizes, flag = dict(mesh.shape), ''
  if sizes['data'] > 1:
    # Sharding the state costs gathers, but no product twice.
    whole = MeshConfig(1, sizes['data'] * sizes['fsdp'], sizes['tensor'])
    config = dataclasses.replace(config, mesh=whole)
    flag = f'--config.mesh.data=1 --config.mesh.fsdp={whole.fsdp} '
    yield flag.strip(), config
  most = config.train.batch_size // sharding.batch_parts(mesh)
  counts = [c for c in (2**i for i in range(16)) if c >= config.train.accumulation]
  for remat in REMAT_POLICIES[REMAT_POLICIES.index(config.model.remat) :]:
    for accumulation in counts:
      same = (remat, accumulation) == (config.model.remat, config.train.accumulation)
      if not same and most % accumulation == 0:
        model = dataclasses.replace(config.model, remat=remat)
        train_config = dataclasses.replace(config.train, accumulation=accumulation)
        yield (
          f'{flag}--config.model.remat={remat} --config.train.accumulation={accumulation}',
          dataclasses.replace(config, model=model, train=train_config),
        )


def find_fix(
  config: Config, vocab_size: int, mesh: Mesh, target: targets.Target, say: Callable[[str], None]
) -> str:
  """One sentence: the first of `fixes` that fits, each compiled; or what would be needed."""
  usable = target.chip.hbm - target.chip.reserved
  state = training.abstract_state(config, vocab_size, mesh)
  # Gradients are of the parameters' size, and there before anything is updated.
  whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves((state, state.params)))
  if whole / mesh.size > usable:
    needed = 2 ** math.ceil(math.log2(whole / usable))
    return (
      f'parameters, optimizer, averages and gradients alone are {whole / GIB:.0f} GiB: take '
      f'{needed} or more such chips with --config.mesh.data=1 --config.mesh.fsdp={needed}'
    )
  tried = list(fixes(config, mesh))
  for remat in REMAT_POLICIES:
    # Memory falls from one setting of a policy to the next.
    same = [(flag, changed) for flag, changed in tried if changed.model.remat == remat]
    fits = lambda i, same=same: _fits(same[i][1], vocab_size, target, say)
    if same and fits(-1):
      first = bisect.bisect_left(range(len(same) - 1), True, key=fits)
      return f'it fits with {same[first][0]}'
  return 'no remat policy or accumulation makes it fit; take more chips along config.mesh.fsdp'


def _fits(config, vocab_size, target, say) -> bool:
  mesh = sharding.make_mesh(config.mesh, list(target.devices))
  compiled = compile_program(lower_train(config, vocab_size, mesh, target), target)
  needs: dict[str, Any] = memory(compiled, target)
  say(
    f'  tried remat {config.model.remat}, accumulation {config.train.accumulation}, mesh '
    f'{dict(mesh.shape)}: {needs["total"] / GIB:.2f} GiB of {needs["usable"] / GIB:.2f}'
  )
  return needs['fits']

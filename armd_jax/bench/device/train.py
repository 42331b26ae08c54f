"""A training step in bfloat16, ARMD beside AR: milliseconds, tokens/s, MFU and memory."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from armd_jax import training
from armd_jax.bench import timing, train_step
from armd_jax.bench.device import calls, kernels
from armd_jax.bench.device.ahead import compiled_ahead
from armd_jax.bench.device.cases import STEPS, TINY_TRAIN, Step
from armd_jax.bench.device.rows import Rows
from armd_jax.config import Config
from armd_jax.models.flops import training_flops
from armd_jax.parallel import sharding

DRY_BATCH = 2
LOSS_CHUNK = 256
TURNS, WARM_UP = 13, 2
TRACED, TRACED_STEPS = 2, 2  # of the programs the first, and their steps


def config_of(step: Step, dry: bool) -> tuple[Config, int]:
  """The config of a step, and its vocabulary size."""
  sizes = dict(TINY_TRAIN if dry else timing.SHAPES[step.shape])
  vocab_size = sizes.pop('vocab_size')
  model = sizes | {'dtype': 'bfloat16', 'dropout': 0.0}
  model |= {'remat': step.remat, 'attention': step.attention}
  if step.family == 'armd' and step.two_stream:
    model['num_two_stream_layers'] = step.two_stream
  batch = DRY_BATCH if dry else step.batch
  train = {'batch_size': batch, 'loss_chunk': min(LOSS_CHUNK, sizes['length'])}
  return train_step.configs(model, train)[step.family], vocab_size


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step, what makes its state, seconds of tracing and of both, and FLOPs it needs."""

  config: Config
  run: Any
  new_state: Any
  text_BxN: jax.Array
  trace_seconds: float
  seconds: float
  flops: float


def compiled(step: Step, dry: bool) -> Program:
  """Compiles a step, and what makes its state: all states at once would fill the memory."""
  config, vocab = config_of(step, dry)
  mesh = sharding.make_mesh(config.mesh)
  shape = config.train.batch_size, config.model.length
  text_BxN = np.random.default_rng(0).integers(0, vocab, shape, np.int32)
  text_BxN = jax.device_put(text_BxN, sharding.batch_sharding(mesh))
  abstract = training.abstract_state(config, vocab, mesh)
  function = training.train_step(config, vocab, mesh)
  start = time.perf_counter()
  lowered = function.lower(abstract, text_BxN)
  traced = time.perf_counter() - start
  run = lowered.compile()
  seconds = time.perf_counter() - start
  flops = config.train.batch_size * training_flops(config.model, vocab)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  init = functools.partial(training.init_state, config, vocab)
  new_state = jax.jit(init, out_shardings=shardings).lower().compile()
  return Program(config, run, new_state, text_BxN, traced, seconds, flops)


def measure(program: Program, busy: int, dry: bool) -> dict:
  """Takes some steps; the numbers of a row."""
  config, state = program.config, program.new_state()
  losses, seconds = [], []
  for _ in range(3 if dry else TURNS):
    start = time.perf_counter()
    # The state is donated: that of the step before is gone.
    state, metrics = program.run(state, program.text_BxN)
    jax.block_until_ready((metrics, state.step))
    seconds.append(time.perf_counter() - start)
    losses.append(float(metrics['loss']))
  median = statistics.median(seconds[WARM_UP:])
  memory = program.run.memory_analysis()
  peak = calls.peak()
  return {
    'ok': bool(np.isfinite(losses).all()),
    'ms': 1e3 * median,
    'tokens_per_s': config.train.batch_size * config.model.num_slots / median,
    'mfu': peak and program.flops / median / peak,
    'gflop': 1e-9 * program.flops,
    'gib': (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30,
    'trace_s': program.trace_seconds,
    'compile_s': program.seconds,
    'compiling_beside': busy,
    'first_loss': losses[0],
    'last_loss': losses[-1],
    'all_ms': [1e3 * s for s in seconds],
  }


def trace_of(program: Program, dry: bool) -> dict:
  """The kernels of a step."""
  state = program.new_state()

  def run():
    nonlocal state
    for _ in range(TRACED_STEPS):
      state, metrics = program.run(state, program.text_BxN)
    return metrics

  return kernels.traced(run, TRACED_STEPS, program.run.as_text(), dry)


def main(rows: Rows, _: list[str]) -> int:
  steps = {step.key: step for step in STEPS}
  return compiled_ahead(
    rows,
    list(steps),
    lambda key: compiled(steps[key], rows.dry),
    lambda key, program, busy: measure(program, busy, rows.dry),
    {step.key: lambda program: trace_of(program, rows.dry) for step in STEPS[:TRACED]},
  )


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

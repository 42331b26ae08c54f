"""Seconds of a training step, ARMD beside AR: `python -m armd_jax.bench.train_step --shape=small`.

Both are `training.train_step` of the same code and size. What ARMD costs more is counted as well,
in FLOPs of matrix products: as the code multiplies (`dense`), and with attention counted by the
keys that each row sees (`visible`). Goal: time ratio at most 1.05 x the dense ratio.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from armd_jax import cli, training
from armd_jax import config as config_lib
from armd_jax.bench import timing
from armd_jax.compiled import flops
from armd_jax.flags import flag
from armd_jax.hardware import clock, machines
from armd_jax.parallel import sharding
from armd_jax.show import columns

GOAL = 1.05  # time ratio / dense FLOP ratio
FAMILIES = ('armd', 'ar')


def configs(model: dict[str, Any], train: dict[str, Any]) -> dict[str, config_lib.Config]:
  """ARMD with the most tokens shuffled that its schedule reaches, and AR, by family."""
  rho = {'armd': min(32, model['length']), 'ar': 0}
  return {
    family: config_lib.parse(
      {
        'model': model | {'family': family},
        'order': {'ar_steps': 0, 'perm_steps': 0, 'max_shuffled': rho[family]},
        'train': train,
      }
    )
    for family in FAMILIES
  }


def measure(
  configs: dict[str, config_lib.Config], vocab_size: int, repeats: int
) -> dict[str, dict[str, Any]]:
  """Times a training step of every config.

  Args:
    configs: by name.
    vocab_size: V; the texts are random ids.
    repeats: timed steps of each, in turns.
  Returns:
    By name: seconds (median), all_seconds, compile_seconds, tokens_per_second, dense_gflops and
    visible_gflops (per step), gflops_per_second (dense), parameters, memory_bytes (of what is
    given and made on the way, at once).
  """
  numbers, calls = {}, {}
  for name, config in configs.items():
    mesh = sharding.make_mesh(config.mesh)
    text_BxN = np.random.default_rng(0).integers(
      0, vocab_size, (config.train.batch_size, config.model.length), np.int32
    )
    text_BxN = jax.device_put(text_BxN, sharding.batch_sharding(mesh))
    step = training.train_step(config, vocab_size, mesh)
    state = training.new_state(config, vocab_size, mesh)
    start = time.perf_counter()
    compiled = step.lower(state, text_BxN).compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    # Of arrays, since what some families see depends on their draws.
    counted = flops.count(step, state, text_BxN)
    numbers[name] = {
      'compile_seconds': seconds,
      'dense_gflops': counted.dense / 1e9,
      'visible_gflops': counted.visible / 1e9,
      'parameters': columns.num_parameters(state.params),
      'memory_bytes': memory.argument_size_in_bytes + memory.temp_size_in_bytes,
    }
    calls[name] = _stepper(compiled, state, text_BxN)
  for name, all_seconds in clock.interleaved(calls, repeats, warm_up=2).items():
    config, row = configs[name], numbers[name]
    seconds = clock.medians({name: all_seconds})[name]
    tokens = config.train.batch_size * config.model.num_slots
    row |= {
      'seconds': seconds,
      'all_seconds': all_seconds,
      'tokens_per_second': tokens / seconds,
      'gflops_per_second': row['dense_gflops'] / seconds,
    }
  return numbers


def _stepper(compiled, state, text_BxN):
  """A call that trains one step further; the state is donated from call to call."""

  def call():
    nonlocal state
    state, metrics = compiled(state, text_BxN)
    return metrics, state.step

  return call


def ratios(numbers: dict[str, dict[str, Any]]) -> dict[str, float]:
  """ARMD over AR: seconds, dense and visible FLOPs."""

  def over(key):
    return numbers['armd'][key] / numbers['ar'][key]

  return {
    'time': over('seconds'),
    'dense_flops': over('dense_gflops'),
    'visible_flops': over('visible_gflops'),
    'time_over_dense_flops': over('seconds') / over('dense_gflops'),
  }


def report(numbers: dict[str, dict[str, Any]]) -> str:
  """The numbers as text."""
  rows = [
    {
      'family': name,
      's/step': row['seconds'],
      'tokens/s': row['tokens_per_second'],
      'GFLOP/step dense': row['dense_gflops'],
      'visible': row['visible_gflops'],
      'GFLOP/s dense': row['gflops_per_second'],
      'parameters': f'{row["parameters"] / 1e6:.1f}M',
      'compile s': row['compile_seconds'],
    }
    for name, row in numbers.items()
  ]
  r = ratios(numbers)
  verdict = 'met' if r['time_over_dense_flops'] <= GOAL else 'missed'
  return (
    f'{columns.table(rows)}\n'
    f'ARMD / AR: time {r["time"]:.3f}, matmul FLOPs dense {r["dense_flops"]:.4f}, '
    f'visible {r["visible_flops"]:.4f}\n'
    f'time ratio / dense ratio: {r["time_over_dense_flops"]:.3f}, goal at most {GOAL}: {verdict}'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(timing.ModelShape):
  batch_size: int = flag('Sequences per step.', 4, at_least=1)
  loss_chunk: int = flag('Slots whose logits exist at once.', 128, at_least=1)
  remat: str = flag('What is recomputed.', 'none', choices=('none', 'dots', 'full'))
  dropout: float = flag('Dropout probability.', 0.0)
  repeats: int = flag('Timed steps of each family.', 7, at_least=1)
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  model, vocab_size = options.values()
  model |= {'remat': options.remat, 'dropout': options.dropout}
  train = {'batch_size': options.batch_size, 'loss_chunk': options.loss_chunk}
  both = configs(model, train)
  machine = machines.machine()
  m = both['armd'].model
  print(f'one training step: {timing.shape_line(m, vocab_size, options.batch_size)}')
  print(f'remat {m.remat}, dropout {m.dropout}, loss chunk {options.loss_chunk}')
  print(
    f'{machines.machine_line(machine)}; medians of {options.repeats} steps in turns', flush=True
  )
  numbers = measure(both, vocab_size, options.repeats)
  print(report(numbers))
  if options.json:
    shape = model | {'vocab_size': vocab_size} | train
    cli.write_json(
      options.json,
      {'machine': machine, 'shape': shape, 'steps': numbers, 'ratios': ratios(numbers)},
    )


if __name__ == '__main__':
  cli.run(main, Options)

"""Decoding speed: `python -m armd_jax.bench.decode --shape=weight_bound --streams=1,2,4,8`.

AR with a key/value cache beside ARMD at every S, of the same size and code, taken in turns. Prefill
(of a prompt of half the length) and compilation are timed apart.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from absl import flags

from armd_jax import cli, models, sample
from armd_jax import config as config_lib
from armd_jax.bench import timing
from armd_jax.config import ModelConfig, check_streams
from armd_jax.decode.generate import compile_generate, task_of
from armd_jax.order import left_to_right


@dataclasses.dataclass(frozen=True)
class System:
  """A network and how many tokens it makes at once."""

  name: str
  config: ModelConfig
  params: Any
  streams: int


def systems(
  model: dict[str, Any], vocab_size: int, streams: list[int], workdir: str | None
) -> list[System]:
  """AR, and ARMD at every S; ARMD's weights from a run if one is given, else random.

  Raises:
    UserError: an S does not divide the length, or there is no run in `workdir`.
  """
  made = {}
  for family in ('ar', 'armd'):
    raw = {'model': model | {'family': family}, 'order': {'rho': 0}}
    config = config_lib.parse(raw).model
    made[family] = config, _random_parameters(config, vocab_size)
  if workdir:
    made['armd'] = made['armd'][0], sample.load_ema(workdir)[2]
  for count in streams:
    check_streams(count, made['armd'][0].num_slots, '--streams')
  return [
    System('AR, cached', *made['ar'], 1),
    *(System(f'ARMD S={count}', *made['armd'], count) for count in streams),
  ]


def _random_parameters(config, vocab_size):
  network = models.build(config, vocab_size)
  tokens_1xN = np.zeros((1, config.num_slots), np.int32)
  order = left_to_right(config.num_slots)
  return jax.jit(network.init)(jax.random.key(0), tokens_1xN, order)['params']


def measure(
  systems: list[System], vocab_size: int, batch_size: int, repeats: int
) -> list[dict[str, Any]]:
  """Times every system, in turns.

  Args:
    systems: what to compare; the first is what the others are compared with.
    vocab_size: V.
    batch_size: sequences generated together, of the model's full length.
    repeats: timed rounds.
  Returns:
    A row per system: steps, seconds per batch (median), tokens per second, ms per step, over_first
    (speed-up over the first system), prefill and compile seconds.
  """
  calls, rows = {}, []
  for system in systems:
    num_slots = system.config.num_slots
    tokens_BxN = np.zeros((batch_size, num_slots), np.int32)
    length_B = np.full(batch_size, num_slots)
    nothing_BxN = np.zeros((batch_size, num_slots), bool)
    run, compile_seconds = compile_generate(
      system.config, vocab_size, system.params, task_of(nothing_BxN, length_B, system.streams)
    )
    # Half a text given and one token asked for: the prefill, and one step.
    half = num_slots // 2
    prompt_BxN = np.arange(num_slots) < np.full((batch_size, 1), half)
    prefill, _ = compile_generate(
      system.config, vocab_size, system.params, task_of(prompt_BxN, length_B * 0 + half + 1, 1)
    )
    calls[system.name] = lambda run=run, tokens=tokens_BxN: run(tokens).tokens_BxN
    calls[system.name, 'prefill'] = lambda run=prefill, tokens=tokens_BxN: run(tokens).tokens_BxN
    rows.append(
      {
        'system': system.name,
        'steps': int(run(tokens_BxN).steps),
        'tokens': batch_size * num_slots,
        'prefill_tokens': half,
        'compile_seconds': compile_seconds,
      }
    )
  medians = timing.medians(timing.interleaved(calls, repeats))
  for row in rows:
    seconds = medians[row['system']]
    row['seconds'] = seconds
    row['tokens_per_second'] = row['tokens'] / seconds
    row['ms_per_step'] = 1e3 * seconds / row['steps']
    row['over_first'] = row['tokens_per_second'] / rows[0]['tokens_per_second']
    row['prefill_seconds'] = medians[row['system'], 'prefill']
  return rows


def report(rows: list[dict[str, Any]]) -> str:
  """The rows as text."""
  return timing.table(
    [
      {
        'system': row['system'],
        'steps': row['steps'],
        's/batch': row['seconds'],
        'tokens/s': row['tokens_per_second'],
        'ms/step': row['ms_per_step'],
        'x AR': row['over_first'],
        'prefill s': row['prefill_seconds'],
        'compile s': row['compile_seconds'],
      }
      for row in rows
    ]
  )


def main() -> None:
  if _WORKDIR.value:
    config, tokenizer, *_ = sample.load_ema(_WORKDIR.value)
    model, vocab_size = dataclasses.asdict(config.model), tokenizer.vocab_size
  else:
    model, vocab_size = _SHAPE.values()
  compared = systems(model, vocab_size, cli.streams_of(_STREAMS), _WORKDIR.value)
  machine = timing.machine()
  config = compared[0].config
  parameters = timing.num_parameters(compared[0].params)
  print(f'decoding: {timing.shape_line(config, vocab_size, _BATCH.value)}, {parameters / 1e6:.1f}M')
  print(f'{timing.machine_line(machine)}; medians of {_REPEATS.value} rounds in turns', flush=True)
  rows = measure(compared, vocab_size, _BATCH.value, _REPEATS.value)
  print(report(rows))
  print(f'prefill: {rows[0]["prefill_tokens"]} tokens given, with the one step after them')
  if _JSON.value:
    shape = model | {'vocab_size': vocab_size, 'batch_size': _BATCH.value}
    numbers = {'machine': machine, 'shape': shape, 'parameters': parameters, 'systems': rows}
    cli.write_json(_JSON.value, numbers)


if __name__ == '__main__':
  _SHAPE = timing.ShapeFlags.define()
  _WORKDIR = flags.DEFINE_string('workdir', None, 'A run whose shape and weights are used.')
  _STREAMS = cli.streams_flag('1,2,4,8')
  _BATCH = timing.positive_flag('batch_size', 1, 'Sequences generated together.')
  _REPEATS = timing.positive_flag('repeats', 5, 'Timed rounds.')
  _JSON = cli.json_flag()
  cli.run(main)

"""Evaluation beside its forward pass: `python -m armd_jax.bench.evaluate`.

The whole loop of `armd_jax.evaluate` (orders, text onto the device, results into the journal, the
bar) and the compiled forward pass alone, on text that is there already, score the same batches in
turns. `--profile` also writes a profiler's trace of the loop, to be opened in Perfetto.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from armd_jax import cli, models
from armd_jax import config as config_lib
from armd_jax.bench import timing
from armd_jax.config import Config
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.evaluation import likelihood, scores
from armd_jax.evaluation.journal import Journal
from armd_jax.flags import flag
from armd_jax.hardware import clock, machines
from armd_jax.order import left_to_right
from armd_jax.parallel import sharding

GOAL = 0.9  # of the forward pass's own windows per second


def measure(
  config: Config, batch_size: int, batches: int, repeats: int, profile: str | None = None
) -> dict[str, float]:
  """Windows per second of the forward pass and of the loop, medians, and their ratio.

  Args:
    config: of the model, whose weights are random; it reads bytes.
    batch_size, batches: what is scored in one round, left-to-right.
    repeats: timed rounds.
    profile: folder for a trace of one more round of the loop.
  """
  tokenizer, model = ByteTokenizer(), config.model
  mesh = sharding.make_mesh(config.mesh)
  network = models.build(model, tokenizer.vocab_size)
  tokens_1xN = np.zeros((1, model.num_slots), np.int32)
  order = left_to_right(model.num_slots)
  params = jax.jit(network.init)(jax.random.key(0), tokens_1xN, order)['params']
  random = np.random.RandomState(0)
  windows_WxN = random.randint(0, 256, (batch_size * batches, model.length)).astype(np.int32)
  part = scores.ScoredWindows(likelihood.LEFT_TO_RIGHT, windows_WxN)
  forward = likelihood.scorer(network, mesh)
  there = lambda x: sharding.put(np.asarray(x), sharding.batch_sharding(mesh))
  texts = [there(x) for x in np.split(windows_WxN, batches)]
  orders = part.protocol.order(model.num_slots, jax.random.split(jax.random.key(0), batch_size))
  orders = jax.tree.map(there, orders)

  def evaluate():
    with tempfile.TemporaryDirectory() as folder:
      journal = Journal(pathlib.Path(folder) / 'partial', {})
      how = {'batch_size': batch_size, 'journal': journal}
      scores.score(network, tokenizer, params, [part], mesh, **how)

  calls = {
    'forward': lambda: [forward(params, text_BxN, orders) for text_BxN in texts],
    'evaluate': evaluate,
  }
  medians = clock.medians(clock.interleaved(calls, repeats))
  if profile:
    with jax.profiler.trace(profile, create_perfetto_trace=True):
      evaluate()
  rates = {name: len(windows_WxN) / seconds for name, seconds in medians.items()}
  return rates | {'share': rates['evaluate'] / rates['forward']}


def report(numbers: dict[str, Any]) -> str:
  """The numbers as text."""
  verdict = 'met' if numbers['share'] >= GOAL else 'missed'
  return (
    f'windows/s: forward pass {numbers["forward"]:.4g}, evaluation {numbers["evaluate"]:.4g}\n'
    f'evaluation / forward: {numbers["share"]:.3f}, goal at least {GOAL}: {verdict}'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(timing.ModelShape):
  batch_size: int = flag('Windows per call.', 16, at_least=1)
  batches: int = flag('Calls in a round.', 8, at_least=1)
  repeats: int = flag('Timed rounds.', 5, at_least=1)
  profile: str | None = flag("Folder for a profiler's trace of the loop.", None)
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  model, _ = options.values()
  config = config_lib.parse({'model': model, 'order': {'max_shuffled': 0}})
  machine = machines.machine()
  print(f'evaluation: {timing.shape_line(config.model, 256, options.batch_size)}, bytes')
  print(f'{machines.machine_line(machine)}; medians of {options.repeats} rounds of', end=' ')
  print(f'{options.batches} batches in turns', flush=True)
  numbers = measure(config, options.batch_size, options.batches, options.repeats, options.profile)
  print(report(numbers))
  if options.json:
    cli.write_json(options.json, {'machine': machine, 'shape': model, 'windows_per_s': numbers})


if __name__ == '__main__':
  cli.run(main, Options)

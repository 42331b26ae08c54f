"""Evaluation beside its forward pass: `python -m armd_jax.bench.evaluate`.

The whole loop of `armd_jax.evaluate` (orders, text onto the device, results into the journal, the
bar) and the compiled forward pass alone, on text that is there already, score the same batches in
turns. `--profile` also writes a profiler's trace of the loop, to be opened in Perfetto.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags

from armd_jax import cli, models
from armd_jax import config as config_lib
from armd_jax.bench import timing
from armd_jax.config import Config
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.evaluation import likelihood, scores
from armd_jax.evaluation.journal import Journal
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
  part = scores.Part(likelihood.LEFT_TO_RIGHT, windows_WxN)
  forward = likelihood.scorer(model, tokenizer.vocab_size, mesh)
  there = lambda x: sharding.put(np.asarray(x), sharding.batch_sharding(mesh))
  texts = [there(x) for x in np.split(windows_WxN, batches)]
  orders = part.protocol.order(model.num_slots, jax.random.split(jax.random.key(0), batch_size))
  orders = jax.tree.map(there, orders)

  def evaluate():
    with tempfile.TemporaryDirectory() as folder:
      journal = Journal(pathlib.Path(folder) / 'partial', {})
      scores.score(config, tokenizer, params, [part], batch_size=batch_size, journal=journal)

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


def main() -> None:
  model, _ = _SHAPE.values()
  config = config_lib.parse({'model': model, 'order': {'rho': 0}})
  machine = machines.machine()
  print(f'evaluation: {timing.shape_line(config.model, 256, _BATCH.value)}, bytes')
  print(f'{machines.machine_line(machine)}; medians of {_REPEATS.value} rounds of', end=' ')
  print(f'{_BATCHES.value} batches in turns', flush=True)
  numbers = measure(config, _BATCH.value, _BATCHES.value, _REPEATS.value, _PROFILE.value)
  print(report(numbers))
  if _JSON.value:
    cli.write_json(_JSON.value, {'machine': machine, 'shape': model, 'windows_per_s': numbers})


if __name__ == '__main__':
  _SHAPE = timing.ShapeFlags.define()
  _BATCH = timing.positive_flag('batch_size', 16, 'Windows per call.')
  _BATCHES = timing.positive_flag('batches', 8, 'Calls in a round.')
  _REPEATS = timing.positive_flag('repeats', 5, 'Timed rounds.')
  _PROFILE = flags.DEFINE_string('profile', None, "Folder for a profiler's trace of the loop.")
  _JSON = cli.json_flag()
  cli.run(main)

"""Speed of the input pipeline alone: `python -m armd_jax.bench.input_pipeline --source=DIR ...`.

Batches are taken as fast as they come, for every number of worker processes; none is a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from armd_jax import cli
from armd_jax.bench import timing
from armd_jax.config import DataConfig
from armd_jax.data import corpus
from armd_jax.data.packing import PACKINGS
from armd_jax.data.pipeline import training_batches
from armd_jax.hardware import machines


def measure(
  config: DataConfig, length: int, batch_size: int, workers: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
  """Tokens per second.

  Args:
    config: the text; its `workers` is not used.
    length: N, tokens of a window.
    batch_size: B.
    workers: numbers of processes that are tried.
    seconds: how long each is timed, after as many batches as may have been read ahead.
  Returns:
    For each number of workers: `workers`, `first_seconds` until the first batch, and
    `tokens_per_second`.
  Raises:
    UserError: bad text, or too little memory for the batches.
  """
  windows = corpus.load(config, length).train_WxN
  rows = []
  for num_workers in workers:
    batches = training_batches(
      windows,
      batch_size,
      seed=0,
      num_workers=num_workers,
      prefetch_bytes=config.prefetch_mib * 2**20,
    )
    next(batches)
    first_seconds = batches.input_seconds
    for _ in range(40 * max(1, num_workers)):
      next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
      next(batches)
      count += 1
    rate = count * batch_size * length / (time.perf_counter() - begin)
    batches.close()
    rows.append({'workers': num_workers, 'first_seconds': first_seconds, 'tokens_per_second': rate})
  return rows


def report(rows: Sequence[dict[str, Any]]) -> str:
  """A table of what `measure` found."""
  lines = ['workers  first batch  tokens/s']
  for row in rows:
    lines.append(
      f'{row["workers"]:7}  {row["first_seconds"]:9.1f} s  {row["tokens_per_second"] / 1e6:7.2f}M'
    )
  return '\n'.join(lines)


def main() -> None:
  config = DataConfig(source=_SOURCE.value, tokenizer=_TOKENIZER.value, packing=_PACKING.value)
  machine = machines.machine()
  shape = {'length': _LENGTH.value, 'batch_size': _BATCH.value, 'packing': _PACKING.value}
  print(f'input pipeline: {shape["batch_size"]} x {shape["length"]} tokens, {shape["packing"]}')
  print(machines.machine_line(machine), flush=True)
  rows = measure(config, _LENGTH.value, _BATCH.value, list(map(int, _WORKERS.value)), seconds=5)
  print(report(rows))
  if _JSON.value:
    cli.write_json(_JSON.value, {'machine': machine, 'shape': shape, 'rows': rows})


if __name__ == '__main__':
  _SOURCE = flags.DEFINE_string('source', 'stdlib', 'A prepared corpus, or any other source.')
  _TOKENIZER = flags.DEFINE_string('tokenizer', 'bytes', 'That of the corpus.')
  _PACKING = flags.DEFINE_enum('packing', PACKINGS[0], PACKINGS, 'How windows are cut.')
  _LENGTH = timing.positive_flag('length', 1024, 'Tokens of a window.')
  _BATCH = timing.positive_flag('batch_size', 512, 'Windows of a batch.')
  _WORKERS = flags.DEFINE_list('workers', '0,1,2', 'Numbers of worker processes.')
  _JSON = cli.json_flag()
  cli.run(main)

"""Speed of the input pipeline alone: `python -m armd_jax.bench.input_pipeline --source=DIR ...`.

Batches are taken as fast as they come, for every number of worker processes; none is a thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from armd_jax import cli
from armd_jax.config import DataConfig
from armd_jax.data import corpus
from armd_jax.data.packing import PACKINGS
from armd_jax.data.pipeline import training_batches
from armd_jax.flags import flag
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  source: str = flag('A prepared corpus, or any other source.', 'stdlib')
  tokenizer: str = flag('That of the corpus.', 'bytes')
  packing: str = flag('How windows are cut.', PACKINGS[0], choices=PACKINGS)
  length: int = flag('Tokens of a window.', 1024, at_least=1)
  batch_size: int = flag('Windows of a batch.', 512, at_least=1)
  workers: tuple[int, ...] = flag('Numbers of worker processes.', (0, 1, 2), at_least=0)
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  config = DataConfig(source=options.source, tokenizer=options.tokenizer, packing=options.packing)
  machine = machines.machine()
  shape = {'length': options.length, 'batch_size': options.batch_size, 'packing': options.packing}
  print(f'input pipeline: {shape["batch_size"]} x {shape["length"]} tokens, {shape["packing"]}')
  print(machines.machine_line(machine), flush=True)
  rows = measure(config, options.length, options.batch_size, options.workers, seconds=5)
  print(report(rows))
  if options.json:
    cli.write_json(options.json, {'machine': machine, 'shape': shape, 'rows': rows})


if __name__ == '__main__':
  cli.run(main, Options)

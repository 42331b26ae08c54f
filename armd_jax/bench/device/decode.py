"""Decoding at GPT-2 small's size, cached AR and ARMD: `... decode ['FAMILY S BATCH' ...]`."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from armd_jax.bench import decode, timing
from armd_jax.bench.device import calls, kernels
from armd_jax.bench.device.ahead import compiled_ahead
from armd_jax.bench.device.cases import DECODED, TINY_DECODE, decode_key
from armd_jax.bench.device.rows import Rows
from armd_jax.decode.generate import compile_generate, task_of
from armd_jax.hardware import device
from armd_jax.hardware.chips import CHIPS

TURNS, MIN_TURNS, SECONDS = 6, 2, 12  # batches, fewest, and after how long no other is begun
TRACED = 3  # of the programs the first


class Systems:
  """The networks and their weights."""

  def __init__(self, dry: bool):
    model: dict[str, Any] = dict(TINY_DECODE if dry else timing.SHAPES['gpt2_small'])
    self.vocab_size, self.dry = model.pop('vocab_size'), dry
    model['dtype'] = 'float32' if dry else 'bfloat16'
    streams = sorted({streams for _, streams, _ in DECODED})
    made = decode.systems(model, self.vocab_size, streams)
    self._by = {('ar' if s.name == decode.AR else 'armd', s.streams): s for s in made}

  def compiled(self, family: str, streams: int, batch: int):
    """The program that generates whole texts, and its `decode.System`."""
    system = self._by[family, streams]
    slots = system.model.config.num_slots
    task = task_of(np.zeros((batch, slots), bool), np.full(batch, slots), streams)
    return compile_generate(system.model, system.network, task), system


def measure(program, system: decode.System, batch: int, busy: int, dry: bool) -> dict:
  """Generates some batches; the numbers of a row."""
  slots = system.model.config.num_slots
  tokens_BxN = np.zeros((batch, slots), np.int32)
  seconds, begin = [], time.perf_counter()  # type: list[float], float
  most = MIN_TURNS if dry else TURNS
  while len(seconds) < MIN_TURNS or (len(seconds) < most and time.perf_counter() - begin < SECONDS):
    start = time.perf_counter()
    made = jax.block_until_ready(program.run(tokens_BxN))
    seconds.append(time.perf_counter() - start)
  median = statistics.median(seconds[1:])
  steps = int(made.steps)
  weights = sum(x.nbytes for x in jax.tree.leaves(system.network))
  chip = CHIPS.get(device.current().chip)
  return {
    'seconds': median,
    'tokens_per_s': batch * slots / median,
    'ms_per_step': 1e3 * median / steps,
    # No step is quicker than reading its weights.
    'ms_of_weights': chip and 1e3 * weights / chip.hbm_bandwidth,
    'steps': steps,
    'gib': program.bytes / 2**30,
    'compile_s': program.seconds,
    'compiling_beside': busy,
    'runs': len(seconds),
  }


def trace_of(program, system: decode.System, batch: int, dry: bool) -> dict:
  """The kernels of a step."""
  tokens_BxN = np.zeros((batch, system.model.config.num_slots), np.int32)
  steps = int(program.run(tokens_BxN).steps)
  return kernels.traced(lambda: program.run(tokens_BxN), steps, program.text(), dry)


def main(rows: Rows, only: list[str]) -> int:
  runs = {decode_key(*run): run for run in DECODED if not only or ' '.join(map(str, run)) in only}
  systems = Systems(rows.dry)
  # Under other flags nothing is traced: their rows are for the quickest time alone.
  traced = list(runs)[: 0 if only else TRACED]
  return compiled_ahead(
    rows,
    list(runs),
    lambda key: systems.compiled(*runs[key]),
    lambda key, made, busy: measure(*made, runs[key][2], busy, rows.dry),
    {key: lambda made, batch=runs[key][2]: trace_of(*made, batch, rows.dry) for key in traced},
  )


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

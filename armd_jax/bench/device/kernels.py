"""Which kernels a training step and a decoding step spend their time in, by a profiler's trace."""

from __future__ import annotations

import collections
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from armd_jax.bench.device import calls, decode, train
from armd_jax.bench.device.ahead import compiled_ahead
from armd_jax.bench.device.cases import DECODED, STEPS, decode_key
from armd_jax.bench.device.rows import Rows

MOST = 16  # kernels that a row names
# Planes and lines of a trace that hold kernels; a dry run has XLA's threads in their place.
PLANE, LINE = '/device:GPU', 'Stream'
DRY_PLANE, DRY_LINE = '/host:CPU', 'tf_XLA'
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_NUMBER = re.compile(r'\d+')


TRAINED = {step.key: step for step in STEPS[:2]}
GENERATED = {decode_key(*run): run for run in DECODED[:3]}


def traced(run: Callable[[], object], steps: int, program: str, dry: bool) -> dict:
  """The numbers of a row.

  Args:
    run: what is traced; it ends when the device has ended.
    steps: that it takes: all numbers are those of one.
    program: its optimised HLO, which says what part of the model a kernel is of.
    dry: whether the CPU's threads are read.
  Returns:
    'wall_ms' of a step under the profiler; 'busy_ms' of it that kernels ran; 'launches'; 'ms', of
    the kernels that take the most, by the name of the kernel and its part of the model. Layers,
    which differ by a number alone, are one.
  """
  jax.block_until_ready(run())
  with tempfile.TemporaryDirectory() as folder:
    # Of the host, only what a dry run reads: Python's own calls would be most of the trace.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level, options.host_tracer_level = 0, 1 if dry else 0
    with jax.profiler.trace(folder, profiler_options=options):
      start = time.perf_counter()
      jax.block_until_ready(run())
      seconds = time.perf_counter() - start
    (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
    data = jax.profiler.ProfileData.from_file(str(path))
    found = list(_events(data, *((DRY_PLANE, DRY_LINE) if dry else (PLANE, LINE))))
  if not found:
    return {'error': 'the trace holds no kernel'}
  parts = dict(_INSTRUCTION.findall(program))
  took: collections.Counter[str] = collections.Counter()
  for name, instruction, ms in found:
    label = f'{name} {parts.get(instruction, "")}'.strip()
    took[_NUMBER.sub('#', label)] += ms
  return {
    'wall_ms': 1e3 * seconds / steps,
    'busy_ms': took.total() / steps,
    'launches': len(found) / steps,
    'ms': {label: ms / steps for label, ms in took.most_common(MOST)},
  }


def _events(data, plane_start: str, line_start: str) -> Iterator[tuple[str, str, float]]:
  """(name, HLO instruction, milliseconds) of every kernel."""
  for plane in data.planes:
    for line in plane.lines if plane.name.startswith(plane_start) else ():
      for event in line.events if line.name.startswith(line_start) else ():
        stats = dict(event.stats)
        yield event.name, str(stats.get('hlo_op', '')), 1e-6 * event.duration_ns


def trained(program: train.Program, dry: bool) -> dict:
  """The kernels of a training step."""
  state = [program.new_state()]

  def run(steps=2):
    for _ in range(steps):
      state[0], metrics = program.run(state[0], program.text_BxN)
    return metrics

  return traced(run, 2, program.run.as_text(), dry)


def generated(program, system, batch: int, dry: bool) -> dict:
  """The kernels of a decoding step."""
  tokens_BxN = np.zeros((batch, system.model.config.num_slots), np.int32)
  steps = int(program.run(tokens_BxN).steps)
  return traced(lambda: program.run(tokens_BxN), steps, program.text(), dry)


def main(rows: Rows, _: list[str]) -> int:
  systems = decode.Systems(rows.dry)

  def compile_(key):
    if key in TRAINED:
      return train.compiled(TRAINED[key], rows.dry)
    return systems.compiled(*GENERATED[key])

  def measure(key, made, busy):
    del busy
    if key in TRAINED:
      return trained(made, rows.dry)
    return generated(*made, GENERATED[key][2], rows.dry)

  compiled_ahead(rows, [*TRAINED, *GENERATED], compile_, measure)
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

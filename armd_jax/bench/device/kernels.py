"""Which kernels a program spends its time in, by a profiler's trace."""

from __future__ import annotations

import collections
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import jax

STAGE = 'kernels'  # that rows are filed under
MOST = 32  # kernels that a row names
# Planes and lines of a trace that hold kernels; a dry run has XLA's threads in their place.
PLANE, LINE = '/device:GPU', 'Stream'
DRY_PLANE, DRY_LINE = '/host:CPU', 'tf_XLA'
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_NUMBER = re.compile(r'\d+')


def traced(run: Callable[[], object], steps: int, program: str, dry: bool) -> dict:
  """The numbers of a row.

  Args:
    run: what is traced; it ends when the device has ended.
    steps: that it takes: all numbers are those of one.
    program: its optimised HLO, which names the part of the model of a kernel.
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
  return {'wall_ms': 1e3 * seconds / steps} | summed(found, steps, program)


def summed(found: Sequence[tuple[str, str, float]], steps: int, program: str) -> dict:
  """What all kernels take, and those that take the most.

  Args:
    found: (name, HLO instruction or '', milliseconds) of every kernel that ran.
    steps, program: as of `traced`.
  """
  parts = dict(_INSTRUCTION.findall(program))
  # XLA calls a kernel as it calls its instruction, without dots.
  parts |= {name.replace('.', '_'): part for name, part in parts.items()}
  took: collections.Counter[str] = collections.Counter()
  for name, instruction, ms in found:
    label = f'{name} {parts.get(instruction) or parts.get(name, "")}'.strip()
    took[_NUMBER.sub('#', label)] += ms
  return {
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

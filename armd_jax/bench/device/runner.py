"""Starts the processes of a stage, watches their time, and writes down how each of them ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Mapping

from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.stages import Process, Stage

GRACE = 4  # seconds before its limit at which a process should have ended by itself
KILLED_AFTER = 3  # seconds from SIGTERM to SIGKILL
SHORTEST = 6  # seconds; less starts no process


@dataclasses.dataclass(frozen=True)
class Runner:
  """Runs stages until a deadline.

  Attributes:
    job: of the runner; of its processes but for stage, time and label.
    variables: of every process's environment.
    scale: of all limits, where there is more time than they were made for.
    cores: of the machine: so many processes run at once.
  """

  job: rows_lib.Job
  variables: Mapping[str, str]
  scale: float = 1.0
  cores: int = dataclasses.field(default_factory=lambda: len(os.sched_getaffinity(0)))

  def run(self, stage: Stage) -> None:
    """Runs those processes of a stage that have not done all they should; raises nothing."""
    ended = rows_lib.Rows(self.job)
    processes = {rows_lib.process_key(stage.name, p.name): p for p in stage.processes}
    todo = [key for key in processes if not ended.has(key)]
    if not todo:
      return
    limit = stage.limit * self.scale
    print(f'-- {stage.name}: at most {limit:.0f} s, {ended.left():.0f} s are left', flush=True)
    begun, running = {}, {}  # type: ignore[var-annotated]
    try:
      while todo or running:
        while todo and len(running) < self.cores:
          key = todo.pop(0)
          if ended.left() < SHORTEST:
            ended.add(key, skipped=rows_lib.NO_TIME)
            continue
          begun[key] = time.time()
          until = min(begun[key] + limit, self.job.until)
          running[key] = self._start(stage, processes[key], until - GRACE), until
        for key, (started, until) in list(running.items()):
          code = started.poll()
          if code is None and time.time() < until:
            continue
          told = _end(started)
          del running[key]
          seconds = time.time() - begun[key]
          if code is None:
            # A process that had less than its limit need not hang.
            cut = until < begun[key] + limit
            kind, why = ('skipped', f'{rows_lib.NO_TIME}: ') if cut else ('error', '')
            ended.add(key, **{kind: f'{why}killed after {seconds:.0f} s{told}'}, seconds=seconds)
          elif code:
            ended.add(key, error=_why(code), seconds=seconds)
          else:
            ended.add(key, seconds=seconds)
        time.sleep(0.05)
    finally:  # whatever ends the runner ends them
      for started, _ in running.values():
        _end(started)

  def _start(self, stage: Stage, process: Process, until: float) -> subprocess.Popen:
    of = process.stage or stage.name
    job = dataclasses.replace(self.job, stage=of, until=until, label=process.label)
    command = [*process.command, *job.arguments(), *process.arguments]
    with (self.job.out / 'log.txt').open('a', encoding='utf-8') as log:
      print(f'---- {stage.name}: {process.name}', file=log, flush=True)
      return subprocess.Popen(
        command,
        env=os.environ | self.variables | process.variables,  # type: ignore[operator]
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        # A group is killed with all that it started; a session would outlive this program.
        process_group=0,
      )


def _why(code):
  if code < 0:
    return f'ended by {signal.Signals(-code).name}; see log.txt'
  return f'exit code {code}: not all rows are there, or some are wrong; see log.txt'


def _end(started: subprocess.Popen) -> str:
  """Ends a process and all it started; returns words for the case that it does not end, or ''."""
  for sent, seconds in ((signal.SIGTERM, KILLED_AFTER), (signal.SIGKILL, KILLED_AFTER)):
    with contextlib.suppress(ProcessLookupError):  # none is left
      os.killpg(started.pid, sent)
    with contextlib.suppress(subprocess.TimeoutExpired):
      started.wait(seconds)
  return '' if started.poll() is not None else ', but it does not end'

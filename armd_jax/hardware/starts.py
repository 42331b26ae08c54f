"""When this process began, for the time to a program's first step."""

from __future__ import annotations

import os
import pathlib
import time

_of_program: float | None = None  # until `take` has returned it


def program_begins() -> None:
  """To be called by a program, once it has imported what it needs."""
  global _of_program
  _of_program = _of_process()


def take() -> float | None:
  """Unix time at which the program's process began; None at all later calls, and in a process
  that runs no program."""
  global _of_program
  found, _of_program = _of_program, None
  return found


def _of_process() -> float:
  """As Linux has it, to a hundredth of a second; elsewhere it is now."""
  try:
    ticks = int(pathlib.Path('/proc/self/stat').read_text('utf-8').rpartition(')')[2].split()[19])
    up = float(pathlib.Path('/proc/uptime').read_text('utf-8').split()[0])
  except OSError:
    return time.time()
  return time.time() - up + ticks / os.sysconf('SC_CLK_TCK')

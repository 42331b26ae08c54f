"""Processes that may not enter or read what its permissions forbid, whoever starts them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

# Of Linux: removes what root has beside its name, its right to pass over permissions.
_START = """
import ctypes, os, sys
for capability in (1, 2):
  ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run(command: list[str]) -> subprocess.CompletedProcess:
  """Runs a command to its end; skips the test where permissions do not bind a process."""
  with tempfile.TemporaryDirectory() as name:
    os.chmod(name, 0)
    looks = f'import os; os.stat({name + "/x"!r})'
    looked = subprocess.run(
      [sys.executable, '-c', _START, sys.executable, '-c', looks], capture_output=True, text=True
    )
    os.chmod(name, 0o700)
  if 'PermissionError' not in looked.stderr:
    pytest.skip('permissions bind no process here')
  variables = os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  return subprocess.run(
    [sys.executable, '-c', _START, *command], capture_output=True, text=True, env=variables
  )


def python(code: str) -> subprocess.CompletedProcess:
  """`run` of a program of Python."""
  return run([sys.executable, '-c', code])


class Closed:
  """A folder or a file that nobody may enter or read, until the block ends."""

  def __init__(self, path: pathlib.Path):
    self._path, self._mode = path, path.stat().st_mode

  def __enter__(self) -> None:
    self._path.chmod(0)

  def __exit__(self, *_: object) -> None:
    self._path.chmod(self._mode)

"""The assembler that makes machine code of the Hopper kernels, and its versions that err."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import pathlib
import re
import subprocess
import sysconfig
from collections.abc import Iterator

# jax's own Hopper attention refuses causal masks from CUDA 12.8.0 until 12.9.1, which has 12.9.86.
REFUSED = (12, 8, 0), (12, 9, 86)
# Registers are written that a product still reads (triton-lang/triton, pull request 11781), and
# branches join in the wrong place (release notes of CUDA 13.3).
SUSPECT = (12, 8, 0), (13, 3, 0)
# Where XLA looks after the PATH and before the wheels.
ROOTS = ('/usr/local/cuda', '/opt/cuda')
# What it passes over.
_OLDEST, _BROKEN = (11, 8, 0), (12, 3, 103)


@dataclasses.dataclass(frozen=True)
class Ptxas:
  """An assembler: its path, and its version as of `ptxas --version`."""

  path: pathlib.Path
  version: tuple[int, int, int]

  def __str__(self) -> str:
    return f'ptxas {".".join(map(str, self.version))} ({self.path})'

  @property
  def refusal(self) -> str | None:
    """Why the kernels must not be assembled by it, and the fix."""
    if not REFUSED[0] <= self.version < REFUSED[1]:
      return None
    return f'{self} compiles causal masks wrongly; {_FIX}'

  @property
  def warning(self) -> str | None:
    """What is known of it, and the fix."""
    if not SUSPECT[0] <= self.version < SUSPECT[1]:
      return None
    return (
      f'{self} is known to miscompile products whose left operand is in registers, as those of the '
      f'Hopper kernels are; their results were not found wrong, but to be safe {_FIX}'
    )


_FIX = (
  'put one of CUDA 13.3 or newer first on the PATH: pip install "nvidia-cuda-nvcc>=13.3" and '
  f'export PATH={sysconfig.get_path("purelib")}/nvidia/cu13/bin:$PATH'
)


def find() -> Ptxas | None:
  """The one that Mosaic takes: the first that runs, of those that XLA looks for.

  CUDA_ROOT and the wheel of nvcc that jax prefers decide for XLA's own kernels alone: Mosaic takes
  them where neither the PATH nor /usr/local/cuda has one.
  """
  for path in _candidates():
    version = _version(path)
    if version and version >= _OLDEST and version != _BROKEN:
      return Ptxas(path, version)
  return None


@functools.cache
def mosaic() -> Ptxas | None:
  """`find`, once in a process."""
  return find()


@functools.cache
def warn_once(assembler: Ptxas | None) -> None:
  """Logs what is known of an assembler."""
  if assembler and assembler.warning:
    logging.getLogger(__name__).warning('attention: %s', assembler.warning)


def _candidates() -> Iterator[pathlib.Path]:
  yield pathlib.Path('cuda_sdk_lib/bin/ptxas')
  for folder in os.environ.get('PATH', '').split(os.pathsep):
    yield pathlib.Path(folder) / 'ptxas'
  packages = pathlib.Path(sysconfig.get_path('purelib')) / 'nvidia'
  for root in (*ROOTS, packages / 'cu13', packages / 'cuda_nvcc'):
    yield pathlib.Path(root) / 'bin' / 'ptxas'


def _version(path: pathlib.Path) -> tuple[int, int, int] | None:
  if not path.is_file() or not os.access(path, os.X_OK):
    return None
  said = subprocess.run([path.absolute(), '--version'], capture_output=True, text=True)
  found = re.search(r'\bV(\d+)\.(\d+)\.(\d+)', said.stdout)
  return tuple(map(int, found.groups())) if found and said.returncode == 0 else None

"""Packages and compilers of a machine without a network; imports nothing that could be missing."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from armd_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
# Names inside a folder that `folder` prepared.
PTXAS, WHEELS, TEXTS = 'ptxas.xz', 'whl', 'text'


@dataclasses.dataclass(frozen=True)
class Cuda:
  """A CUDA toolkit: its folder, and the version of the ptxas in it."""

  root: pathlib.Path
  version: str

  def variables(self) -> dict[str, str]:
    """Of a process that compiles with it."""
    path = f'{self.root / "bin"}{os.pathsep}{os.environ.get("PATH", "")}'
    # jax asks CUDA_ROOT first. Without it and without a wheel of ptxas, 0.11 hands XLA 'None'.
    return {'CUDA_ROOT': str(self.root), 'PATH': path}


def site(wheels: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path | None:
  """A folder with the packages of `wheels` that are not installed here; None if all are.

  Raises:
    UserError: there are no wheels, or pip refuses one.
  """
  found = sorted(wheels.glob('*.whl'))
  if not found:
    raise UserError(f'{wheels} holds no wheels; make it with `make device-folder OUT=FOLDER`')
  missing = [wheel for wheel in found if not _installed(wheel.name.split('-')[0])]
  if not missing:
    return None
  names = '\n'.join([sys.version, *(wheel.name for wheel in missing)])
  folder = scratch / f'site-{hashlib.sha256(names.encode()).hexdigest()[:12]}'
  if folder.exists():
    return folder
  scratch.mkdir(parents=True, exist_ok=True)
  part = pathlib.Path(tempfile.mkdtemp(dir=scratch))
  command = [sys.executable, '-m', 'pip', 'install', '--quiet', '--no-index', '--no-deps']
  command += ['--no-compile', '--no-cache-dir', f'--target={part}', *map(str, missing)]
  done = subprocess.run(command, text=True, capture_output=True)
  if done.returncode:
    reason = (done.stderr or done.stdout).strip().splitlines() or ['no reason given']
    raise UserError(f'pip cannot install the wheels of {wheels} ({reason[-1]}); make them anew')
  part.rename(folder)  # half-made ones have another name
  return folder


def _installed(name):
  try:
    importlib.metadata.distribution(name)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def has_gpu() -> bool:
  """Whether the system has an NVIDIA GPU; without jax, which may lack what it needs for it."""
  return any(pathlib.Path('/dev').glob('nvidia[0-9]*'))


def system_cuda() -> Cuda | None:
  """The toolkit that jax compiles with, as far as it is not a wheel beside jax; None if unknown."""
  roots = [os.environ.get(name) for name in ('CUDA_ROOT', 'CUDA_HOME')]
  if not roots[0] and (wheel := _wheel_of_ptxas()):
    return _cuda(wheel)
  nvcc = shutil.which('nvcc')
  roots += ['/usr/local/cuda', nvcc and pathlib.Path(nvcc).resolve().parents[1]]  # type: ignore[list-item]
  found = (_cuda(pathlib.Path(root)) for root in roots if root)
  return next((cuda for cuda in found if cuda), None)


def _wheel_of_ptxas():
  """Where pip put a ptxas; jax finds it there."""
  for name in ('nvidia.cu13', 'nvidia.cuda_nvcc'):
    with contextlib.suppress(ModuleNotFoundError):  # of `nvidia` itself
      spec = importlib.util.find_spec(name)
      for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (pathlib.Path(folder) / 'bin/ptxas').exists():
          return pathlib.Path(folder)
  return None


def _cuda(root):
  ptxas = root / 'bin/ptxas'
  if not os.access(ptxas, os.X_OK):
    return None
  told = subprocess.run([ptxas, '--version'], text=True, capture_output=True)
  version = re.search(r'V(\d+(\.\d+)+)', told.stdout)
  return Cuda(root, version[1]) if version else None


def carried_cuda(packed: pathlib.Path, system: Cuda | None, scratch: pathlib.Path) -> Cuda | None:
  """The system's toolkit with the ptxas that was carried here in its place; None without one.

  Raises:
    UserError: it is damaged, or does not run here.
  """
  if not packed.exists():
    return None
  root = scratch / f'cuda-{hashlib.sha256(packed.read_bytes()).hexdigest()[:12]}'
  ptxas = root / 'bin/ptxas'
  if not ptxas.exists():
    ptxas.parent.mkdir(parents=True, exist_ok=True)
    part = ptxas.with_suffix('.part')
    try:
      part.write_bytes(lzma.decompress(packed.read_bytes()))
    except lzma.LZMAError as error:
      raise UserError(f'{packed} is damaged ({error}); make the folder anew') from error
    part.chmod(0o755)
    part.rename(ptxas)
  if system:
    theirs = [*(system.root / 'bin').iterdir()]
    theirs += [system.root / name for name in ('nvvm', 'lib', 'lib64', 'include')]
    for path in theirs:
      ours = root / path.relative_to(system.root)
      if path.exists() and not ours.exists():
        ours.symlink_to(path)
  cuda = _cuda(root)
  if cuda is None:
    raise UserError(f'the ptxas of {packed} does not run here; remove that file')
  return cuda

"""Prepares what a machine without a network needs: `... folder --out=FOLDER [--text=GLOB]`.

Wheels of packages that an image with CUDA, jax, flax, optax, orbax, torch and transformers usually
lacks, a newer ptxas to compare with, and texts to train on. Run it where there is a network, carry
the folder beside the repository, and give `make device-report` its wheels.
"""

from __future__ import annotations

import glob
import lzma
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence

from armd_jax.bench.device import command
from armd_jax.bench.device.environment import PTXAS, TEXTS, WHEELS
from armd_jax.errors import UserError

PACKAGES = ('ml-collections>=1.0', 'grain>=0.2.15', 'array-record>=0.8.1', 'tensorboardX>=2.6.2')
PACKAGES += ('portpicker>=1.6',)  # which grain imports
COMPILER = 'nvidia-cuda-nvcc>=13.3'  # the first without known faults in what our kernels do
PYTHON = '3.12'
MANYLINUX = ('_2_28', '_2_27', '_2_17', '2014', '1')


def download(package: str, folder: pathlib.Path) -> None:
  """Takes one wheel, without what it needs.

  Raises:
    UserError: pip finds none.
  """
  pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check']
  pip += ['--no-deps', '--only-binary=:all:', f'--python-version={PYTHON}']
  pip += ['--implementation=cp', f'--dest={folder}']
  pip += [f'--platform=manylinux{version}_x86_64' for version in MANYLINUX]
  done = subprocess.run([*pip, package], text=True, capture_output=True)
  if done.returncode:
    reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
    raise UserError(f'pip cannot download {package} ({reason}); is there a network?')


def pack_ptxas(wheels: pathlib.Path, target: pathlib.Path) -> None:
  """Packs the ptxas of the one wheel in a folder.

  Raises:
    UserError: there is none in it.
  """
  (wheel,) = wheels.glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    name = next((name for name in archive.namelist() if name.endswith('bin/ptxas')), None)
    if name is None:
      raise UserError(f'{wheel.name} holds no ptxas; give another COMPILER in {__file__}')
    target.write_bytes(lzma.compress(archive.read(name), preset=6))


def pack_texts(pattern: str, folder: pathlib.Path) -> None:
  """Packs the files of a glob.

  Raises:
    UserError: there are none.
  """
  files = [pathlib.Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
  files = [path for path in files if path.is_file()]
  if not files:
    raise UserError(f'--text={pattern} matches no file; write a file or a glob')
  folder.mkdir(parents=True, exist_ok=True)
  for path in files:
    with (
      path.open('rb') as source,
      lzma.open(folder / f'{path.name}.xz', 'wb') as packed,
    ):
      shutil.copyfileobj(source, packed)


def prepare(out: pathlib.Path, text: str | None) -> None:
  """Fills the folder; what an earlier call left in it goes.

  Raises:
    UserError: something cannot be had.
  """
  for name in (WHEELS, TEXTS):
    shutil.rmtree(out / name, ignore_errors=True)
  for package in PACKAGES:
    download(package, out / WHEELS)
  with tempfile.TemporaryDirectory() as scratch:
    download(COMPILER, pathlib.Path(scratch))
    pack_ptxas(pathlib.Path(scratch), out / PTXAS)
  if text:
    pack_texts(text, out / TEXTS)


def main(argv: Sequence[str]) -> None:
  about = __doc__.splitlines()[0]
  parser = command.Parser('armd_jax.bench.device.folder', about, 'takes wheels, ptxas and texts')
  parser.add_argument('--text', help='a file or glob of UTF-8 text to train on')
  given = parser.parse_args(argv)
  prepare(given.out, given.text)
  files = sorted(path for path in given.out.rglob('*') if path.is_file())
  for path in files:
    print(f'{path.stat().st_size / 2**20:7.2f} MiB  {path}')
  print(f'{sum(path.stat().st_size for path in files) / 2**20:7.2f} MiB  in all')


if __name__ == '__main__':
  command.run(main)

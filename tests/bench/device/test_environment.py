"""Packages that are missing come from wheels, and a carried ptxas is used beside the system's."""

import lzma
import subprocess
import sys
import zipfile

import pytest

from armd_jax.bench.device import environment
from armd_jax.errors import UserError


def wheel(folder, name, version='1.0'):
  """A package of one module."""
  folder.mkdir(exist_ok=True)
  info = f'{name}-{version}.dist-info'
  with zipfile.ZipFile(folder / f'{name}-{version}-py3-none-any.whl', 'w') as archive:
    archive.writestr(f'{name}.py', f'VERSION = {version!r}\n')
    archive.writestr(
      f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    )
    archive.writestr(
      f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    )
    archive.writestr(f'{info}/RECORD', '')


def ptxas(folder, version):
  (folder / 'bin').mkdir(parents=True)
  path = folder / 'bin/ptxas'
  path.write_text(f'#!/bin/sh\necho "Cuda compilation tools, release 13, V{version}"\n')
  path.chmod(0o755)
  return path


def test_only_what_is_missing_is_installed_and_once(tmp_path):
  wheel(tmp_path / 'whl', 'armd_jax_made_up')
  wheel(tmp_path / 'whl', 'numpy', '0.1')  # another one is here
  site = environment.site(tmp_path / 'whl', tmp_path / 'scratch')
  code = 'import armd_jax_made_up as m, numpy; print(m.VERSION, numpy.__version__ > "1")'
  told = subprocess.run(
    [sys.executable, '-c', code], env={'PYTHONPATH': str(site)}, text=True, capture_output=True
  )
  assert told.stdout == '1.0 True\n', told.stderr
  (site / 'kept').touch()
  assert environment.site(tmp_path / 'whl', tmp_path / 'scratch') == site
  assert (site / 'kept').exists()


def test_nothing_missing(tmp_path):
  wheel(tmp_path / 'whl', 'numpy', '0.1')
  assert environment.site(tmp_path / 'whl', tmp_path / 'scratch') is None
  assert not (tmp_path / 'scratch').exists()


def test_wheels_that_are_not_there_or_not_fit(tmp_path):
  with pytest.raises(UserError, match='holds no wheels'):
    environment.site(tmp_path / 'whl', tmp_path)
  (tmp_path / 'whl').mkdir()
  (tmp_path / 'whl' / 'made_up-1.0-cp27-cp27m-win32.whl').write_bytes(b'')
  with pytest.raises(UserError, match='pip cannot install'):
    environment.site(tmp_path / 'whl', tmp_path / 'scratch')


def test_the_toolkit_that_variables_name_comes_first(tmp_path, monkeypatch):
  ptxas(tmp_path / 'root', '13.0.88')
  ptxas(tmp_path / 'home', '12.9.1')
  monkeypatch.setenv('CUDA_HOME', str(tmp_path / 'home'))
  monkeypatch.setenv('CUDA_ROOT', str(tmp_path / 'root'))
  found = environment.system_cuda()
  assert (found.root, found.version) == (tmp_path / 'root', '13.0.88')
  variables = found.variables()
  assert variables['CUDA_ROOT'] == str(tmp_path / 'root')
  assert variables['PATH'].startswith(str(tmp_path / 'root/bin'))


def test_carried_ptxas_in_place_of_the_systems(tmp_path):
  system = ptxas(tmp_path / 'system', '13.0.88').parents[1]
  (system / 'bin/nvlink').write_text('')
  (system / 'nvvm').mkdir()
  new = ptxas(tmp_path / 'new', '13.5.37')
  packed = tmp_path / environment.PTXAS
  packed.write_bytes(lzma.compress(new.read_bytes()))
  for _ in range(2):  # the second time it is there
    made = environment.carried_cuda(
      packed, environment.Cuda(system, '13.0.88'), tmp_path / 'scratch'
    )
    assert made.version == '13.5.37'
    assert (made.root / 'bin/nvlink').samefile(system / 'bin/nvlink')
    assert (made.root / 'nvvm').samefile(system / 'nvvm')


def test_carried_ptxas_that_is_not_there_damaged_or_cannot_run(tmp_path):
  packed = tmp_path / environment.PTXAS
  assert environment.carried_cuda(packed, None, tmp_path) is None
  packed.write_bytes(b'not packed')
  with pytest.raises(UserError, match='damaged'):
    environment.carried_cuda(packed, None, tmp_path)
  packed.write_bytes(lzma.compress(b'#!/bin/sh\nexit 1\n'))
  with pytest.raises(UserError, match='does not run here'):
    environment.carried_cuda(packed, None, tmp_path)

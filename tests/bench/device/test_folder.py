"""The folder that a machine without a network gets; what pip would download is made up."""

import lzma
import zipfile

import pytest

from armd_jax.bench.device import environment, folder
from armd_jax.errors import UserError


@pytest.fixture
def pip(monkeypatch):
  """Leaves a wheel for every package that is asked for; returns their names."""
  asked = []

  def download(package, target):
    asked.append(package)
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target / f'{package.split(">")[0]}.whl', 'w') as archive:
      archive.writestr('nvidia/cu13/bin/ptxas', 'a compiler')

  monkeypatch.setattr(folder, 'download', download)
  return asked


def test_wheels_compiler_and_texts(tmp_path, pip):
  (tmp_path / 'books').mkdir()
  (tmp_path / 'books' / 'a.txt').write_text('words')
  out = tmp_path / 'out'
  for _ in range(2):  # made anew: two versions of a package would stop pip
    folder.prepare(out, str(tmp_path / 'books' / '*.txt'))
  assert set(pip) == {*folder.PACKAGES, folder.COMPILER}
  assert len(list((out / environment.WHEELS).iterdir())) == len(folder.PACKAGES)
  assert lzma.decompress((out / environment.PTXAS).read_bytes()) == b'a compiler'
  assert lzma.decompress((out / environment.TEXTS / 'a.txt.xz').read_bytes()) == b'words'


def test_glob_without_files(tmp_path, pip):
  with pytest.raises(UserError, match='matches no file'):
    folder.prepare(tmp_path, str(tmp_path / '*.nothing'))


def test_package_that_cannot_be_had(tmp_path, monkeypatch):
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path))
  with pytest.raises(UserError, match='pip cannot download armd-jax-made-up'):
    folder.download('armd-jax-made-up', tmp_path / 'out')


def test_packages_are_those_that_setup_asks_for():
  setup = (environment.ROOT / 'setup.py').read_text()
  # grain imports portpicker without asking for it.
  assert all(f"'{package}'" in setup for package in folder.PACKAGES if 'portpicker' not in package)

"""Vocabulary files: local, of a package, downloaded, in that order, and none but the official."""

import dataclasses
import hashlib

import pytest

from armd_jax.data import vocabularies
from armd_jax.errors import UserError

DATA = b'a\nb\n'


@pytest.fixture
def places(tmp_path, monkeypatch):
  """A vocabulary, and the local file, the package's and the published one, none of them there."""
  local, package, published = (tmp_path / name for name in ('local', 'site', 'published'))
  (package / 'some_vocabulary').mkdir(parents=True)
  (package / 'some_vocabulary' / '__init__.py').write_text('raise AssertionError("imported")')
  monkeypatch.setenv(vocabularies.FOLDER_VARIABLE, str(local))
  monkeypatch.syspath_prepend(str(package))
  vocabulary = vocabularies.Vocabulary(
    path='letters/vocab.txt',
    sha256=hashlib.sha256(DATA).hexdigest(),
    package='some-vocabulary',
    package_path='some_vocabulary/data/vocab.txt',
    url=published.as_uri(),
  )
  paths = local / 'letters/vocab.txt', package / 'some_vocabulary/data/vocab.txt', published
  return vocabulary, paths


def write(path, data=DATA):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


@pytest.mark.parametrize('first', [0, 1, 2])
def test_the_first_place_that_has_it_wins(places, first):
  vocabulary, paths = places
  write(paths[first])
  if first == 1:
    write(paths[2], b'another')  # would be refused
  if first == 0:
    write(paths[1], b'another')
  assert vocabulary.read() == DATA


def test_a_download_is_kept(places):
  vocabulary, (local, _, published) = places
  write(published)
  vocabulary.read()
  published.unlink()
  assert local.read_bytes() == DATA and vocabulary.read() == DATA
  assert list(local.parent.iterdir()) == [local]


@pytest.mark.parametrize('place', [0, 1, 2])
def test_any_other_file_is_refused_and_left(places, place):
  vocabulary, paths = places
  write(paths[place], b'another')
  with pytest.raises(UserError, match=r'is not the official vocabulary .*; replace or remove it'):
    vocabulary.read()
  assert paths[place].read_bytes() == b'another'
  assert not paths[0].exists() or place == 0


def test_nowhere_to_be_had(places):
  vocabulary, (local, _, _) = places
  with pytest.raises(UserError, match=r'there is no vocabulary .*; .*pip install some-vocabulary'):
    vocabulary.read()
  assert not local.exists()


def test_a_folder_that_cannot_be_written_to(places, tmp_path):
  vocabulary, (_, _, published) = places
  write(published)
  (tmp_path / 'local').write_text('a file')
  with pytest.raises(UserError, match=f'set {vocabularies.FOLDER_VARIABLE}|check its permissions'):
    vocabulary.read()


def test_the_home_folder_is_the_default(monkeypatch, tmp_path):
  monkeypatch.delenv(vocabularies.FOLDER_VARIABLE, raising=False)
  monkeypatch.setenv('HOME', str(tmp_path))
  write(tmp_path / '.cache/armd_jax/vocabularies/x', DATA)
  anywhere = dataclasses.replace(
    vocabularies.GPT2, path='x', sha256=hashlib.sha256(DATA).hexdigest()
  )
  assert anywhere.read() == DATA


@pytest.mark.parametrize('place', [0, 1])
def test_a_file_that_cannot_be_read(places, place):
  vocabulary, paths = places
  paths[place].mkdir(parents=True)
  message = rf'{paths[place]} cannot be read \(Is a directory\); check its permissions'
  with pytest.raises(UserError, match=message):
    vocabulary.read()

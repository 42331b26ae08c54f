"""Exports that cannot be read or written are named in a sentence; others hold all they need."""

import dataclasses
import errno
import os
import re
import shutil
import tempfile

import forbidden
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_llama

from armd_jax import convert, export, training
from armd_jax.artifacts import standalone, weights
from armd_jax.errors import UserError
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib


def test_an_export_that_cannot_be_read(tmp_path):
  (tmp_path / 'a.safetensors').mkdir()
  with pytest.raises(UserError, match=r'cannot read .*a.safetensors \(.*\); give another'):
    standalone.read(tmp_path / 'a.safetensors')
  (tmp_path / 'folder/export.json').mkdir(parents=True)
  with pytest.raises(UserError, match=r'cannot read .*folder \(Is a directory\); give another'):
    standalone.read(tmp_path / 'folder')


@pytest.mark.parametrize('name', ['--out', '--hf'])
def test_an_export_that_cannot_be_written(tmp_path, name):
  message = rf'cannot write .*new \(No space left on device\); give another {name}'
  with pytest.raises(UserError, match=message), standalone.new_path(tmp_path / 'new', False, name):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert not list(tmp_path.glob('*new*'))


def test_what_still_writes_is_waited_for(tmp_path, monkeypatch):
  """As a thread of orbax's does, where another one has found the disk full."""
  remove, tries = shutil.rmtree, []

  def beside_a_thread(folder):
    tries.append(folder)
    if len(tries) < 3:
      raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
    remove(folder)

  monkeypatch.setattr(shutil, 'rmtree', beside_a_thread)
  new = standalone.new_path(tmp_path / 'new', False)
  with pytest.raises(UserError, match=r'cannot write .*new \(No space'), new as part:
    part.mkdir()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  assert len(tries) == 3 and not list(tmp_path.glob('*new*'))


# ----- vocabularies that are files


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  """A run with a tokenizer.json of its own, which no test changes."""
  folder = tmp_path_factory.mktemp('vocabulary')
  (folder / 'hf').mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder / 'hf', 'llama2'))
  convert.main(convert.Options(hf=str(folder / 'hf'), workdir=str(folder / 'run'), length=16))
  return folder / 'run'


@pytest.fixture
def made(vocabulary, tmp_path, monkeypatch):
  """Writes exports of a copy of the run, which has its vocabulary at a place of its own."""
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
  (tmp_path / 'temporary').mkdir()
  run, own = tmp_path / 'run', tmp_path / 'own.json'
  shutil.copytree(vocabulary, run)
  shutil.move(run / 'tokenizer.json', own)
  config = workdir_lib.read_config(run)
  data = dataclasses.replace(config.data, tokenizer=str(own))
  (run / 'config.json').unlink()
  workdir_lib.write_config(run, dataclasses.replace(config, data=data))
  shutil.rmtree(run / 'checkpoints')
  state = weights.load_ema(vocabulary)
  saved = training.state_of(workdir_lib.read_config(run), state[2])
  checkpoints = checkpoint.Checkpoints(run)
  checkpoints.save(0, saved, 0, None)
  checkpoints.close()

  def write(name, source=run):
    export.main(export.Options(workdir=str(source), out=str(tmp_path / name)))
    return tmp_path / name

  return write


KINDS = ('export', 'export.safetensors')


@pytest.mark.parametrize('now', ['gone', 'another', 'closed'])
@pytest.mark.parametrize('kind', KINDS)
def test_an_export_opens_without_the_vocabulary_of_its_run(made, tmp_path, kind, now):
  """Wherever it is copied to, and what is at the old place by now; and so does one that is made of
  it."""
  first, _, params, _ = weights.load_ema(made(kind))
  assert first.data.tokenizer == str(tmp_path / 'own.json')
  shutil.rmtree(tmp_path / 'run')
  (tmp_path / 'own.json').unlink()
  if now == 'another':
    tiny_llama.write_tokenizer(tmp_path, tiny_llama.V - 1)
    (tmp_path / 'tokenizer.json').rename(tmp_path / 'own.json')
  elif now == 'closed':  # a link in a circle is as little to be looked at, also by root
    (tmp_path / 'own.json').symlink_to('own.json')
  moved = tmp_path / 'elsewhere' / kind
  moved.parent.mkdir()
  shutil.move(tmp_path / kind, moved)
  for path in (moved, made('again', moved), made('again.safetensors', moved)):
    config, tokenizer, again, _ = weights.load_ema(path)
    assert tokenizer.decode(tokenizer.encode('abba')) == 'abba' and tokenizer.vocab_size == 15
    assert tokenizer.name == config.data.tokenizer != first.data.tokenizer
    jax.tree.map(np.testing.assert_array_equal, again, params)
  export.main(export.Options(workdir=str(moved), hf=str(tmp_path / 'hf')))
  assert (tmp_path / 'hf' / 'tokenizer.json').is_file()


@pytest.mark.parametrize('kind', KINDS)
def test_a_vocabulary_that_was_changed_is_refused(made, kind):
  path = made(kind)
  if kind == 'export':
    text = (path / 'tokenizer.json').read_text()
    (path / 'tokenizer.json').write_text(text.replace('"a"', '"A"'))
  else:
    with safetensors.safe_open(path, 'np') as file:
      metadata = file.metadata()
    metadata['tokenizer.json'] = metadata['tokenizer.json'].replace('"a"', '"A"')
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, metadata=metadata)
  with pytest.raises(UserError, match=r'^export .* is damaged \(tokenizer.json '):
    standalone.read(path)


@pytest.mark.parametrize('kind', KINDS)
def test_an_export_of_an_older_version_has_no_vocabulary(made, tmp_path, monkeypatch, kind):
  """It opens where the file still is."""
  monkeypatch.setattr(standalone, '_vocabulary', lambda _: None)
  path = made(kind)
  assert not (path / 'tokenizer.json').exists()
  assert weights.load_ema(path)[1].name == str(tmp_path / 'own.json')
  (tmp_path / 'own.json').unlink()
  with pytest.raises(UserError, match=r'own.json. cannot be read \(No such file'):
    weights.load_ema(path)


# ----- permissions


@pytest.mark.parametrize('closed', ['', 'export', 'export/weights', 'export/tokenizer.json'])
def test_an_export_that_may_not_be_looked_into_is_a_sentence(made, tmp_path, closed):
  path = made('export')
  code = f"""
import armd_jax
from armd_jax.artifacts import standalone
for work in (armd_jax.load, standalone.read):
  try:
    work({str(path)!r})
  except Exception as error:
    print(f'{{type(error).__name__}}: {{error}}')
"""
  with forbidden.Closed(tmp_path / closed):
    done = forbidden.python(code)
  told = done.stdout.splitlines()
  assert len(told) == 2 and told[0] == told[1], (told, done.stderr)
  assert re.match(r'UserError: .* \(Permission denied\); ', told[0]), told

"""Exports that cannot be read or written are named in a sentence."""

import errno
import os

import pytest

from armd_jax.artifacts import standalone
from armd_jax.errors import UserError


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

"""A model by its name: found where it was unpacked, or a sentence that names the place."""

import pytest

from armd_jax import export
from armd_jax.artifacts import pack, standalone
from armd_jax.errors import UserError


def test_a_name_that_was_never_unpacked_is_told_with_its_place(tmp_path, monkeypatch):
  monkeypatch.setenv(pack.FOLDER_VARIABLE, str(tmp_path))
  message = rf"no 'never_made' here, and no model of that name in {tmp_path}; unpack never_made.zip"
  with pytest.raises(UserError, match=message):
    pack.find('never_made')
  (tmp_path / 'never_made').mkdir()  # and is no export
  with pytest.raises(UserError, match=message):
    pack.find('never_made')
  for path in ('work/never_made', tmp_path):
    assert pack.find(path) == path


def test_an_archive_that_cannot_be_written(tmp_path, monkeypatch):
  monkeypatch.setattr(pack.weights, 'load_ema', lambda workdir: (None, None, {}, 0))
  monkeypatch.setattr(pack.weights, 'text_sha256_of', lambda workdir: '')
  monkeypatch.setattr(pack.cards, 'model_card', lambda *_: '')
  monkeypatch.setattr(standalone, 'write_folder', lambda part, *_: part.mkdir())
  monkeypatch.setattr(standalone, 'seal', lambda *_: None)
  (tmp_path / 'mine.zip').mkdir()
  with pytest.raises(UserError, match=r'cannot write .*mine.zip \(Is a directory\); free space'):
    pack.pack(tmp_path, 'mine', {})


@pytest.mark.parametrize('more', [{'stablehlo': True}, {'scores': ('scores.json',)}])
def test_what_a_single_file_cannot_hold(tmp_path, more):
  out = tmp_path / 'a.safetensors'
  options = export.Options(workdir=str(tmp_path), out=str(out), **more)
  with pytest.raises(UserError, match=r'go into a folder; write an --out without \.safetensors'):
    export.main(options)
  assert not out.exists()

"""A pipe, which may never end, is refused at once, for whichever file of a program it stands."""

import os

import pytest

from armd_jax.artifacts import standalone
from armd_jax.data.vocabularies import Vocabulary
from armd_jax.errors import UserError
from armd_jax.files import whole
from armd_jax.models import weight_files
from armd_jax.show import history
from armd_jax.training.metrics import JsonLines


@pytest.mark.parametrize(
  ('name', 'read'),
  [
    ('model.safetensors', lambda path: weight_files.read(path.parent, '')),
    ('run.safetensors', standalone.read),
    ('metrics.jsonl', history.read),
    ('words', lambda path: Vocabulary(path.name, '', 'no_package', '', '').read()),
  ],
)
def test_it_is_a_sentence(tmp_path, monkeypatch, name, read):
  monkeypatch.setenv('ARMD_JAX_VOCABULARIES', str(tmp_path))
  os.mkfifo(tmp_path / name)
  with pytest.raises(UserError, match=r'no ordinary file'):
    read(tmp_path / name)


def test_a_weight_file_of_gguf(tmp_path):
  pytest.importorskip('gguf')
  from armd_jax.models import gguf_file

  os.mkfifo(tmp_path / 'a.gguf')
  with pytest.raises(UserError, match=r'no ordinary file'):
    gguf_file.fields(tmp_path / 'a.gguf')


def test_nothing_is_appended_to_it(tmp_path):
  os.mkfifo(tmp_path / 'metrics.jsonl')
  with pytest.raises(OSError, match='no ordinary file') as caught:
    JsonLines(tmp_path / 'metrics.jsonl')
  assert whole.refusal(caught.value) == 'it is no ordinary file'

"""An open model is loaded by its folder, or by its name where a hub is to be had."""

import sys
import types

import pytest
import tiny_llama

import armd_jax
from armd_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
  tiny_llama.write(tmp_path, 'smollm2')
  return tiny_llama.write_tokenizer(tmp_path)


def test_a_folder_is_a_model(folder, monkeypatch):
  model = armd_jax.load(folder)
  assert (model.config.model.family, model.config.model.length, model.step) == ('ar', 64, 0)
  text = model.generate('abba', temperature=0.0)
  assert text.startswith('abba') and text == armd_jax.load(str(folder)).generate(
    'abba', temperature=0.0
  )
  monkeypatch.setenv('HOME', str(folder.parent))
  assert armd_jax.load(f'~/{folder.name}').config == model.config
  with pytest.raises(UserError, match='auto-regressive'):
    model.generate('abba', streams=2)


def test_a_name_is_a_folder_of_the_hub(folder, monkeypatch):
  asked = []

  def fetched(name, allow_patterns):
    asked.append(name)
    if name != 'some/model':
      raise OSError('no such model')
    return str(folder)

  hub = types.SimpleNamespace(snapshot_download=fetched)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  model = armd_jax.load('hf:some/model')
  assert model.tokenizer.vocab_size == tiny_llama.V and asked == ['some/model']
  with pytest.raises(UserError, match=r'hf:other cannot be fetched \(no such model\); check the'):
    armd_jax.load('hf:other')
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match='hf:some/model needs huggingface_hub; pip install'):
    armd_jax.load('hf:some/model')

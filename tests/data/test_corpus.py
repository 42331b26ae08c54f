"""What a run's config makes of its text."""

import corpora
import numpy as np
import pytest

from armd_jax.config import DataConfig, parse
from armd_jax.data import corpus, prepare
from armd_jax.errors import UserError

TEXTS = corpora.documents(200)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpus')
  source = corpora.write_text(folder / 'text.txt', TEXTS)
  prepare.prepare(source, 'bytes', str(folder / 'out'), held_out=0.2)
  return folder


def test_a_prepared_folder_is_a_source(folder):
  loaded = corpus.load(DataConfig(source=str(folder / 'out')), 64)
  assert 'text.txt: documents separated by blank lines' in loaded.description
  assert len(loaded.train_WxN) > len(loaded.held_out_WxN) > 0
  both = {tuple(window) for side in (loaded.train_WxN, loaded.held_out_WxN) for window in side}
  in_memory = corpus.load(DataConfig(source=str(folder / 'text.txt'), held_out=0.2), 64)
  assert in_memory.train_WxN.shape[1] == 64 and both


@pytest.mark.parametrize('source', ['out', 'text.txt'])
def test_packing_is_the_configs(folder, source):
  joined, wrapped = (
    corpus.load(DataConfig(source=str(folder / source), packing=packing), 64)
    for packing in ('joined', 'wrapped')
  )
  for side in ('train_WxN', 'held_out_WxN'):
    plain, framed = getattr(joined, side)[:], getattr(wrapped, side)[:]
    assert np.all(framed[:, [0, -1]] == 256)
    stretch = framed[:, 1:-1].ravel()
    np.testing.assert_array_equal(stretch, plain.ravel()[: len(stretch)])


def test_the_tokenizer_must_be_the_corpus_own(folder, monkeypatch):
  from armd_jax.data import tokenizers

  class Other(tokenizers.ByteTokenizer):
    name = 'other'

  monkeypatch.setitem(tokenizers._TOKENIZERS, 'other', Other)
  with pytest.raises(UserError, match="was prepared with tokenizer 'bytes', not 'other'"):
    corpus.load(DataConfig(source=str(folder / 'out'), tokenizer='other'), 64)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('packing', 'wrap', "config.data.packing is 'wrap'; write one of 'joined', 'wrapped'"),
    ('workers', -1, 'config.data.workers is -1; write a whole number from 0 to'),
    ('prefetch_mib', 0, 'prefetch_mib is 0; write a whole number from 1 to'),
  ],
)
def test_bad_fields(field, value, message):
  with pytest.raises(UserError, match=message):
    parse({'data': {field: value}})

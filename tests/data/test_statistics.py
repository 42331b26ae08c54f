"""Statistics of a corpus: true of its documents, whoever counted them, and kept with it."""

import json

import corpora
import numpy as np
import pytest

from armd_jax.config import DataConfig
from armd_jax.data import corpus, prepare, prepared, sources, statistics
from armd_jax.errors import UserError

TEXTS = corpora.documents(400, most_words=200)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpus')
  source = corpora.write_text(folder / 'a.txt', TEXTS)
  prepare.prepare(source, 'bytes', str(folder / 'out'), held_out=0.1, part_bytes=4000)
  return folder


def test_lengths_repeats_and_share_are_those_of_the_documents(folder):
  found = statistics.read(prepared.Prepared(str(folder / 'out')).manifest['statistics'])
  lengths = sorted(len(text.encode()) + 1 for text in TEXTS)
  assert sum(found.lengths.values()) == len(TEXTS)
  for share in (0.01, 0.5, 0.9, 1):
    exact = lengths[int(np.ceil(share * len(TEXTS))) - 1]
    assert exact <= found.at_most(share) <= max(exact * 1.033, exact)
  assert found.duplicates == len(TEXTS) - len(set(TEXTS)) > 30 and found.every == 1
  size = lambda texts: sum(len(text.encode()) for text in texts)
  held = [text for text in TEXTS if sources.is_held_out(sources.hash_of(text), 0.1)]
  assert found.held_out == pytest.approx(size(held) / size(TEXTS))
  text = '\n'.join(found.lines())
  assert f'all at most {found.at_most(1):,}' in text and f'{found.duplicates} documents' in text


def test_a_share_of_a_large_corpus_stands_for_all(monkeypatch, folder, tmp_path):
  monkeypatch.setattr(statistics, 'compared_every', lambda num_bytes: 4)
  texts = [f'text {i % 500}' for i in range(2000)]
  source = corpora.write_text(tmp_path / 'a.txt', texts)
  manifest = prepare.prepare(source, 'bytes', str(tmp_path / 'out'), held_out=0.1, part_bytes=3000)
  found = statistics.read(manifest['statistics'])
  assert found.every == 4 and 1200 < found.duplicates < 1800  # of 1500
  assert f'about {found.duplicates:,}' in '\n'.join(found.lines())


def test_hashes_are_few_whatever_the_corpus():
  assert [statistics.compared_every(size) for size in (0, 1, 2**22 * 1000, 10**12)] == [
    1,
    1,
    1,
    239,
  ]


def test_a_run_keeps_them_and_damage_is_a_sentence(folder, tmp_path):
  from armd_jax.training import text

  loaded = corpus.load(DataConfig(source=str(folder / 'out')), 64)
  assert loaded.statistics[''] == prepared.Prepared(str(folder / 'out')).manifest['statistics']
  mixed = corpus.load(DataConfig(mixture=(str(folder / 'out'), str(folder / 'a.txt'))), 64)
  assert mixed.statistics == {'out': loaded.statistics['']}
  kept = {'sha256': '0' * 64, 'statistics': loaded.statistics}
  (tmp_path / text.FILE).write_text(json.dumps(kept))
  assert text.statistics_of(tmp_path) == {'': statistics.read(loaded.statistics[''])}
  for damage in ({'lengths': {'x': 1}}, {'lengths': 3}):
    kept['statistics'] = {'': loaded.statistics[''] | damage}
    (tmp_path / text.FILE).write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r'text.json is damaged .*; delete its statistics'):
      text.statistics_of(tmp_path)

"""Statistics of a corpus: true of its documents, whoever counted them, and kept with it."""

import contextlib
import json
import shutil
import signal
import weakref

import corpora
import numpy as np
import pytest

from armd_jax.config import DataConfig
from armd_jax.data import corpus, parts, prepare, prepared, sources, statistics
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
  for count in (1, 25, 256, 600):
    most = statistics.most_compared(count)
    assert 2**14 < most <= 2**22 and count * most <= 2**24


def lines(count, different, often=0):
  """Short documents: of `count` so many are different, and `often` more are one and the same."""
  return [f'{i % different:07}' for i in range(count)] + ['yes'] * often


@pytest.fixture
def few(monkeypatch):
  """Notes that hold 2048 hashes in all."""
  monkeypatch.setattr(statistics, '_HELD', 2**11)


def notes(out):
  return sorted((out / 'unfinished').glob('part-*.json'))


@contextlib.contextmanager
def stopped_at_the_end(monkeypatch):
  """Has a preparation stop once all notes are written."""
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(prepare, '_finish', lambda *_: signal.raise_signal(signal.SIGINT))
    yield


@pytest.mark.parametrize('num_workers', [1, 2])
def test_many_short_documents_leave_few_hashes(few, monkeypatch, tmp_path, num_workers):
  """Each note is bounded, however many lines its bytes hold and however often one is repeated, and
  so is what is held of all of them; what is told of repeats is an estimate, near the truth."""
  texts = lines(24_000, 12_000, often=8000)
  source = corpora.write_text(tmp_path / 'a.txt', texts)
  out, options = tmp_path / 'out', {'part_bytes': 27_000, 'num_workers': num_workers}
  with stopped_at_the_end(monkeypatch):
    prepare.prepare(source, 'bytes', str(out), **options)
  kept = [json.loads(path.read_text())['statistics'] for path in notes(out)]
  assert len(kept) == 10 and {note['every'] for note in kept} == {1}
  assert all(len(note['compared']) <= 204 for note in kept) and kept[0]['halved'] == 4
  found = statistics.read(prepare.prepare(source, 'bytes', str(out), **options)['statistics'])
  assert sum(found.lengths.values()) == len(texts) and found.every == 16
  assert found.duplicates == pytest.approx(len(texts) - 12_001, rel=0.05)
  assert f'repeated  about {found.duplicates:,} documents' in '\n'.join(found.lines())


@pytest.mark.parametrize('bound', [2**11, 2**24])
def test_notes_of_a_version_without_a_bound_go_on(monkeypatch, tmp_path, bound):
  """With all hashes, in the order of the documents."""
  monkeypatch.setattr(statistics, '_HELD', bound)
  texts = lines(9000, 6000)
  source = corpora.write_text(tmp_path / 'a.txt', texts)
  prepared_alike = lambda name: prepare.prepare(
    source, 'bytes', str(tmp_path / name), part_bytes=10_000
  )
  straight = prepared_alike('straight')
  with stopped_at_the_end(monkeypatch):
    prepared_alike('out')
  rest = list(texts)
  for path in notes(tmp_path / 'out'):
    note = json.loads(path.read_text())
    there = rest[: sum(note['statistics']['lengths'].values())]
    del rest[: len(there)]
    hashes = [sources.hash_of(text)[:8].hex() for text in there]
    assert bound < 2**24 or set(note['statistics']['compared']) == set(hashes)
    note['statistics'] = {**note['statistics'], 'compared': hashes}
    note['statistics'].pop('halved', None)
    path.write_text(json.dumps(parts.sealed(note)))
  assert not rest
  found = prepared_alike('out')
  assert found['text_sha256'] == straight['text_sha256']
  if bound == 2**24:
    assert found == straight and found['statistics']['duplicates'] == 3000
  else:
    assert found['statistics']['every'] == 8
    assert found['statistics']['duplicates'] == pytest.approx(3000, rel=0.15)


def test_the_hashes_of_one_note_are_held_at_a_time(monkeypatch, tmp_path):
  class Hashes(list):
    pass

  alive, most = weakref.WeakSet(), []
  Hashes.__hash__ = object.__hash__
  read_note = parts.read_note

  def read(folder, number):
    note = read_note(folder, number)
    if note is not None:
      note['statistics']['compared'] = Hashes(note['statistics']['compared'])
      alive.add(note['statistics']['compared'])
    most.append(len(alive))
    return note

  monkeypatch.setattr(parts, 'read_note', read)
  source = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  prepare_it = lambda: prepare.prepare(source, 'bytes', str(tmp_path / 'out'), part_bytes=4000)
  with stopped_at_the_end(monkeypatch):
    prepare_it()
  later = shutil.copy(source, tmp_path / 'b.txt')
  shutil.move(later, source)  # the same text, which is compared with the notes
  prepare_it()
  assert len(most) > 30 and max(most) <= 2


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

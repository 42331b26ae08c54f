"""Prepared corpora: windows read from files equal windows packed in memory; damage is told."""

import dataclasses
import json
import os
import pickle
import shutil

import corpora
import forbidden
import numpy as np
import pytest
import tiny_llama

from armd_jax.config import DataConfig
from armd_jax.data import corpus, packing, prepare, prepared, sources
from armd_jax.data.packing import Packing
from armd_jax.data.tokenizers import ByteTokenizer, get_tokenizer
from armd_jax.errors import UserError

TOKENIZER = ByteTokenizer()
TEXTS = corpora.documents(200)
PACKINGS = [Packing(8), Packing(1024), Packing(1000), Packing(2500), Packing(66, (256,), (256,))]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """One corpus in one file, and in several."""
  folder = tmp_path_factory.mktemp('prepared')
  source = corpora.write_text(folder / 'text.txt', TEXTS)
  for name, part_bytes in (('one', 10**6), ('many', 8_000)):
    prepare.prepare(source, 'bytes', str(folder / name), held_out=0.2, part_bytes=part_bytes)
  return folder


def sides(texts):
  held = [sources.is_held_out(sources.hash_of(text), 0.2) for text in texts]
  pick = lambda side: [text for text, is_held in zip(texts, held, strict=True) if is_held == side]
  return {'train': pick(False), 'held_out': pick(True)}


@pytest.mark.parametrize('side', ['train', 'held_out'])
@pytest.mark.parametrize('cut', PACKINGS)
def test_windows_are_those_packed_in_memory(made, cut, side):
  expected = packing.pack(sides(TEXTS)[side], TOKENIZER, cut)
  windows = prepared.Prepared(str(made / 'one')).windows(side, TOKENIZER, cut)
  assert len(windows) == len(expected) > 0
  assert windows[0].dtype == expected.dtype == np.uint16
  np.testing.assert_array_equal(windows[:], expected)
  np.testing.assert_array_equal(windows[1:9:3], expected[1:9:3])
  np.testing.assert_array_equal(windows[len(expected) // 2], expected[len(expected) // 2])
  np.testing.assert_array_equal(windows[-1], expected[-1])
  assert windows[:0].shape == (0, cut.length)
  with pytest.raises(IndexError):
    windows[len(expected)]


def test_no_window_reaches_over_the_end_of_a_file(made):
  """A corpus in several files has the windows of the files, one file after the other."""
  manifest = json.loads((made / 'many' / 'manifest.json').read_text())
  counts = [shard['documents'] for shard in manifest['shards']['train']]
  texts = iter(sides(TEXTS)['train'])
  files = [[next(texts) for _ in range(count)] for count in counts]
  cut = Packing(64)
  expected = np.concatenate([packing.pack(file, TOKENIZER, cut) for file in files])
  windows = prepared.Prepared(str(made / 'many')).windows('train', TOKENIZER, cut)
  assert len(counts) > 3
  np.testing.assert_array_equal(windows[:], expected)


def test_copies_read_on_their_own(made):
  windows = prepared.Prepared(str(made / 'many')).windows('train', TOKENIZER, Packing(32))
  windows[0]
  copy = pickle.loads(pickle.dumps(windows))
  np.testing.assert_array_equal(copy[5], windows[5])
  assert len(pickle.dumps(windows)) < 10_000  # not the text itself


def test_another_tokenizer_is_refused(made):
  class Other(ByteTokenizer):
    name = 'gpt2'

  class Newer(ByteTokenizer):
    def encode(self, text):
      return 255 - super().encode(text)

  found = prepared.Prepared(str(made / 'one'))
  with pytest.raises(
    UserError, match=r"with tokenizer 'bytes', not 'gpt2'; write --config.data.tok"
  ):
    found.windows('train', Other(), Packing(8))
  with pytest.raises(UserError, match="another version of tokenizer 'bytes'; prepare it anew"):
    found.windows('train', Newer(), Packing(8))


def test_too_short_for_a_window(made):
  found = prepared.Prepared(str(made / 'many'))
  with pytest.raises(UserError, match=r'the longest held_out file of .* tokens, fewer than one'):
    found.windows('held_out', TOKENIZER, Packing(100_000))


def damaged(made, tmp_path, change):
  folder = tmp_path / 'copy'
  shutil.copytree(made / 'one', folder)
  change(folder)
  return folder


@pytest.mark.parametrize('name', ['train-00000.array_record', 'held_out-00000.array_record'])
def test_missing_or_short_files_are_told_at_once(made, tmp_path, name):
  folder = damaged(made, tmp_path, lambda folder: (folder / name).unlink())
  with pytest.raises(UserError, match='is missing or cut short; prepare the corpus anew'):
    prepared.Prepared(str(folder))
  (folder / name).write_bytes((made / 'one' / name).read_bytes()[:-1])
  with pytest.raises(UserError, match='is missing or cut short'):
    prepared.Prepared(str(folder))


def test_a_wrong_byte_in_a_file_is_never_read_as_text(made, tmp_path):
  name = 'train-00000.array_record'
  whole = (made / 'one' / name).read_bytes()
  expected = prepared.Prepared(str(made / 'one')).windows('train', TOKENIZER, Packing(1024))[:]
  folder = damaged(made, tmp_path, lambda folder: None)
  refused = 0
  for offset in np.linspace(0, len(whole) - 1, 40, dtype=int):
    data = bytearray(whole)
    data[offset] ^= 0x55
    (folder / name).write_bytes(data)
    try:
      windows = prepared.Prepared(str(folder)).windows('train', TOKENIZER, Packing(1024))[:]
    except UserError as error:
      refused += 1
      assert 'is damaged' in str(error) and '\n' not in str(error)
    else:
      np.testing.assert_array_equal(windows, expected)
  assert refused > 3


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda path: path.write_text('{'),
      r'is damaged \(it is cut short .*; prepare the corpus anew',
    ),
    (lambda path: change(path, '"documents": 1', '"documents": 2'), 'was changed after it was'),
    (lambda path: change(path, '"sha256": "', '"sha257": "'), 'is damaged .*; prepare the corpus'),
    (lambda path: path.write_text('{"format": 2}'), 'is in format 2, not 1; prepare it anew'),
    (lambda path: path.unlink(), 'is not finished; run the same armd_jax.data.prepare command'),
  ],
)
def test_a_bad_manifest(made, tmp_path, change, message):
  folder = damaged(made, tmp_path, lambda folder: change(folder / 'manifest.json'))
  with pytest.raises(UserError, match=message):
    prepared.Prepared(str(folder))


def change(path, old, new):
  text = path.read_text()
  assert old in text
  path.write_text(new.join(text.rsplit(old, 1)))


def test_a_manifest_of_an_older_version_is_read(made, tmp_path):
  folder = damaged(made, tmp_path, lambda folder: None)
  manifest = json.loads((folder / 'manifest.json').read_text())
  del manifest['sha256'], manifest['statistics']
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  assert prepared.Prepared(str(folder)).sha256 == manifest['text_sha256']


def test_another_file_of_the_same_size_is_refused(made, tmp_path):
  folder, name = damaged(made, tmp_path, lambda folder: None), 'train-00000.array_record'
  stream_T = prepared.Prepared(str(folder)).windows('train', TOKENIZER, Packing(1))[:].ravel()
  corpora.write_records(folder / name, stream_T[::-1])
  prepared.Prepared(str(folder)).windows('train', TOKENIZER, Packing(8))[:]  # each record is whole
  with pytest.raises(
    UserError, match=rf'/{name} is damaged .*other bytes.*; prepare the corpus an'
  ):
    corpus.load(DataConfig(source=str(folder)), 8)
  prepared.Prepared(str(folder)).check_files(1, 2)  # the other process looks at the other files


def test_files_are_compared_once(made, tmp_path, monkeypatch):
  folder = damaged(made, tmp_path, lambda folder: None)
  read = []
  real = prepared.hashlib.sha256
  monkeypatch.setattr(prepared.hashlib, 'sha256', lambda *data: read.append(data) or real(*data))
  check = lambda path: (read.clear(), prepared.Prepared(str(path)).check_files(), read.count(()))[2]
  assert check(made / 'one') == 0  # whoever prepared it has compared them
  assert [check(folder), check(folder)] == [2, 0]
  path = folder / 'train-00000.array_record'
  os.utime(path)
  assert check(folder) == 1
  note = tmp_path / '.copy.checked' / f'{path.name}.json'
  note.write_text(note.read_text().replace('[', '[['))
  assert check(folder) == 1
  shutil.rmtree(note.parent)
  note.parent.write_text('')  # where no note can be written
  assert [check(folder), check(folder)] == [2, 2]


def test_ids_that_are_no_tokens_are_refused(made, tmp_path):
  folder = damaged(made, tmp_path, lambda folder: None)
  name = 'train-00000.array_record'
  stream_T = prepared.Prepared(str(folder)).windows('train', TOKENIZER, Packing(1))[:].ravel()
  stream_T[20] = 257
  corpora.write_records(folder / name, stream_T)
  windows = prepared.Prepared(str(folder)).windows('train', TOKENIZER, Packing(8))
  assert windows[1].max() <= 256
  with pytest.raises(UserError, match=r'is damaged \(window 2 .*; prepare the corpus anew'):
    windows[2]


def test_a_folder_of_other_files_is_not_prepared(tmp_path, made):
  assert prepared.is_prepared(str(made / 'one'))
  assert not prepared.is_prepared(str(tmp_path))
  assert not prepared.is_prepared('stdlib')
  (tmp_path / prepared.UNFINISHED).mkdir()
  assert prepared.is_prepared(str(tmp_path))


def test_shards_count_their_records():
  shard = prepared.Shard('x', 1, 1, 1024, '', 1, '')
  assert [dataclasses.replace(shard, tokens=t).records for t in (1, 1024, 1025)] == [1, 1, 2]


def written(folder):
  """A small text."""
  return corpora.write_text(folder / 'a.txt', corpora.documents(50))


def test_notes_that_vanish_are_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, '_run', lambda *_: None)
  with pytest.raises(UserError, match='out were changed meanwhile; run the same command again'):
    prepare.prepare(written(tmp_path), 'bytes', str(tmp_path / 'out'), held_out=0.1)


def test_a_corpus_that_cannot_be_copied_from_its_bucket(tmp_path, monkeypatch):
  corpora.fake_bucket(monkeypatch)
  prepare.prepare(written(tmp_path), 'bytes', 'gs://bucket/out', held_out=0.1)
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv(prepared.FOLDER_VARIABLE, str(tmp_path / 'file'))
  message = rf'cannot copy gs://bucket/out/.* \(.*\); free space, or set {prepared.FOLDER_VARIABLE}'
  with pytest.raises(UserError, match=message):
    _ = prepared.Prepared('gs://bucket/out')._on_disk


@pytest.mark.parametrize('known', [False, True])
def test_files_that_may_not_be_read_are_named(made, tmp_path, known):
  """Also those that were found whole before, of which a note tells."""
  folder = tmp_path / 'corpus'
  shutil.copytree(made / 'one', folder)
  if known:
    prepared.Prepared(str(folder)).check_files()
  code = f"""
from armd_jax.data import prepared
try:
  prepared.Prepared({str(folder)!r}).check_files()
except Exception as error:
  print(f'{{type(error).__name__}}: {{error}}')
"""
  with forbidden.Closed(folder / 'train-00000.array_record'):
    done = forbidden.python(code)
  told = (
    f'UserError: this user may not use {folder}/train-00000.array_record so (Permission denied)'
  )
  assert done.stdout.startswith(told), (done.stdout, done.stderr)


def test_a_vocabulary_is_the_same_under_any_name(tmp_path, monkeypatch):
  """A relative path is that of the same file, and so is a copy."""
  monkeypatch.chdir(tmp_path)
  source = corpora.write_text(tmp_path / 'text.txt', ['abba', 'cab', 'bac'] * 40)
  tiny_llama.write_tokenizer(tmp_path)
  prepare.prepare(source, 'tokenizer.json', str(tmp_path / 'made'), held_out=0.3)
  found = prepared.Prepared(str(tmp_path / 'made'))
  shutil.copy('tokenizer.json', 'copy.json')
  for name in ('tokenizer.json', str(tmp_path / 'tokenizer.json'), 'copy.json', str(tmp_path)):
    found.check_tokenizer(get_tokenizer(name))
  tiny_llama.write_tokenizer(tmp_path, tiny_llama.V - 1)
  with pytest.raises(UserError, match='with another version of tokenizer'):
    found.check_tokenizer(get_tokenizer('tokenizer.json'))
  with pytest.raises(UserError, match=r"with tokenizer 'tokenizer.json', not '/.*; write --config"):
    found.check_tokenizer(get_tokenizer(str(tmp_path / 'tokenizer.json')))

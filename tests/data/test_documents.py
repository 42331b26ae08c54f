"""A document a window: marks, prompts out of every kind of table, and prepared folders of them."""

import csv
import gzip
import json
import pickle

import corpora
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.config import DataConfig, parse
from armd_jax.data import corpus, documents, packing, prepare, prepared, sources
from armd_jax.data.documents import PADDING
from armd_jax.data.rows import Parts
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.errors import UserError

TOKENIZER = ByteTokenizer()
PAIRS = [(f'What is {i}? ', f'{i}{i} is it, naïvely.') for i in range(60)]
EOS = TOKENIZER.eos_id


def write(path, pairs=PAIRS):
  """A table of prompts and answers, of the kind that its name ends with."""
  rows = [{'asked': asked, 'said': said} for asked, said in pairs]
  if path.suffix == '.jsonl':
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  elif path.suffix == '.json':
    path.write_text(json.dumps(rows))
  elif path.suffix == '.csv':
    with path.open('w', newline='') as file:
      csv.writer(file).writerows([['said', 'asked'], *((said, asked) for asked, said in pairs)])
  else:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in ('asked', 'said')}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
  return str(path)


def ids(text):
  return TOKENIZER.encode(text).tolist()


def test_marks_come_off():
  window = documents.window(documents.encode(Parts(('ab', 'cd')), TOKENIZER), 8)
  assert window.tolist() == [~97, ~98, 99, 100, EOS, PADDING, PADDING, PADDING]
  for array in (window, jnp.array(window)):
    read = documents.read(array)
    assert read.ids_BxN.tolist() == [97, 98, 99, 100, EOS, 0, 0, 0]
    assert read.ids_BxN.dtype == np.int32
    assert read.is_given_BxN.tolist() == [True] * 2 + [False] * 6
    assert read.is_real_BxN.tolist() == [True] * 5 + [False] * 3
    assert read.is_scored_BxN.tolist() == [False] * 2 + [True] * 3 + [False] * 3
  plain = documents.read(np.array([[0, 5]]))
  assert plain.ids_BxN.tolist() == [[0, 5]] and plain.is_scored_BxN.all()
  both = np.stack([window, documents.window(documents.encode('zz', TOKENIZER), 8)])
  assert documents.are_marked(both) and not documents.are_marked(np.array([[0, 1]], np.uint8))
  assert documents.num_scored(both).tolist() == [3, 3]


@pytest.mark.parametrize(
  ('length', 'expected'),
  [(5, [~97, ~98, 99, 100, EOS]), (4, [~98, 99, 100, EOS]), (3, [99, 100, EOS]), (2, [99, 100])],
)
def test_a_document_that_is_too_long_keeps_its_answer(length, expected):
  document = documents.encode(Parts(('ab', 'cd')), TOKENIZER)
  assert documents.window(document, length).tolist() == expected


def test_bytes_are_those_of_what_is_scored():
  windows = documents.windows([Parts(('prompt', 'naïve')), 'x' * 20], TOKENIZER, 16)
  assert packing.text_bytes(windows, TOKENIZER) == 6 + 16


@pytest.mark.parametrize('name', ['a.jsonl', 'a.json', 'a.csv', 'a.parquet'])
def test_prompts_are_read_from_their_column(tmp_path, name):
  path = write(tmp_path / name)
  loaded = sources.load_documents(path, prompt='asked')
  assert [text.parts for text in loaded.texts] == PAIRS
  assert loaded.texts[3] == ''.join(PAIRS[3])  # what a document is held out by
  said = sources.load_documents(write(tmp_path / f'plain_{name}', PAIRS[:3]), prompt='said')
  assert said.texts[0].parts[1] == PAIRS[0][0]  # the other of two columns
  with pytest.raises(UserError, match=r"has no text in column 'ask' but .*; name another column"):
    sources.load_documents(path, prompt='ask')


def test_a_row_without_an_answer_is_blank(tmp_path):
  path = write(tmp_path / 'a.jsonl', [*PAIRS[:2], ('And? ', ' \n'), *PAIRS[2:4]])
  assert len(sources.load_documents(path, prompt='asked').texts) == 4


@pytest.mark.parametrize('source', ['stdlib', 'tfds:lm1b', 'a.txt', 'a.json'])
def test_prompts_need_columns(tmp_path, monkeypatch, source):
  monkeypatch.chdir(tmp_path)
  corpora.write_text(tmp_path / 'a.txt', ['a', 'b'])
  (tmp_path / 'a.json').write_text('["a", "b"]')
  with pytest.raises(UserError, match='has no column'):
    sources.load_documents(source, prompt='asked')


def test_a_corpus_has_a_window_for_each_document(tmp_path):
  config = DataConfig(source=write(tmp_path / 'a.jsonl'), packing='documents', prompt='asked')
  loaded = corpus.load(config, 48)
  both = np.concatenate([loaded.train_WxN, loaded.held_out_WxN])
  assert both.shape == (60, 48) and both.dtype == np.int32
  read = documents.read(both)
  found = {
    (TOKENIZER.decode(row[given]), TOKENIZER.decode(row[scored][:-1]))
    for row, given, scored in zip(read.ids_BxN, read.is_given_BxN, read.is_scored_BxN, strict=True)
  }
  assert found == set(PAIRS)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The same, prepared into several files."""
  folder = tmp_path_factory.mktemp('prepared')
  source = write(folder / 'a.jsonl')
  made = prepare.prepare(
    source, 'bytes', str(folder / 'out'), held_out=0.3, prompt='asked', part_bytes=700
  )
  assert made['plan']['documents'] is True and len(made['shards']['train']) > 2
  return folder


def test_prepared_windows_are_those_packed_in_memory(folder):
  config = DataConfig(source=str(folder / 'out'), packing='documents')
  loaded = corpus.load(config, 40)
  texts = sources.load_documents(str(folder / 'a.jsonl'), prompt='asked').texts
  for side in ('train', 'held_out'):
    windows = getattr(loaded, f'{side}_WxN')
    of_side = [
      text
      for text in texts
      if sources.is_held_out(sources.hash_of(text), 0.3) == (side == 'held_out')
    ]
    expected = documents.windows(of_side, TOKENIZER, 40)
    assert len(windows) == len(expected) > 5
    np.testing.assert_array_equal(windows[:], expected)
    np.testing.assert_array_equal(windows[-1], expected[-1])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(windows))[2], expected[2])
    assert windows[:0].shape == (0, 40) and windows[0].dtype == np.int32
    with pytest.raises(IndexError):
      windows[len(expected)]
  totals = prepared.Prepared(str(folder / 'out')).manifest['totals']
  assert totals['train']['tokens'] + totals['held_out']['tokens'] == sum(
    len(text.encode()) + 1 for text in texts
  )


def test_documents_and_streams_are_told_apart(folder, tmp_path):
  where = str(folder / 'out')
  with pytest.raises(UserError, match=r'with --documents; write --config.data.packing=documents'):
    corpus.load(DataConfig(source=where), 40)
  with pytest.raises(UserError, match="with prompt 'asked', not 'said'; leave out"):
    corpus.load(DataConfig(source=where, packing='documents', prompt='said'), 40)
  source = corpora.write_text(tmp_path / 'text.txt', corpora.documents(40))
  stream = str(tmp_path / 'stream')
  prepare.prepare(source, 'bytes', stream, held_out=0.3)
  with pytest.raises(UserError, match='as a stream, in which documents are joined'):
    corpus.load(DataConfig(source=stream, packing='documents'), 40)
  # Nor is one made out of the other in the same folder, whichever was first.
  with pytest.raises(UserError, match='was prepared with documents None, not True'):
    prepare.prepare(source, 'bytes', stream, held_out=0.3, documents=True)
  apart = str(tmp_path / 'apart')
  prepare.prepare(source, 'bytes', apart, held_out=0.3, documents=True)
  with pytest.raises(UserError, match='was prepared with documents True, not None'):
    prepare.prepare(source, 'bytes', apart, held_out=0.3)


def test_a_damaged_record_is_told(tmp_path):
  source = corpora.write_text(tmp_path / 'text.txt', corpora.documents(40))
  out = tmp_path / 'out'
  prepare.prepare(source, 'bytes', str(out), held_out=0.3, documents=True)
  found = prepared.Prepared(str(out))
  shard = found._shards['train'][0]
  from array_record.python import array_record_module

  bad = np.array([97, 300, EOS], np.int32).tobytes()
  for data, index in ((bad, 0), (bad[:7], 1), (np.array([97, ~98], np.int32).tobytes(), 2)):
    file = array_record_module.ArrayRecordWriter(str(out / shard.file), 'group_size:1,uncompressed')
    for number in range(shard.documents):
      file.write(data if number == index else np.array([97, EOS], np.int32).tobytes())
    file.close()
    windows = found.documents('train', TOKENIZER, 8)
    assert windows[index + 1].tolist() == [97, EOS] + [PADDING] * 6
    with pytest.raises(UserError, match=rf'is damaged \(window {index} is cut short, or holds'):
      windows[index]


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (
      {'model': {'family': 'mdlm'}, 'data': {'packing': 'documents'}},
      "packing is 'documents' but config.model.family is 'mdlm', which has no orders",
    ),
    ({'data': {'prompt': 'asked'}}, "prompt is 'asked' but config.data.packing is 'joined'"),
  ],
)
def test_what_documents_do_not_go_with(raw, message):
  with pytest.raises(UserError, match=message):
    parse(raw)


@pytest.mark.parametrize('name', ['text.txt', 'text.txt.gz'])
def test_a_file_without_columns_has_no_prompts(tmp_path, name):
  (tmp_path / name).write_bytes(gzip.compress(b'one') if name.endswith('gz') else b'one')
  message = rf"{name}' has no columns, and so none of prompts; give .jsonl, .csv or .parquet"
  with pytest.raises(UserError, match=message):
    sources.load_documents(str(tmp_path / name), prompt='ask')


def test_a_side_without_documents_is_refused(tmp_path):
  source = corpora.write_text(tmp_path / 'text.txt', corpora.documents(40))
  prepare.prepare(source, 'bytes', str(tmp_path / 'out'), held_out=1e-9, documents=True)
  found = prepared.Prepared(str(tmp_path / 'out'))
  assert len(found.documents('train', TOKENIZER, 8)) == 40
  with pytest.raises(UserError, match='out holds no held_out documents; prepare more text'):
    found.documents('held_out', TOKENIZER, 8)

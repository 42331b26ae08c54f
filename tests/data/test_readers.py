"""Spans: the same documents however a corpus is cut, and each kind of bad file in one sentence."""

import json
import random

import corpora
import hypothesis
import hypothesis.strategies as st
import pyarrow
import pytest
from pyarrow import parquet

from armd_jax.data import readers, sources
from armd_jax.errors import UserError

TEXTS = corpora.documents(100)
FIXED = pyarrow.array([b'abc', b'def'], pyarrow.binary(3))
JSON = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(['"a"', '"b"']))


def read(spans):
  return [text for span in spans for text in span.documents()]


def assert_same_however_cut(span, expected):
  assert read([span]) == expected
  for num_bytes in (1, 37, 500, 10_000, 10**9):
    pieces = span.split(num_bytes)
    assert read(pieces) == expected
    assert sum(piece.num_bytes for piece in pieces) == span.num_bytes
  assert len(span.split(500)) > 5
  # A span stands on its own: read in any order, even alone.
  pieces = list(span.split(500))
  by_piece = {piece: list(piece.documents()) for piece in random.Random(0).sample(pieces, 5)}
  assert all(list(piece.documents()) == texts for piece, texts in by_piece.items())


def test_text_separated_by_blank_lines(tmp_path):
  path = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  assert_same_however_cut(readers.file_span(path, ''), TEXTS)


def test_text_one_document_a_line(tmp_path):
  texts = [text.replace('\n', ' ') for text in TEXTS]
  (tmp_path / 'a.txt').write_text('\n'.join(texts), encoding='utf-8')
  span = readers.file_span(str(tmp_path / 'a.txt'), '')
  assert span.by_line
  assert_same_however_cut(span, texts)


def test_json_lines(tmp_path):
  path = corpora.write_jsonl(tmp_path / 'a.jsonl', TEXTS)
  assert_same_however_cut(readers.file_span(path, ''), TEXTS)


def test_parquet(tmp_path):
  path = corpora.write_parquet(tmp_path / 'a.parquet', TEXTS)
  assert_same_however_cut(readers.file_span(path, ''), TEXTS)


LINES = st.sampled_from(['', ' ', '\t', 'a', 'bc d', ' é', '\u2028x', '\x0c', '\ufeff'])


@hypothesis.settings(derandomize=True, max_examples=300, deadline=None)
@hypothesis.given(
  lines=st.lists(LINES, max_size=12),
  newline=st.sampled_from(['\n', '\r\n', '\r']),
  num_bytes=st.integers(1, 20),
)
def test_any_text_may_be_cut_anywhere(tmp_path_factory, lines, newline, num_bytes):
  path = tmp_path_factory.getbasetemp() / 'any.txt'
  path.write_bytes(newline.join(lines).encode())
  span = readers.file_span(str(path), '')
  pieces = span.split(num_bytes)
  assert read(pieces) == read([span])
  assert [p.begin for p in pieces[1:]] == [p.end for p in pieces[:-1]]
  assert (pieces[0].begin, pieces[-1].end) == (span.begin, span.end)


def test_blank_lines_are_found_beyond_the_first_megabyte(tmp_path):
  path = tmp_path / 'a.txt'
  for gap, by_line in (('\n\n', False), ('\n \r\n', False), ('\n', True)):
    path.write_text('\n\n' + 'x' * (2**20 - 3) + gap + 'y')
    assert readers.file_span(str(path), '').by_line == by_line
  path.write_text('one document' + '\n' * 3_000_000)
  assert readers.file_span(str(path), '').by_line


def test_half_a_character_in_json_becomes_a_question_mark(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a\\ud800b"}\n{"text": "\\ud83d\\ude00"}')
  assert read([readers.file_span(str(tmp_path / 'a.jsonl'), '')]) == ['a?b', '😀']


def test_the_column_is_text_or_the_only_one(tmp_path):
  for write in (corpora.write_jsonl, corpora.write_parquet):
    suffix = write.__name__.removeprefix('write_')
    path = write(tmp_path / f'a.{suffix}', TEXTS[:9], column='body')
    assert read([readers.file_span(path, '')]) == TEXTS[:9]
    assert read([readers.file_span(path, 'body')]) == TEXTS[:9]


BAD_LINES = [
  ('{"text": "b"', 'line 3 of .* is no JSON .*; repair or delete it'),
  ('[1]', 'line 3 of .* has no text in column .text. but no fields;'),
  ('{"body": "b"}', 'line 3 of .* has no text in column .text. but only body; .* --column'),
  ('{"text": 5}', 'line 3 of .* has no text in column .text. but a int there;'),
  ('{"text": null}', 'line 3 of .* has no text in column .text. but null there'),
  ('[' * 100_000, 'line 3 of .* is no JSON .*nested too deeply'),
  ('{"text": ' + '1' * 5000 + '}', 'line 3 of .* is no JSON .*digits'),
]


@pytest.mark.parametrize(('line', 'message'), BAD_LINES)
def test_a_bad_json_line_is_named_by_its_number(tmp_path, line, message):
  path = tmp_path / 'a.jsonl'
  path.write_text(f'{{"text": "a"}}\n\n{line}\n{{"text": "c"}}\n')
  span = readers.file_span(str(path), '')
  for spans in ([span], span.split(5)):
    with pytest.raises(UserError, match=message) as error:
      read(spans)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('row', 'column', 'message'),
  [
    (
      {'a': 'x', 'b': 'y'},
      '',
      "line 1 of .* has no text in column 'text' but a, b; write --column=a",
    ),
    ({'a': 1}, '', "line 1 of .* has no text in column 'text' but a; give another source"),
    ([1], '', 'line 1 of .* is no JSON object'),
  ],
)
def test_a_missing_json_column(tmp_path, row, column, message):
  path = tmp_path / 'a.jsonl'
  path.write_text(json.dumps(row))
  with pytest.raises(UserError, match=message):
    readers.file_span(str(path), column)


def test_bad_parquet(tmp_path):
  path = tmp_path / 'a.parquet'
  corpora.write_parquet(path, TEXTS, column='body')
  message = r"no text in column 'text' but id \(int64\), body; write --column=body"
  with pytest.raises(UserError, match=message):
    readers.file_span(str(path), 'text')
  span = readers.file_span(str(path), '')
  data = bytearray(path.read_bytes())
  data[4:200] = bytes(196)
  path.write_bytes(data)
  with pytest.raises(UserError, match='is no parquet file, or damaged'):
    read([span])
  path.write_bytes(data[:100])
  with pytest.raises(UserError, match='is no parquet file, or damaged'):
    readers.file_span(str(path), '')


def test_text_that_is_not_utf8_or_shrinks(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'abc\n\ndef\n\ncaf\xe9\n\n')
  span = readers.file_span(str(path), '')
  for spans in ([span], span.split(4)):
    with pytest.raises(UserError, match=r'not UTF-8 \(byte 13\)'):
      read(spans)
  path.write_bytes(b'abc')
  with pytest.raises(UserError, match='has become shorter'):
    read([span])


def test_a_bucket_reads_like_a_folder(tmp_path, monkeypatch):
  bucket = corpora.fake_bucket(monkeypatch)
  for name, texts in (('a.txt', TEXTS[:50]), ('b.txt', TEXTS[50:]), ('c.md', TEXTS)):
    corpora.write_text(tmp_path / name, texts)
    bucket.pipe(f'gs://bucket/books/{name}', (tmp_path / name).read_bytes())
  assert sources.load_documents('gs://bucket/books/*.txt').texts == TEXTS
  assert sources.load_documents('gs://bucket/books/a.txt').texts == TEXTS[:50]
  span = readers.file_span('gs://bucket/books/c.md', '')
  assert read(span.split(100)) == TEXTS
  with pytest.raises(UserError, match=r"no file matches the text 'gs://bucket/none/\*'"):
    sources.load_documents('gs://bucket/none/*')


@pytest.mark.parametrize(
  ('names', 'columns', 'message'),
  [
    (['text'], [pyarrow.nulls(2)], r"no text in column 'text' but text \(null\); give another"),
    (['id', 'text'], [[1, 2], [['a'], ['b']]], r'but id \(int64\), text \(list<element: string>\)'),
    (['text', 'text'], [['a', 'b'], ['c', 'd']], "has 2 columns 'text'; give all but one another"),
    (['hash', 'id'], [FIXED, [1, 2]], r'but hash, id \(int64\); write --column=hash'),
  ],
)
def test_a_parquet_column_that_holds_no_text_is_told_by_its_kind(tmp_path, names, columns, message):
  path = str(tmp_path / 'a.parquet')
  parquet.write_table(pyarrow.table([*map(pyarrow.array, columns)], names=names), path)
  with pytest.raises(UserError, match=message):
    readers.file_span(path, '')


@pytest.mark.parametrize(
  ('column', 'expected'), [(FIXED, ['abc', 'def']), (JSON, ['"a"', '"b"'])], ids=['fixed', 'json']
)
def test_parquet_text_of_rarer_kinds(tmp_path, column, expected):
  path = str(tmp_path / 'a.parquet')
  parquet.write_table(pyarrow.table([column], names=['text']), path)
  assert read([readers.file_span(path, '')]) == expected

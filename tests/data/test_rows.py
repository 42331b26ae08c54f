"""One reader of rows: every kind of file holds the same texts, and every bad row is named."""

import csv
import io
import json
import time

import corpora
import hypothesis
import hypothesis.strategies as st
import pyarrow
import pytest
from pyarrow import parquet

from armd_jax.data import readers, rows, sources, text_files
from armd_jax.errors import UserError
from armd_jax.evaluation import judging
from armd_jax.evaluation.texts import TEXTS, read_rows

# What cuts lines elsewhere, marks, quotes, and half a character that JSON can spell.
ODD = ['a\u2028b\x85c\x0cd', 'say "x", y\tz', '\ufeffq', 'naïve 東京 😀', 'x\x1ey', 'l1\nl2']


def as_csv(texts, delimiter=','):
  file = io.StringIO(newline='')
  csv.writer(file, delimiter=delimiter).writerows([['id', 'text'], *enumerate(texts)])
  return file.getvalue().encode()


def as_lines(texts, newline=b'\n'):
  found = [
    json.dumps({'id': i, 'text': text}, ensure_ascii=i % 2 == 0) for i, text in enumerate(texts)
  ]
  return newline.join(line.encode() for line in found)


def as_parquet(texts, kind=None):
  table = pyarrow.table({'id': list(range(len(texts))), 'text': pyarrow.array(texts, kind)})
  file = io.BytesIO()
  parquet.write_table(table, file, row_group_size=2)
  return file.getvalue()


KINDS = {
  'a.jsonl': as_lines,
  'a.JSONL': as_lines,
  'a.ndjson': lambda texts: as_lines(texts, b'\r\n'),
  'mark.jsonl': lambda texts: b'\xef\xbb\xbf' + as_lines(texts),
  'lines.json': as_lines,
  'rows.json': lambda texts: json.dumps([{'text': text} for text in texts], indent=1).encode(),
  'Texts.JSON': lambda texts: json.dumps({'texts': texts, 'steps': 3}).encode(),
  'a.csv': as_csv,
  'a.CSV': lambda texts: b'\xef\xbb\xbf' + as_csv(texts),
  'a.tsv': lambda texts: as_csv(texts, '\t'),
  'a.parquet': as_parquet,
  'large.parquet': lambda texts: as_parquet(texts, pyarrow.large_string()),
  'view.PARQUET': lambda texts: as_parquet(texts, pyarrow.string_view()),
  'bytes.parquet': lambda texts: as_parquet([text.encode() for text in texts]),
  'dictionary.parquet': lambda texts: as_parquet(
    pyarrow.array(texts * 2).dictionary_encode()[: len(texts)]
  ),
}


@pytest.mark.parametrize('name', KINDS)
def test_training_evaluation_and_judge_read_the_same(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(KINDS[name](ODD))
  assert sources.load_documents(str(path)).texts == ODD
  assert read_rows(TEXTS['lm1b'], str(path)) == ODD
  assert judging.read_texts(str(path)) == ODD
  span = readers.file_span(str(path))
  assert [row for piece in span.split(20) for row in piece.rows()] == ODD


@hypothesis.settings(derandomize=True, max_examples=60, deadline=None)
@hypothesis.given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=6))
def test_any_texts_come_back_from_every_kind(tmp_path_factory, texts):
  texts = [text.encode('utf-8', 'replace').decode() for text in texts]
  path = tmp_path_factory.getbasetemp()
  for name, write in KINDS.items():
    (path / name).write_bytes(write(texts))
    span = readers.file_span(str(path / name), '' if name == 'Texts.JSON' else 'text')
    assert [row for piece in span.split(5) for row in piece.rows()] == texts, name


def null_parquet(texts):
  return as_parquet([*texts, None, 'last'], pyarrow.string())


def invalid_parquet(texts, kind=None, data=b'\xed\xa0\x80'):
  binary = pyarrow.array([*(text.encode() for text in texts), data, b'last'])
  index = pyarrow.array(list(range(len(binary))), pyarrow.int32())
  if kind:
    values = pyarrow.Array.from_buffers(pyarrow.string(), len(binary), binary.buffers())
    return as_parquet(pyarrow.DictionaryArray.from_arrays(index, values))
  return as_parquet(
    pyarrow.Array.from_buffers(kind or pyarrow.string(), len(binary), binary.buffers())
  )


line = lambda data: lambda texts: as_lines(texts) + b'\n' + data + b'\n{"text": "last"}\n'
cell = lambda data: lambda texts: as_csv(texts) + data + b'\r\n9,last\r\n'
BAD = [
  ('null.jsonl', line(b'{"text": null}'), 'line 7 of'),
  ('none.jsonl', line(b'{"id": 7}'), 'line 7 of'),
  ('number.jsonl', line(b'{"text": 7}'), 'line 7 of'),
  ('broken.ndjson', line(b'{"text": "a'), 'line 7 of'),
  ('latin.jsonl', line(b'{"text": "caf\xe9"}'), 'line 7 of'),
  ('surrogate.jsonl', line(b'{"text": "\xed\xa0\x80"}'), 'line 7 of'),
  ('list.jsonl', line(b'["a"]'), 'line 7 of'),
  ('deep.jsonl', line(b'[' * 99_999), 'line 7 of'),
  ('null.json', line(b'{"text": null}'), 'line 7 of'),
  ('items.json', lambda t: json.dumps([*t, None, 'last']).encode(), 'item 7 of'),
  ('null.parquet', null_parquet, 'row 7 of'),
  ('surrogate.parquet', invalid_parquet, 'row 7 of'),
  ('latin.parquet', lambda t: invalid_parquet(t, data=b'caf\xe9'), 'row 7 of'),
  (
    'dictionary.parquet',
    lambda t: invalid_parquet(t, pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
    'row 7 of',
  ),
  ('latin.csv', cell(b'8,caf\xe9'), 'row 8 of'),
  ('surrogate.csv', cell(b'8,\xed\xa0\x80'), 'row 8 of'),
  ('short.csv', cell(b'8'), 'row 8 of'),
  ('long.csv', cell(b'8,a,b'), 'row 8 of'),
  ('quote.csv', cell(b'8,"a"b'), 'row 8 of'),
]


@pytest.mark.parametrize(('name', 'write', 'where'), BAD, ids=[name for name, *_ in BAD])
def test_a_bad_row_is_named_and_stops_or_is_left_out(tmp_path, capsys, name, write, where):
  path = tmp_path / name
  path.write_bytes(write(ODD))
  for span in (readers.file_span(str(path)), *readers.file_span(str(path)).split(10**9)):
    with pytest.raises(UserError, match=f'{where} .*{name}'):
      list(span.documents())
  for read in (lambda path: read_rows(TEXTS['lm1b'], path), judging.read_texts):
    with pytest.raises(UserError, match=f'{where} .*{name}'):
      read(str(path))
  with pytest.raises(UserError, match=f"{where} .*{name} .*bad_rows='skip'") as error:
    sources.load_documents(str(path))
  assert '\n' not in str(error.value)
  capsys.readouterr()
  assert sources.load_documents(str(path), 'skip').texts == [*ODD, 'last']
  told = capsys.readouterr().err
  assert told.count('warning: ') == 1 and f'{where} {path}' in told


@pytest.mark.parametrize('bad', [b'caf\xe9', b'\xed\xa0\x80', b'a\0b', 'ab'.encode('utf-16')])
@pytest.mark.parametrize('newline', [b'\n', b'\r\n', b'\r'])
@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_a_document_of_text_that_is_not_utf8(tmp_path, capsys, bad, newline, mark):
  path = tmp_path / 'a.txt'
  for gap, number in ((newline, 3), (newline * 2, 5)):
    path.write_bytes(mark + gap.join([b'one', b'two', bad, b'four']))
    span = readers.file_span(str(path))
    for pieces in ([span], span.split(1), span.split(9)):
      with pytest.raises(UserError, match=f'line {number} of .* is not UTF-8'):
        [list(piece.documents()) for piece in pieces]
      skip = rows.Skip()
      found = [text for piece in pieces for text in piece.documents(skip)]
      assert found == ['one', 'two', 'four'] and skip.count == 1
      assert f'line {number} of {path} is not UTF-8' in capsys.readouterr().err
  with pytest.raises(UserError, match=r'line .* is not UTF-8'):
    read_rows(TEXTS['lm1b'], str(path))


def test_rows_of_text_are_lines_whatever_ends_them(tmp_path):
  path = tmp_path / 'a.txt'
  for newline in ('\n', '\r\n', '\r'):
    path.write_bytes(('\ufeff = T = ' + newline * 2 + ' a\u2028b ' + newline).encode())
    assert read_rows(TEXTS['wikitext2'], str(path)) == [' = T = \n', '', ' a\u2028b \n']


@pytest.mark.parametrize('digits', ['d800', 'D800', 'Dc00', 'uDFFF'.removeprefix('u')])
def test_half_a_character_is_a_question_mark_however_it_is_spelt(tmp_path, digits):
  for name, text in (('a.jsonl', '{"text": "a\\u%sb"}'), ('b.json', '["a\\u%sb"]')):
    (tmp_path / name).write_text(text % digits)
    assert judging.read_texts(str(tmp_path / name)) == ['a?b']
    assert [*readers.file_span(str(tmp_path / name)).documents()] == ['a?b']


def test_skip_tells_the_first_and_counts_all(tmp_path, capsys):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n' + '{}\n' * 50)
  skip = rows.Skip()
  assert list(readers.file_span(str(tmp_path / 'a.jsonl')).rows(skip)) == ['a']
  told = capsys.readouterr().err.splitlines()
  assert skip.count == 50 and len(told) == skip.MOST_TOLD
  assert told[0].startswith('warning: line 2 of') and 'further ones' in told[-1]
  with pytest.raises(UserError, match="bad_rows is 'ignore'; write one of 'stop', 'skip'"):
    rows.on_bad('ignore')


@pytest.mark.parametrize(
  ('name', 'data', 'message'),
  [
    ('a.csv', b'one\ntwo\n', "has no text in column 'text' but one; write --column=one"),
    ('a.csv', b'text,text\na,b\n', "has 2 columns 'text'; give all but one another name"),
    ('a.csv', b'"a', 'row 1 of .* is no CSV'),
    ('a.csv', 'text,n\na,1\n'.encode('utf-16'), 'as UTF-16 has; convert it to UTF-8'),
    ('a.csv', 'text,n\na,1\n'.encode('utf-16-be'), 'as UTF-16 has; convert it to UTF-8'),
    ('a.csv', b'te\0xt,n\na,1\n', 'UTF-8.*, or remove them'),
    ('a.tsv', 'text\na\n'.encode('utf-16-le'), 'as UTF-16 has; convert it to UTF-8'),
    ('a.json', b'{"a": ', 'is no JSON'),
    ('a.json', b'7', 'holds no rows but a int'),
    ('a.json', b'[{"text": "a"}', r'is no JSON .*; repair it, or write one row a line'),
    ('a.csv', b'text,n\na,1\nb\n', 'row 3 of .* has 1 fields, not 2'),
    ('a.json', b'[[' * 99_999, 'nested too deeply'),
    ('a.tar.gz', b'\x1f\x8b', r'is a .tar file; unpack it'),
    ('a.txt.bz2', b'BZ', r'is a .bz2 file; unpack it'),
    ('A.ZIP', b'PK', r'is a .zip file; unpack it'),
  ],
)
def test_files_that_are_no_rows(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=message):
    sources.load_documents(str(tmp_path / name))


def test_an_empty_file_of_any_kind_is_empty(tmp_path):
  for name in ('a.txt', 'a.jsonl', 'a.json', 'a.csv', 'a.tsv'):
    (tmp_path / name).write_text('')
    assert list(readers.file_span(str(tmp_path / name)).rows()) == []


def test_null_in_the_first_row_does_not_choose_another_column(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"title": "t", "text": null}\n{"title": "u", "text": "x"}')
  with pytest.raises(UserError, match=r'line 1 of .* but null there'):
    sources.load_documents(str(tmp_path / 'a.jsonl'))
  # Another column may be absent from some rows, the first one too.
  (tmp_path / 'a.jsonl').write_text('{"a": 1}\n{"body": "x"}\n{"body": "y"}')
  skip = rows.Skip()
  assert [*readers.file_span(str(tmp_path / 'a.jsonl'), 'body').rows(skip)] == ['x', 'y']


def test_csv_fields_may_be_long_and_the_module_keeps_its_limit(tmp_path):
  before = csv.field_size_limit()
  (tmp_path / 'a.csv').write_bytes(as_csv(['x' * 300_000, 'line\r\nanother', '']))
  assert [*readers.file_span(str(tmp_path / 'a.csv')).rows()] == [
    'x' * 300_000,
    'line\r\nanother',
    '',
  ]
  assert csv.field_size_limit() == before


def test_a_nested_column_before_the_text(tmp_path):
  table = pyarrow.table({'meta': [{'a': 1, 'b': 2}] * 2, 'text': ['x' * 1000, 'y'], 'z': [1, 2]})
  parquet.write_table(table, tmp_path / 'a.parquet')
  span = readers.file_span(str(tmp_path / 'a.parquet'))
  assert list(span.rows()) == ['x' * 1000, 'y'] and span.num_bytes > 1000


@pytest.mark.parametrize('data', [b'x', b' ', b'\n ', b'\r', b'\r\n', b'x\ny \t'])
def test_looking_for_borders_takes_time_in_proportion(tmp_path, data):
  """Of a file with no border at all, or blanks alone after half a one; once it was the square."""
  path, head = tmp_path / 'a.txt', b'\n' if data == b' ' else b''

  def seconds(size):
    path.write_bytes((head + data * (size // len(data)))[:size])
    begin = time.process_time()
    span = readers.file_span(str(path))
    span.split(1 << 20)
    rows.cuts(str(path), 0, size, 1 << 20, text_files._BLANK_LINE)
    return time.process_time() - begin

  small = min(seconds(8 << 20) for _ in range(2))
  assert seconds(32 << 20) < 10 * small + 0.1  # 4 times as much; the square would be 16 times


def test_a_pipe_is_told_and_not_waited_for(tmp_path):
  import os

  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(UserError, match='is a pipe or a device; write it to a file first'):
    sources.load_documents(str(tmp_path / 'pipe'))


def test_corpora_of_several_kinds_are_described(tmp_path):
  corpora.write_jsonl(tmp_path / 'a.jsonl', ['a', 'b'])
  (tmp_path / 'b.json').write_text('["c"]')
  (tmp_path / 'c.txt').write_text('d\n\ne')
  found = sources.load_documents(f'{tmp_path}/*')
  assert found.texts == ['a', 'b', 'c', 'd', 'e']
  for rule in ("column 'text'", 'one document an item', 'separated by blank lines'):
    assert rule in found.description


def test_a_table_that_changes_while_it_is_read(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('text,n\na,1\n')
  span = readers.file_span(str(path))
  assert list(span.rows()) == ['a']
  path.write_text('body,n\na,1\n')
  with pytest.raises(UserError, match='has changed; leave it as it is while it is read'):
    list(span.rows())

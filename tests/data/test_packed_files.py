"""Compressed files are the text that is in them, however they are cut, and bad ones a sentence."""

import gzip
import random

import corpora
import pyarrow
import pytest
from data.test_readers import assert_same_however_cut

from armd_jax.data import packed_files, prepare, readers, rows, sources
from armd_jax.errors import UserError

TEXTS = corpora.documents(100)


def packed(path, end):
  """The file, compressed in two pieces one after the other, as tools that append do."""
  data, target = path.read_bytes(), path.with_name(path.name + end)
  halves = data[: len(data) // 2], data[len(data) // 2 :]
  pack = (
    gzip.compress if end == '.gz' else lambda half: pyarrow.compress(half, 'zstd', asbytes=True)
  )
  target.write_bytes(b''.join(map(pack, halves)))
  path.unlink()
  return str(target)


@pytest.mark.parametrize('end', ['.gz', '.zst'])
@pytest.mark.parametrize(
  ('write', 'name'), [(corpora.write_text, 'a.txt'), (corpora.write_jsonl, 'a.jsonl')]
)
def test_a_compressed_file_is_its_text(tmp_path, write, name, end):
  write(tmp_path / name, TEXTS)
  assert_same_however_cut(readers.file_span(packed(tmp_path / name, end)), TEXTS)


def test_tables_and_json_may_be_compressed_too(tmp_path):
  (tmp_path / 'a.csv').write_text('text\nx\ny\n')
  (tmp_path / 'b.json').write_text('["u", "v"]')
  (tmp_path / 'C.TSV').write_text('id\ttext\n1\tw\n')
  for name, expected in (('a.csv', ['x', 'y']), ('b.json', ['u', 'v']), ('C.TSV', ['w'])):
    span = readers.file_span(packed(tmp_path / name, '.zst'))
    assert list(span.documents()) == expected


@pytest.mark.parametrize('end', ['.gz', '.zst'])
def test_any_piece_is_read_from_anywhere(tmp_path, end):
  path, data = tmp_path / 'a.txt', random.Random(0).randbytes(3_000_000)
  path.write_bytes(data)
  name = packed(path, end)
  for begin in (2_999_000, 0, 1_500_000, 1_600_000, 5):
    assert rows.read(name, begin, begin + 1000) == data[begin : begin + 1000]
  with rows.open_file(name) as file:
    assert rows.size_of(file) == len(data) and file.read() == data
  with pytest.raises(UserError, match='has become shorter'):
    rows.read(name, len(data) - 5, len(data) + 5)


def test_pieces_in_order_are_unpacked_once(tmp_path, monkeypatch):
  corpora.write_jsonl(tmp_path / 'a.jsonl', TEXTS)
  span = readers.file_span(packed(tmp_path / 'a.jsonl', '.gz'))
  pieces = span.split(500)
  begun = []
  begin = packed_files.Unpacked._begin
  monkeypatch.setattr(packed_files.Unpacked, '_begin', lambda self: begun.append(begin(self)))
  assert [text for piece in pieces for text in piece.documents()] == TEXTS
  assert len(begun) == 1 and len(pieces) > 5


def test_a_corpus_is_the_same_compressed_or_not(tmp_path):
  write = lambda: corpora.write_jsonl(tmp_path / 'a.jsonl', TEXTS)
  plain = prepare.prepare(write(), 'bytes', str(tmp_path / 'plain'), held_out=0.2, part_bytes=2000)
  name = packed(tmp_path / 'a.jsonl', '.zst')
  found = prepare.prepare(name, 'bytes', str(tmp_path / 'packed'), held_out=0.2, part_bytes=2000)
  assert found['text_sha256'] == plain['text_sha256'] and found['shards'] == plain['shards']
  assert len(found['shards']['train']) > 3
  assert prepare.prepare(name, 'bytes', str(tmp_path / 'plain'), held_out=0.2, part_bytes=2000)


@pytest.mark.parametrize('end', ['.gz', '.zst'])
def test_a_damaged_file_is_a_sentence(tmp_path, end):
  path = tmp_path / 'a.txt'
  for damage in (lambda data: data[:-20], lambda data: b'no such file', lambda data: data[:2]):
    path.write_bytes(random.Random(0).randbytes(100_000))
    name = packed(path, end)
    whole = (tmp_path / f'a.txt{end}').read_bytes()
    (tmp_path / f'a.txt{end}').write_bytes(damage(whole))
    with pytest.raises(UserError, match=r'file, or damaged \(.*\); get it anew'):
      sources.load_documents(name)


@pytest.mark.parametrize('name', ['a.parquet.gz', 'a.txt.gz.zst'])
def test_what_cannot_be_read_in_pieces_is_a_sentence(tmp_path, name):
  (tmp_path / name).write_bytes(b'x')
  with pytest.raises(
    UserError, match='compressed twice, which cannot be read in pieces; unpack it'
  ):
    sources.load_documents(str(tmp_path / name))

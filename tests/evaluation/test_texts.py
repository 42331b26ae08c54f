"""Rows of evaluation texts, from every kind of file that they come in."""

import corpora
import pytest

from armd_jax.errors import UserError
from armd_jax.evaluation.texts import TEXTS, read_rows

LINES = [' = Title = \n', '', ' First line \u2028 goes on . \n', '', ' Last \n']


def test_wikitext_keeps_newlines_and_blank_rows(tmp_path):
  """As its data set has it, whether it comes as lines or as parquet."""
  path = tmp_path / 'wiki.test.raw'
  path.write_text(''.join(line or ' \n' for line in LINES), 'utf-8')
  assert read_rows(TEXTS['wikitext2'], str(path)) == LINES
  parquet = corpora.write_parquet(tmp_path / 'wiki.parquet', LINES)
  assert read_rows(TEXTS['wikitext103'], parquet) == LINES


def test_sentences_lose_newlines_and_blank_rows(tmp_path):
  path = tmp_path / 'ptb.test.txt'
  path.write_text(' one two \n\nthree\n', 'utf-8')
  assert read_rows(TEXTS['ptb'], str(path)) == [' one two ', 'three']


@pytest.mark.parametrize(
  ('name', 'line', 'expected'),
  [
    ('lambada', '{"text": "a b"}', 'a b'),
    ('lambada', '{"context": "a", "continuation": "b"}', 'a b'),
    ('ag_news', '{"title": "T", "description": "d", "label": 1}', 'T d'),
    ('ptb', '{"sentence": "s"}', 's'),
  ],
)
def test_columns(tmp_path, name, line, expected):
  path = tmp_path / 'rows.jsonl'
  path.write_text(f'{line}\n{line}\n')
  assert read_rows(TEXTS[name], str(path)) == [expected, expected]


@pytest.mark.parametrize(
  ('file', 'content', 'sentence'),
  [
    ('absent.txt', None, 'absent.txt. cannot be read .* check its name'),
    ('empty.txt', b'\n \n', 'holds no rows of LAMBADA; give another file'),
    ('latin.txt', b'caf\xe9', 'line 1 of .* is not UTF-8'),
    ('bad.jsonl', b'{"text": ', 'line 1 of .* is no JSON'),
    ('other.jsonl', b'{"body": "x"}', 'has the columns body, but LAMBADA is read from text or'),
    (
      'hole.jsonl',
      b'{"text": "x"}\n{"text": null}',
      'line 2 of .* has no text in column .text. but null',
    ),
    ('bad.parquet', b'PAR1', 'is no parquet file'),
  ],
)
def test_bad_files(tmp_path, file, content, sentence):
  if content is not None:
    (tmp_path / file).write_bytes(content)
  with pytest.raises(UserError, match=sentence):
    read_rows(TEXTS['lambada'], str(tmp_path / file))


def test_sets_of_tensorflow_datasets_hold_the_same_rows(tmp_path):
  """Columns are those of its own sets; news that lack a title keep their body."""
  lines = [f'row {i}' for i in range(20)]
  corpora.write_tfds(tmp_path, 'lambada', {'test': lines}, ('passage',))
  corpora.write_tfds(tmp_path, 'lm1b', {'train': ['x'], 'test': lines}, ('text',), '1.1.0')
  news = [{'title': line[: i % 5], 'description': line} for i, line in enumerate(lines)]
  corpora.write_tfds(tmp_path, 'ag_news_subset', {'test': news}, ('title', 'description'))
  with corpora.tfds_in(tmp_path):
    for name in ('lambada', 'lm1b'):
      assert sorted(read_rows(TEXTS[name], f'tfds:{TEXTS[name].tfds}#test')) == sorted(lines)
    found = read_rows(TEXTS['ag_news'], 'tfds:ag_news_subset#test')
  assert sorted(found) == sorted(f'{item["title"]} {item["description"]}' for item in news)


@corpora.needs_shared
def test_real_files():
  folder = corpora.SHARED / 'eval'
  counts = {
    'wikitext2': ('wikitext2_raw_test.txt', 2891),
    'lm1b': ('lm1b_subset.txt', 12216),
    'lambada': ('lambada_openai_test.jsonl', 5153),
  }
  for name, (file, count) in counts.items():
    assert len(read_rows(TEXTS[name], str(folder / file))) == count

"""The judge's program: what it reads, and how it refuses."""

import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from armd_jax import judge
from armd_jax.data import sources
from armd_jax.errors import UserError
from armd_jax.evaluation import infilling, judging, texts


class Letters:
  """A judge whose tokens are letters, and whose features are the last one's number."""

  name, context = 'letters', 8

  def encode(self, text):
    if '!' in text:
      raise UserError('no token for !; take another judge')
    return np.array([*map(ord, text)], int)

  def nats(self, windows):
    return [np.ones(len(ids_T) - 1) for ids_T in windows]

  def features(self, windows):
    return np.array([[ids_T[-1]] for ids_T in windows])


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('s.json', '{"texts": ["a b", "c"], "steps": 3}'),
    ('s.jsonl', '{"text": "a b"}\n{"text": "c"}\n'),
    ('s.NDJSON', '{"text": "a b"}\r\n{"text": "c"}'),
    ('s.json', '["a b", "c"]'),
    ('s.csv', 'text\na b\nc\n'),
    ('s.txt', 'a b\n\nc'),
  ],
)
def test_reads_what_sample_and_others_write(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  assert judging.read_texts(str(tmp_path / name)) == ['a b', 'c']


def test_junctions_are_those_of_the_texts(tmp_path):
  path = tmp_path / 's.json'
  read = lambda: judging.read_junctions(str(path), ['a b', 'c'])
  for content, expected in (
    ('{"texts": ["a b", "c"], "junctions": [[1, 3], []]}', [[1, 3], []]),
    ('{"texts": ["a b", "c"]}', []),
    ('["a b", "c"]', []),
  ):
    path.write_text(content)
    assert read() == expected
  (tmp_path / 's.jsonl').write_text('{"text": "a"}\n')
  assert judging.read_junctions(str(tmp_path / 's.jsonl'), ['a']) == []
  path.write_text('{"text": "a b"}\n{"text": "c"}\n')
  assert judging.read_texts(str(path)) == ['a b', 'c'] and read() == []
  for junctions in (
    '[[1]]',
    '[[4], []]',
    '[[-1], []]',
    '[[1], "c"]',
    '{}',
    '[[1.5], []]',
    '[[true], []]',
  ):
    path.write_text(f'{{"texts": ["a b", "c"], "junctions": {junctions}}}')
    with pytest.raises(UserError, match=r's.json .*; generate the texts again'):
      read()


def test_a_pipe_is_refused_by_all_that_read_texts(tmp_path):
  pipe = str(tmp_path / 'pipe')
  os.mkfifo(pipe)
  for read in (
    lambda: judging.read_texts(pipe),
    lambda: texts.read_rows(texts.named('mine'), pipe),
    lambda: infilling.read(pipe),
    lambda: sources.load_documents(pipe),
  ):
    with pytest.raises(UserError, match='is a pipe or a device; write it to a file first'):
      read()


def test_an_empty_sample_is_one(tmp_path):
  (tmp_path / 's.jsonl').write_text('{"text": "a\u2028b"}\n{"text": ""}\n', 'utf-8')
  assert judging.read_texts(str(tmp_path / 's.jsonl')) == ['a\u2028b', '']


@pytest.mark.parametrize(
  ('name', 'content', 'sentence'),
  [
    ('absent.json', None, 'cannot be read'),
    ('s.json', '{"texts": ', 's.json is no JSON'),
    ('s.json', '{"body": 1}', 'holds no texts; give what sample --json wrote'),
    ('s.json', '{"texts": []}', 'generate some'),
    ('s.json', '{"texts": [1]}', 'item 1 of .* is no text but a int'),
    ('s.json', '{"texts": ["a", 1]}', 'item 2 of .* is no text but a int'),
    ('s.jsonl', '{"text": "a"}\n{"text": null}', 'line 2 of .* has no text'),
    ('s.jsonl', '{"body": "x"}', 'holds no texts'),
  ],
)
def test_bad_samples(tmp_path, name, content, sentence):
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=sentence):
    judging.read_texts(str(tmp_path / name))


def test_a_judge_that_is_not_there_is_one_sentence(tmp_path):
  (tmp_path / 's.json').write_text('{"texts": ["a b"]}')
  options = {'samples': str(tmp_path / 's.json'), 'judge': 'absent', 'tokenizer': 'bytes'}
  with pytest.raises(UserError, match=r"^no judge is at 'absent'"):
    judge.main(judge.Options(**options))
  flags = [f'--{name}={value}' for name, value in options.items()]
  command = [sys.executable, '-m', 'armd_jax.judge', *flags]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: no judge is at 'absent'")


def test_texts_that_a_judge_cannot_score(tmp_path, monkeypatch):
  one_token = types.SimpleNamespace(name='a judge', context=8, encode=lambda text: np.zeros(1, int))
  monkeypatch.setattr(judging, 'open_judge', lambda path: one_token)
  (tmp_path / 's.json').write_text('{"texts": ["a b", "c"]}')
  options = judge.Options(samples=str(tmp_path / 's.json'), judge='x', tokenizer='bytes')
  with pytest.raises(UserError, match=r's.json: no text has two tokens.*; generate longer texts'):
    judge.main(options)


def test_mauve_needs_its_package_and_two_texts(monkeypatch):
  monkeypatch.setitem(sys.modules, 'mauve', None)
  with pytest.raises(UserError, match='MAUVE needs mauve; pip install mauve-text'):
    judging.mauve_score(Letters(), ['a', 'b'], ['a', 'b'])
  monkeypatch.setitem(sys.modules, 'mauve', types.ModuleType('mauve'))
  for references in (['a'], ['a', '', '']):
    with pytest.raises(UserError, match='two texts and two references that are not empty; give'):
      judging.mauve_score(Letters(), ['a', 'b'], references)


def test_mauve_leaves_empty_texts_out_of_both_sides_and_says_so(monkeypatch):
  """A sample that begins with EOS is one."""
  compared = []
  module = types.ModuleType('mauve')
  module.compute_mauve = lambda *rows, **_: (
    compared.extend(rows_BxE.tolist() for rows_BxE in rows) or types.SimpleNamespace(mauve=0.5)
  )
  monkeypatch.setitem(sys.modules, 'mauve', module)
  found = judging.mauve_score(Letters(), ['ab', '', 'c'], ['', 'd', '', 'ef'])
  assert compared == [[[98], [99]], [[100], [102]]]
  assert (found.score, found.left_out, found.left_out_references) == (0.5, 1, 2)


def test_the_program_says_how_many_texts_it_leaves_out(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(judging, 'open_judge', lambda path: Letters())
  (tmp_path / 's.json').write_text('{"texts": ["ab", "", "c"], "junctions": [[1], [], []]}')
  out = tmp_path / 'out.json'
  judge.main(
    judge.Options(samples=str(tmp_path / 's.json'), judge='x', tokenizer='bytes', json=str(out))
  )
  text = capsys.readouterr().out
  assert 'bits; texts without a token, left out: 1\n' in text
  assert '1 tokens scored; texts of less than two tokens, left out: 2\n' in text
  assert '1 junctions of streams, - elsewhere' in text  # both letters are near one
  numbers = json.loads(out.read_text(), parse_constant=pytest.fail)
  assert numbers['verdict']['left_out'] == 2 and numbers['statistics']['left_out'] == 1
  assert numbers['verdict']['junctions']['elsewhere'] is None


def test_a_sentence_about_the_texts_is_not_told_as_another(tmp_path, monkeypatch):
  """UserError is a ValueError, of which this program makes a sentence on texts too short."""
  monkeypatch.setattr(judging, 'open_judge', lambda path: Letters())
  (tmp_path / 's.json').write_text('{"texts": ["ab", "c"], "junctions": [[9], []]}')
  options = judge.Options(samples=str(tmp_path / 's.json'), judge='x', tokenizer='bytes')
  with pytest.raises(UserError, match=r'^the junctions in .* its texts; generate the texts again$'):
    judge.main(options)
  (tmp_path / 's.json').write_text('{"texts": ["ab", "!"]}')
  with pytest.raises(UserError, match=r'^no token for !; take another judge$'):
    judge.main(options)

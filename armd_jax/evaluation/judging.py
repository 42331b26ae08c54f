"""Judges of generated texts, the files that hold such texts, and a judge's numbers as text."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence

from armd_jax.errors import UserError
from armd_jax.evaluation import quality
from armd_jax.evaluation.gpt2_judge import Gpt2Judge
from armd_jax.evaluation.huggingface_judge import HuggingFaceJudge
from armd_jax.models import gpt2


def read_texts(path: str) -> list[str]:
  """Texts of a file: JSON with a list 'texts', JSON lines with a 'text' each.

  Raises:
    UserError: the file cannot be read, or holds no texts.
  """
  try:
    data = pathlib.Path(path).read_text('utf-8')
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, 'strerror', None) or 'not UTF-8'
    raise UserError(f'{path} cannot be read ({reason}); give a file of texts') from error
  try:
    if path.endswith('.jsonl'):
      texts = [json.loads(line)['text'] for line in data.splitlines() if line.strip()]
    else:
      texts = json.loads(data)['texts']
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} holds no texts; give what sample --json wrote, or .jsonl with a text a line'
    ) from error
  if not texts or not all(isinstance(text, str) for text in texts):
    raise UserError(f'{path} holds no texts, or what is not text; generate some')
  return texts


def open_judge(path: str) -> quality.Judge:
  """GPT-2 runs in JAX, any other model of Hugging Face in transformers.

  Raises:
    UserError: no judge is there, or what it needs is not installed.
  """
  return Gpt2Judge(path) if gpt2.is_gpt2(path) else HuggingFaceJudge(path)


def mauve_score(judge: quality.Judge, texts: Sequence[str], references: Sequence[str]) -> float:
  """MAUVE (Pillutla et al. 2021) of texts against others, by the judge's last hidden rows.

  Raises:
    UserError: its package is missing, or there are fewer than two texts on a side.
  """
  try:
    import mauve
  except ImportError as error:
    raise UserError(f'MAUVE needs {error.name}; pip install "armd_jax[judge]"') from error
  if min(len(texts), len(references)) < 2:
    raise UserError('MAUVE needs at least two texts and two references; give more')
  rows = [
    judge.features([judge.encode(text)[: judge.context] for text in side])
    for side in (texts, references)
  ]
  # Its random projections and k-means follow numpy's global state unless seeded.
  return float(mauve.compute_mauve(*rows, verbose=False, seed=0).mauve)


def table(
  statistics: quality.Statistics, verdict: quality.Verdict, judge: str, mauve: float | None
) -> str:
  """The numbers as text."""
  lines = [
    ('entropy', f'{statistics.entropy_nats:.3f} nats, {statistics.entropy_bits:.3f} bits'),
    (
      'distinct-1, 2, 3',
      f'{statistics.distinct_1:.4f}, {statistics.distinct_2:.4f}, {statistics.distinct_3:.4f}',
    ),
    ('repetition-4', f'{statistics.repetition_4:.4f}'),
    (
      f'perplexity under {judge}',
      f'{verdict.corpus_perplexity:.2f} over all texts, {verdict.mean_perplexity:.2f} mean over '
      f'texts, {verdict.tokens} tokens scored',
    ),
  ]
  if mauve is not None:
    lines.append((f'MAUVE under {judge}', f'{mauve:.4f}'))
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)

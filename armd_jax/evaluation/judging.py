"""Judges of generated texts, the files that hold such texts, and a judge's numbers as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from armd_jax.data import readers, table_files
from armd_jax.errors import UserError
from armd_jax.evaluation import quality
from armd_jax.evaluation.gpt2_judge import Gpt2Judge
from armd_jax.evaluation.huggingface_judge import HuggingFaceJudge
from armd_jax.files import paths, whole
from armd_jax.models import gpt2


def read_texts(path: str) -> list[str]:
  """Texts of a file, empty ones too: what `sample --json` wrote, or any file of `data.readers`.

  Raises:
    UserError: the file cannot be read, has a row that is no text, or holds no texts.
  """
  texts = list(readers.rows_span(path, _text_column).rows())
  if not any(texts):
    raise UserError(f'{path} holds no texts; generate some')
  return texts


def read_junctions(path: str, texts: Sequence[str]) -> list[list[int]]:
  """Characters before each further stream of a text, which `sample --json` writes beside the texts.

  Args:
    path: any file of texts.
    texts: of it.
  Returns:
    By text; nothing if the file does not have them.
  Raises:
    UserError: they are not those of the texts.
  """
  span = readers.rows_span(path, _text_column)
  if not path.lower().endswith('.json') or not isinstance(span, table_files.JsonDocumentSpan):
    return []  # of lines of JSON, too
  fix = 'generate the texts again'
  found = whole.read_json(paths.readable(path, '--samples'), None, fix)
  if not isinstance(found, dict) or 'junctions' not in found:
    return []
  try:
    whole.check_form(found['junctions'], [[int]], 'junctions')
  except ValueError as error:
    raise UserError(f'{path} {error}; {fix}') from None
  junctions = found['junctions']
  fits = len(junctions) == len(texts) and all(
    0 <= junction <= len(text)
    for text, of_text in zip(texts, junctions, strict=True)
    for junction in of_text
  )
  if not fits:
    raise UserError(f'the junctions in {path} are not those of its texts; {fix}')
  return junctions


def _text_column(texts: list[str], _, where: str) -> tuple[str, ...]:
  if 'text' not in texts:
    raise UserError(
      f'{where} holds no texts; give what sample --json wrote, or .jsonl with a text a line'
    )
  return ('text',)


def open_judge(path: str) -> quality.Judge:
  """GPT-2 runs in JAX, any other model of Hugging Face in transformers.

  Raises:
    UserError: no judge is there, or what it needs is not installed.
  """
  return Gpt2Judge(path) if gpt2.is_gpt2(path) else HuggingFaceJudge(path)


@dataclasses.dataclass(frozen=True)
class Mauve:
  """MAUVE of texts against others.

  Attributes:
    score: 0 to 1.
    left_out, left_out_references: texts of each side that have no token of the judge.
  """

  score: float
  left_out: int
  left_out_references: int


def mauve_score(judge: quality.Judge, texts: Sequence[str], references: Sequence[str]) -> Mauve:
  """MAUVE (Pillutla et al. 2021) of texts against others, by the judge's last hidden rows; texts
  without a token have none, and are left out.

  Raises:
    UserError: its package is missing, or there are fewer than two texts on a side.
  """
  try:
    import mauve
  except ImportError as error:
    raise UserError(f'MAUVE needs {error.name}; pip install mauve-text') from error
  sides = [
    [ids_T[: judge.context] for ids_T in map(judge.encode, side) if len(ids_T)]
    for side in (texts, references)
  ]
  if min(map(len, sides)) < 2:
    raise UserError(
      'MAUVE needs at least two texts and two references that are not empty; give more'
    )
  rows = [judge.features(windows) for windows in sides]
  # Its random projections and k-means follow numpy's global state unless seeded.
  score = float(mauve.compute_mauve(*rows, verbose=False, seed=0).mauve)
  left_out = [len(side) - len(kept) for side, kept in zip((texts, references), sides, strict=True)]
  return Mauve(score, *left_out)


def table(
  statistics: quality.Statistics, verdict: quality.Verdict, judge: str, mauve: Mauve | None
) -> str:
  """The numbers as text, with how many texts each leaves out."""
  without = lambda count, what: f'; {what}, left out: {count}' if count else ''
  left_out = without(statistics.left_out, 'texts without a token')
  lines = [
    (
      'entropy',
      f'{statistics.entropy_nats:.3f} nats, {statistics.entropy_bits:.3f} bits{left_out}',
    ),
    (
      'distinct-1, 2, 3',
      f'{statistics.distinct_1:.4f}, {statistics.distinct_2:.4f}, {statistics.distinct_3:.4f}',
    ),
    ('repetition-4', f'{statistics.repetition_4:.4f}'),
    (
      f'perplexity under {judge}',
      f'{verdict.corpus_perplexity:.2f} over all texts, {verdict.mean_perplexity:.2f} mean over '
      f'texts, {verdict.tokens} tokens scored'
      + without(verdict.left_out, 'texts of less than two tokens'),
    ),
  ]
  number = lambda perplexity: '-' if perplexity is None else f'{perplexity:.2f}'
  if at := verdict.junctions:
    lines.append(
      (
        'near junctions',
        f'perplexity {number(at.perplexity)} in {at.width} tokens over each of {at.count} '
        f'junctions of streams, {number(at.elsewhere)} elsewhere',
      )
    )
  if mauve is not None:
    left_out = without(mauve.left_out, 'texts without a token')
    left_out += without(mauve.left_out_references, 'references without a token')
    lines.append((f'MAUVE under {judge}', f'{mauve.score:.4f}{left_out}'))
  width = max(len(name) for name, _ in lines)
  return '\n'.join(f'{name:{width}}  {value}' for name, value in lines)

"""Missing sentences of short stories: the nats of the true ones, and ROUGE of generated ones.

Stories of five sentences (ROCStories) lose the third, or the three in the middle. An order around
given tokens predicts what is missing from both sides: the log-likelihood of the true sentences is
exact, in one pass. Of a diffusion baseline it is bounded. What the model writes in their place is
compared with them by ROUGE. The gap has as many tokens as the true sentences have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from armd_jax import families
from armd_jax.config import ModelConfig
from armd_jax.config_rules import check_streams
from armd_jax.data import documents, readers
from armd_jax.data.rows import Apart, Parts
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood, texts
from armd_jax.evaluation.scores import Score, ScoredWindows

SENTENCES = 5
COLUMNS = tuple(f'sentence{number}' for number in range(1, SENTENCES + 1))
GAPS = {'sentence 3 of 5': slice(2, 3), 'sentences 2 to 4 of 5': slice(1, 4)}
MEASURES = ('rouge1', 'rouge2', 'rougeL')

DESCRIBED = (
  'protocol infilling: the true sentences given those around them; ROUGE (F, as rouge-score '
  'has it without stemming) of the likeliest tokens in their place, as many as the true ones'
)


def read(source: str) -> list[tuple[str, ...]]:
  """The sentences of every story.

  Args:
    source: JSON, CSV or parquet with columns sentence1 to sentence5, or text, in which a story is a
      line with tabs between its sentences, or five lines, with a blank line before the next.
  Raises:
    UserError: it cannot be read, or a story has another number of sentences.
  """
  found = []
  rows = readers.rows_span(source, _choose).rows(texts.stop)
  for number, row in enumerate((row for row in rows if row.strip()), 1):
    if isinstance(row, Parts):
      sentences = row.parts
    else:
      sentences = tuple(row.strip('\n').split('\t' if '\t' in row else '\n'))
    if len(sentences) != SENTENCES or not all(one.strip() for one in sentences):
      raise UserError(
        f'story {number} of {source} has {sum(bool(one.strip()) for one in sentences)} sentences, '
        f'not {SENTENCES}; write them with tabs between them, or in columns {COLUMNS[0]} to '
        f'{COLUMNS[-1]}'
      )
    found.append(tuple(one.strip() for one in sentences))
  if not found:
    raise UserError(f'{source!r} holds no stories; give another file')
  return found


def _choose(_: list[str], there: list[str], where: str) -> Apart:
  if not set(COLUMNS) <= set(there):
    raise UserError(
      f'{where} has the columns {", ".join(there) or "(none)"}, but stories are read from '
      f'{", ".join(COLUMNS)}; rename them'
    )
  return Apart(COLUMNS)


def windows(
  stories: Sequence[Sequence[str]],
  gap: slice,
  tokenizer: Tokenizer,
  config: ModelConfig,
  *,
  right: bool = True,
) -> np.ndarray:
  """A window for each story: what is missing is scored, all else given.

  Args:
    stories: of `read`.
    gap: which sentences are missing.
    tokenizer: gives the ids, of each side and of the gap for itself.
    config: of the model.
    right: whether what follows the gap is there.
  Returns:
    int32 [W, N] with the marks of `documents`.
  Raises:
    UserError: a story is longer than the model.
  """
  encode = lambda text: tokenizer.encode(text).astype(np.int32)
  rows = []
  for number, story in enumerate(stories, 1):
    before, missing, after = (
      encode(' '.join(story[: gap.start])),
      encode(' ' + ' '.join(story[gap])),
      encode(' ' + ' '.join(story[gap.stop :])),
    )
    row = np.concatenate([~before, missing, ~after] if right else [~before, missing])
    if len(before) + len(missing) + len(after) > config.num_slots:
      raise UserError(
        f'story {number} has {len(before) + len(missing) + len(after)} tokens but the model takes '
        f'{config.num_slots}; leave it out, or take a longer model'
      )
    # As where texts are generated, EOS is in the place of a first token that is not predicted.
    first = np.full(config.length - config.num_slots, ~np.int32(tokenizer.eos_id))
    rows.append(documents.window(np.concatenate([first, row]), config.length))
  return np.stack(rows)


def parts(
  stories: Sequence[Sequence[str]],
  streams: Sequence[int],
  tokenizer: Tokenizer,
  config: ModelConfig,
) -> list[ScoredWindows]:
  """What is scored and written: each gap from its left side alone, then from both sides, if the
  model can; along orders with S streams, one and those of --streams.

  Raises:
    UserError: an S is more than the tokens, or a story is too long.
  """
  named = dataclasses.replace
  for count in streams:
    check_streams(count, config.num_slots, '--streams')
  if config.orders == 'none':
    left = named(likelihood.DENOISING, name='left side alone')
    both = [named(likelihood.DENOISING, name='both sides')]
  else:
    left = named(likelihood.LEFT_TO_RIGHT, name='left side alone')
    both = [named(likelihood.LEFT_TO_RIGHT, name='both sides, S=1')]
    for count in streams:
      if count > 1:
        parallel, _ = likelihood.strided_protocols(count)
        both.append(named(parallel, name=f'both sides, S={count}'))
  found = []
  for title, gap in GAPS.items():
    of_side = lambda right, gap=gap: windows(stories, gap, tokenizer, config, right=right)
    found.append(ScoredWindows(left, of_side(False), title))
    if families.of(config).infills:
      found += [ScoredWindows(protocol, of_side(True), title) for protocol in both]
  return found


def check_rouge() -> None:
  """Refuses to begin where ROUGE cannot be measured.

  Raises:
    UserError: rouge-score is not installed.
  """
  try:
    import rouge_score  # noqa: F401
  except ImportError:
    raise UserError(
      'the infilling suite measures ROUGE by rouge-score; pip install rouge-score'
    ) from None


def rows(
  found: Sequence[Score],
  of_parts: Sequence[ScoredWindows],
  decoder: Decoder,
  *,
  batch_size: int,
) -> list[dict[str, Any]]:
  """Scores of `parts`, with ROUGE of what is written, and `nats_per_gap`.

  Args:
    found: a score of each part.
    of_parts: of `parts`.
    decoder: of the model that was scored.
    batch_size: stories at a time.
  """
  made = []
  for score, part in zip(found, of_parts, strict=True):
    written, true = fill(part, decoder, batch_size)
    gap = score.nats_per_token * score.tokens / len(part.windows_WxN)
    made.append(score.row() | {'nats_per_gap': gap} | rouge(written, true))
  return made


def fill(part: ScoredWindows, decoder: Decoder, batch_size: int) -> tuple[list[str], list[str]]:
  """The likeliest tokens in all gaps, as texts, and the true ones."""
  slots = decoder.model.config.num_slots
  generate = families.of(decoder.model.config).generate
  written: list[str] = []
  true: list[str] = []
  for first in range(0, len(part.windows_WxN), batch_size):
    # The last batch is filled up, so that it compiles nothing.
    index_B = np.minimum(first + np.arange(batch_size), len(part.windows_WxN) - 1)
    marks = documents.read(part.windows_WxN[index_B, -slots:])
    length_B = marks.is_real_BxN.sum(axis=1).astype(np.int32)
    request = Request(marks.ids_BxN, marks.is_given_BxN, length_B)
    # A sampler reveals one token a step, as a single stream does.
    streams = part.protocol.streams or 1
    _, generated = generate(decoder, request, Sampling(temperature=0.0), streams=streams)
    tokens_BxN = np.asarray(jax.device_get(generated.tokens_BxN))
    for b in range(min(batch_size, len(part.windows_WxN) - first)):
      for ids_BxN, into in ((tokens_BxN, written), (marks.ids_BxN, true)):
        into.append(decoder.tokenizer.decode(ids_BxN[b][marks.is_scored_BxN[b]]))
  return written, true


def rouge(written: Sequence[str], true: Sequence[str]) -> dict[str, float]:
  """Means over texts of the F measure of ROUGE-1, 2 and L, 0 to 1, by the package rouge-score."""
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(MEASURES)
  scores = [scorer.score(*pair) for pair in zip(true, written, strict=True)]
  return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in MEASURES}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows as text."""
  width = max(len(f'{row["text"]} | {row["name"]}') for row in rows)
  lines = [
    f'{"gap | given":{width}}  kind   nats/gap  nats/token  ROUGE-1  ROUGE-2  ROUGE-L',
  ]
  for row in rows:
    measures = '  '.join(f'{row[name]:7.4f}' for name in MEASURES)
    name = f'{row["text"]} | {row["name"]}'
    lines.append(
      f'{name:{width}}  {row["kind"]:5}  {row["nats_per_gap"]:8.2f}  '
      f'{row["nats_per_token"]:10.4f}  {measures}'
    )
  return '\n'.join(lines)

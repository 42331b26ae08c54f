"""Quality of generated texts: perplexity under a judge, beside it always entropy and repetition.

A judge gives a low perplexity to a text that repeats one word, so perplexity alone means nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np


class Judge(Protocol):
  """Another language model, which reads texts with its own tokenizer.

  Attributes:
    name: printed beside its perplexities.
    context: most tokens it reads at once.
  """

  @property
  def name(self) -> str: ...

  @property
  def context(self) -> int: ...

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int [T], nothing put before or after them."""
    ...

  def nats(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """`-log p` of every id of a window but the first, which nothing comes before, float64 [T - 1].

    Args:
      windows: ids, 2 to `context` of them in each.
    """
    ...

  def features(self, windows: Sequence[np.ndarray]) -> np.ndarray:
    """The last hidden row of each window, float32 [texts, width], which MAUVE compares.

    Args:
      windows: ids, 1 to `context` of them in each.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The numbers of a judge for texts.

  Attributes:
    corpus_perplexity: e to the nats of all tokens over their number.
    mean_perplexity: mean over texts of each one's own perplexity.
    tokens: scored, in the judge's tokenizer.
    perplexities: of every text that has a score.
    left_out: texts without a score, of less than two tokens.
    junctions: near the junctions of streams, if the texts have some.
  """

  corpus_perplexity: float
  mean_perplexity: float
  tokens: int
  perplexities: tuple[float, ...]
  left_out: int
  junctions: Junctions | None = None


@dataclasses.dataclass(frozen=True)
class Junctions:
  """The numbers of a judge where the streams of texts meet, and in all other places.

  Attributes:
    count: junctions.
    width: tokens of the judge around each, half of them before it.
    tokens: scored there, each once.
    perplexity: of them; None if there are none.
    elsewhere: perplexity of all other tokens; None if there are none.
  """

  count: int
  width: int
  tokens: int
  perplexity: float | None
  elsewhere: float | None


def judge_texts(
  judge: Judge, texts: Sequence[str], junctions: Sequence[Sequence[int]] = (), width: int = 16
) -> Verdict:
  """Generative perplexity: texts are tokenised anew, by the judge.

  A text longer than the judge's context is read window by window. The first token of a window is
  given and not scored, as in SEDD's and MDLM's evaluations; texts of one token have no score.

  Args:
    junctions: characters of each text before the junctions of its streams; none, of no text.
    width: tokens around each that count as near it.
  Raises:
    ValueError: no text has two tokens.
  """
  nats = _nats_of(judge, texts)
  scored = [nats_T[~np.isnan(nats_T)] for nats_T in nats]
  everything = np.concatenate(scored)
  if not len(everything):
    raise ValueError('no text has two tokens, so that a judge has nothing to score')
  perplexities = [_perplexity(nats_T) for nats_T in scored if len(nats_T)]
  return Verdict(
    corpus_perplexity=_perplexity(everything),
    mean_perplexity=float(np.mean(perplexities)),
    tokens=len(everything),
    perplexities=tuple(perplexities),
    left_out=len(texts) - len(perplexities),
    junctions=_at_junctions(judge, texts, nats, junctions, width) if any(junctions) else None,
  )


def _nats_of(judge: Judge, texts: Sequence[str]) -> list[np.ndarray]:
  """`-log p` of every token of each text, float64 [T], NaN where it has no score."""
  windows, places = [], []
  nats = []
  for number, text in enumerate(texts):
    ids_T = judge.encode(text)
    nats.append(np.full(len(ids_T), np.nan))
    for first in range(0, len(ids_T) - 1, judge.context):
      if len(window := ids_T[first : first + judge.context]) > 1:
        windows.append(window)
        places.append((number, first + 1))
  for (number, first), nats_T in zip(places, judge.nats(windows) if windows else (), strict=True):
    nats[number][first : first + len(nats_T)] = nats_T
  return nats


def _perplexity(nats_T: np.ndarray) -> float:
  """Infinite where float64 has no such number."""
  with np.errstate(over='ignore'):
    return float(np.exp(np.mean(nats_T)))


def _at_junctions(judge, texts, nats, junctions, width):
  is_near = [np.zeros(len(nats_T), bool) for nats_T in nats]
  for text, near_T, junctions_of_text in zip(texts, is_near, junctions, strict=True):
    for junction in junctions_of_text:
      # The token that the junction is before, or within.
      place = len(judge.encode(text[:junction]))
      near_T[max(0, place - width // 2) : place + width // 2] = True
  nats_T, near_T = np.concatenate(nats), np.concatenate(is_near)
  is_scored = ~np.isnan(nats_T)
  near, other = nats_T[is_scored & near_T], nats_T[is_scored & ~near_T]
  mean = lambda part: _perplexity(part) if len(part) else None
  return Junctions(sum(map(len, junctions)), width, len(near), mean(near), mean(other))


def padded_batches(
  windows: Sequence[np.ndarray],
  tokens_at_once: int,
  padded_length: Callable[[int], int] = lambda length: length,
) -> Iterator[tuple[list[int], np.ndarray]]:
  """Windows of like length together, the longest first, so that little of a batch is padding.

  Args:
    windows: ids.
    tokens_at_once: most ids of a batch, unless one window alone has more.
    padded_length: of a batch whose longest window has so many ids.
  Yields:
    The numbers of a batch's windows, and their ids, int64 [batch, length]; padding, 0, comes
    last, where causal attention never looks.
  Raises:
    ValueError: a window has no ids, so that nothing but padding could be read of it.
  """
  if not all(map(len, windows)):
    raise ValueError('a window has no ids')
  by_length = sorted(range(len(windows)), key=lambda number: len(windows[number]))
  while by_length:
    length = padded_length(len(windows[by_length[-1]]))
    count = max(1, tokens_at_once // length)
    numbers, by_length = by_length[-count:], by_length[:-count]
    ids_BxT = np.zeros((len(numbers), length), np.int64)
    for row, number in enumerate(numbers):
      ids_BxT[row, : len(windows[number])] = windows[number]
    yield numbers, ids_BxT


@dataclasses.dataclass(frozen=True)
class Statistics:
  """What texts are like, by their own tokens.

  Attributes:
    entropy_nats: of the histogram of a text's tokens, mean over texts (SEDD, MDLM).
    entropy_bits: the same in bits.
    distinct_1, distinct_2, distinct_3: different n-grams among all n-grams of all texts.
    repetition_4: 4-grams that occurred earlier in the same text, among all 4-grams.
    tokens: of all texts.
    left_out: texts without a token.
  """

  entropy_nats: float
  entropy_bits: float
  distinct_1: float
  distinct_2: float
  distinct_3: float
  repetition_4: float
  tokens: int
  left_out: int


def statistics(texts_ids: Sequence[np.ndarray]) -> Statistics:
  """Statistics of tokenised texts.

  Args:
    texts_ids: ids of each text, int [T].
  Raises:
    ValueError: there is no token.

  Examples:
    >>> two = statistics([np.array([1, 2, 1, 2])])
    >>> round(two.entropy_bits, 6), two.distinct_1, round(two.distinct_2, 4)
    (1.0, 0.5, 0.6667)
  """
  count = len(texts_ids)
  texts_ids = [np.asarray(ids_T) for ids_T in texts_ids if len(ids_T)]
  if not texts_ids:
    raise ValueError('the texts hold no token')
  entropy_nats = float(np.mean([_entropy(ids_T) for ids_T in texts_ids]))
  distinct = [_share_of_different([_ngrams(ids_T, n) for ids_T in texts_ids]) for n in (1, 2, 3)]
  fourgrams = [_ngrams(ids_T, 4) for ids_T in texts_ids]
  total = sum(map(len, fourgrams))
  different = sum(len(np.unique(grams, axis=0)) for grams in fourgrams)
  return Statistics(  # type: ignore[misc]  # three numbers are in `distinct`
    entropy_nats,
    entropy_nats / math.log(2),
    *distinct,  # type: ignore[arg-type]
    repetition_4=1 - different / total if total else 0.0,
    tokens=sum(map(len, texts_ids)),
    left_out=count - len(texts_ids),
  )


def _entropy(ids_T: np.ndarray) -> float:
  _, counts = np.unique(ids_T, return_counts=True)
  share = counts / counts.sum()
  return float(-np.sum(share * np.log(share)))


def _ngrams(ids_T: np.ndarray, n: int) -> np.ndarray:
  if len(ids_T) < n:
    return np.empty((0, n), ids_T.dtype)
  return np.lib.stride_tricks.sliding_window_view(ids_T, n)


def _share_of_different(grams: list[np.ndarray]) -> float:
  everything = np.concatenate(grams)
  return len(np.unique(everything, axis=0)) / len(everything) if len(everything) else 0.0

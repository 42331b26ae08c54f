"""A model's scores on texts, with their uncertainty; any part of them may have been kept before."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from armd_jax.config import ModelConfig
from armd_jax.data import documents
from armd_jax.data.packing import text_bytes
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.evaluation import bounds, last_word, likelihood
from armd_jax.evaluation.journal import Journal
from armd_jax.files import whole
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.denoiser import Denoiser
from armd_jax.models.params import Params
from armd_jax.parallel import distributed, sharding

Model = ARMD | AR | Denoiser

# A `Score` in JSON, see `files.whole.check_form`; null is also what is not finite.
SCORE = {
  'name': str, 'kind': str, 'nats_per_byte': (float, type(None)),
  'nats_per_token': (float, type(None)), 'tokens': int, 'text': str, 'orders': int,
  'standard_error': (float, type(None)),
}  # fmt: skip

KINDS = ('exact', 'bound')


def check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
  """Compares rows of a file of scores with what `evaluate` writes; those of other suites have no
  nats per token.

  Raises:
    ValueError: naming the first place that differs.
  """
  for number, row in enumerate(rows):
    if 'nats_per_token' not in row:
      continue
    whole.check_form(row, SCORE, f'scores[{number}]')
    if row['kind'] not in KINDS:
      raise ValueError(f'holds the kind {row["kind"]!r}, not one of {", ".join(KINDS)}')
    if min(row['tokens'], row['orders']) < 1:
      raise ValueError(f'holds {row["tokens"]} tokens in {row["orders"]} orders, not at least 1')


def perplexity(nats: float) -> float:
  """e to nats per token or word; infinite where float64 has no such number.

  Examples:
    >>> perplexity(0.0), perplexity(1e3)
    (1.0, inf)
  """
  try:
    return math.exp(nats)
  except OverflowError:
    return math.inf


@dataclasses.dataclass(frozen=True)
class ScoredWindows:
  """Windows to be scored under one protocol.

  Attributes:
    protocol: how.
    windows_WxN: token ids, with marks (`data.documents`) or without.
    text: what they are, in tables; '' where there is one text only.
    orders: K, random orders drawn for each window.
  """

  protocol: likelihood.Protocol
  windows_WxN: np.ndarray
  text: str = ''
  orders: int = 1


@dataclasses.dataclass(frozen=True)
class Score:
  """One protocol's result on a text.

  Attributes:
    name, kind: of the protocol.
    nats_per_byte: over the bytes of the scored tokens; None if they have none, such as [UNK].
    nats_per_token: mean.
    tokens: scored.
    text: as in `ScoredWindows`.
    orders: K, of random orders.
    standard_error: of `nats_per_token`, over windows; None of a single one.
  """

  name: str
  kind: str
  nats_per_byte: float | None
  nats_per_token: float
  tokens: int
  text: str = ''
  orders: int = 1
  standard_error: float | None = None

  @property
  def bits_per_byte(self) -> float | None:
    return None if self.nats_per_byte is None else self.nats_per_byte / math.log(2)

  @property
  def perplexity(self) -> float:
    """Per token, of the model's tokenizer."""
    return perplexity(self.nats_per_token)

  def row(self) -> dict[str, Any]:
    """All numbers, by name."""
    return vars(self) | {'bits_per_byte': self.bits_per_byte, 'perplexity': self.perplexity}


def evaluate(
  model: Model,
  tokenizer: Tokenizer,
  params: Params,
  windows_WxN: np.ndarray,
  streams: Sequence[int],
  mesh: Mesh,
  *,
  batch_size: int = 16,
  seed: int = 0,
) -> list[Score]:
  """Scores windows under the standard suite of orders, random ones drawn once; see `score`."""
  suite = likelihood.standard_suite(model.config, streams)
  parts = [ScoredWindows(protocol, windows_WxN) for protocol in suite]
  return score(model, tokenizer, params, parts, mesh, batch_size=batch_size, seed=seed)


def score(
  model: Model,
  tokenizer: Tokenizer,
  params: Params,
  parts: Sequence[ScoredWindows],
  mesh: Mesh,
  *,
  batch_size: int = 16,
  seed: int = 0,
  journal: Journal | None = None,
) -> list[Score]:
  """Scores windows.

  Args:
    model, tokenizer, params: as trained.
    parts: what to score, and how.
    mesh: where the parameters are.
    batch_size: windows per call, rounded up to what the devices can share.
    seed: of random orders.
    journal: what was scored before, and where the rest is kept.
  Returns:
    A score per part; of uniform orders one for K = 1, 2, 4, ... of them, each a tighter bound.
  """
  journal = journal or Journal()
  total = sum(part.orders * len(part.windows_WxN) for part in parts)
  scores = []
  with _progress(total, journal) as bar:
    for number, part in enumerate(parts):
      bar.set_postfix_str(' '.join(filter(None, (part.text, part.protocol.name))), refresh=False)
      nll = likelihood.nll(
        model,
        params,
        part.windows_WxN,
        part.protocol,
        mesh,
        batch_size=_shared_batch(batch_size, mesh),
        seed=seed,
        orders=part.orders,
        start=len(journal.rows(number)),
      )
      _keep((nll_BxN.sum(axis=1, dtype=np.float64) for nll_BxN in nll), number, journal, bar)
      nats_KxW = journal.rows(number).reshape(part.orders, -1)
      scores += _scores(part, nats_KxW, model.config, tokenizer)
  return scores


def _scores(
  part: ScoredWindows, nats_KxW: np.ndarray, config: ModelConfig, tokenizer: Tokenizer
) -> list[Score]:
  slots_WxN = part.windows_WxN[:, config.length - config.num_slots :]
  windows, num_bytes = len(slots_WxN), text_bytes(slots_WxN, tokenizer)
  tokens_W = documents.num_scored(slots_WxN)
  tokens, per_window = int(tokens_W.sum()), float(tokens_W.mean())
  if part.protocol == likelihood.UNIFORM and windows > 1:
    found: list[tuple[int, float, float | None]] = [
      (b.orders, b.nats, b.standard_error) for b in bounds.over_orders(nats_KxW)
    ]
  else:
    nats_W = nats_KxW.mean(axis=0)
    # Of a ratio of two sums, where documents are not of one length.
    left_W = nats_W - nats_W.mean() / per_window * tokens_W
    error = float(left_W.std(ddof=1)) / math.sqrt(windows) if windows > 1 else None
    found = [(part.orders, float(nats_W.mean()), error)]
  several = len(found) > 1
  return [
    Score(
      name=part.protocol.name + (f', K={orders}' if several else ''),
      kind=part.protocol.kind,
      nats_per_byte=nats * windows / num_bytes if num_bytes else None,
      nats_per_token=nats / per_window,
      tokens=tokens,
      text=part.text,
      orders=orders,
      standard_error=None if error is None else error / per_window,
    )
    for orders, nats, error in found
  ]


@dataclasses.dataclass(frozen=True)
class LastWords:
  """How LAMBADA's last words are predicted.

  Attributes:
    name, kind: in tables.
    accuracy: share of passages whose last word is the likeliest.
    standard_error: of the accuracy.
    perplexity: per word.
    passages: how many.
    cut: how many of them were too long for the model.
  """

  name: str
  kind: str
  accuracy: float
  standard_error: float
  perplexity: float
  passages: int
  cut: int

  def text(self) -> str:
    """The numbers as text."""
    return (
      f'last words right: {100 * self.accuracy:.2f} +- {100 * self.standard_error:.2f} % of '
      f'{self.passages}; perplexity per word {self.perplexity:.2f}'
    )


def score_last_words(
  model: ARMD | AR,
  params: Params,
  passages: last_word.Passages,
  mesh: Mesh,
  *,
  batch_size: int = 16,
  journal: Journal | None = None,
) -> LastWords:
  """Accuracy of last words; arguments as of `score`."""
  journal = journal or Journal()
  count = len(passages.text_WxN)
  with _progress(count, journal) as bar:
    found = last_word.score(
      model,
      params,
      passages,
      mesh,
      batch_size=_shared_batch(batch_size, mesh),
      start=journal.count,
    )
    _keep(found, 0, journal, bar)
  right_W, nats_W = journal.rows(0).T
  accuracy = float(right_W.mean())
  return LastWords(
    name='last word',
    kind='exact',
    accuracy=accuracy,
    standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
    perplexity=perplexity(nats_W.mean()),
    passages=count,
    cut=passages.cut,
  )


def _progress(total: int, journal: Journal) -> tqdm:
  return tqdm(
    total=total,
    initial=journal.count,
    desc='evaluate',
    unit='window',
    leave=False,
    disable=None if distributed.is_first() else True,  # None: where there is no terminal
  )


def _shared_batch(batch_size, mesh):
  parts = sharding.batch_parts(mesh)
  return -(-batch_size // parts) * parts


def _keep(batches: Iterator[np.ndarray], number: int, journal: Journal, bar: tqdm) -> None:
  for rows in batches:
    journal.add(number, rows)
    bar.update(len(rows))


def table(scores: Sequence[Score]) -> str:
  """The scores as text."""
  names = [' | '.join(filter(None, (s.text, s.name))) for s in scores]
  width = max(map(len, names))
  lines = [f'{"order":{width}}  kind   nats/byte  bits/byte  nats/token  +-      perplexity']
  for name, s in zip(names, scores, strict=True):
    error = '' if s.standard_error is None else f'{s.standard_error:.4f}'
    of_bytes = ['-' if x is None else f'{x:.4f}' for x in (s.nats_per_byte, s.bits_per_byte)]
    lines.append(
      f'{name:{width}}  {s.kind:5}  {of_bytes[0]:>9}  {of_bytes[1]:>9}  '
      f'{s.nats_per_token:10.4f}  {error:6}  {s.perplexity:10.2f}'
    )
  return '\n'.join(lines)


def to_quote(scores: Sequence[Score]) -> str:
  """Which number can be compared with a paper's, in a sentence."""
  exact = next((s for s in scores if s.kind == 'exact'), None)
  if exact is None:
    found = scores[0]
    return (
      f'beside a paper: perplexity at most {found.perplexity:.2f} per token, the bound of '
      f'{found.name}; papers on diffusion quote such bounds'
    )
  return (
    f'beside a paper: perplexity {exact.perplexity:.2f} per token, exact, {exact.name}; only with '
    'the same tokenizer, windows and text'
  )


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
  """Hex digits that change with any number."""
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(np.ascontiguousarray(array))  # type: ignore[arg-type]
  return digest.hexdigest()[:16]


def model_fingerprint(params: Params, mesh: Mesh) -> str:
  """Hex digits that change with float32 parameters, however they are laid out on the mesh."""
  bits = lambda x: jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32), dtype=jnp.uint32)
  everywhere = sharding.replicated(mesh)
  sums = jax.jit(
    lambda tree: jnp.stack([*map(bits, jax.tree.leaves(tree))]), out_shardings=everywhere
  )
  return fingerprint([np.asarray(sums(params))])

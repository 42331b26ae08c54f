"""What an evaluation measures: the windows of a suite and the orders that score them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from armd_jax.config import Config
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.mixture import parts_of
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode.requests import Decoder
from armd_jax.errors import UserError
from armd_jax.evaluation import infilling, last_word, likelihood, protocols, scores, texts
from armd_jax.evaluation.journal import Journal

LIKELIHOOD, LAST_WORD, INFILLING = 'likelihood', 'lambada', 'infilling'
SUITES = (LIKELIHOOD, *protocols.PROTOCOLS, LAST_WORD, INFILLING)


@dataclasses.dataclass(frozen=True)
class Suite:
  """What a suite measures.

  Attributes:
    described: lines that are printed with the result, and written.
    parts: windows under protocols; empty if the suite is LAST_WORD.
    passages: of LAST_WORD.
    texts: digits that name the windows.
    is_filled: whether gaps are also filled, as in INFILLING.
  """

  described: tuple[str, ...]
  texts: str
  parts: tuple[scores.ScoredWindows, ...] = ()
  passages: last_word.Passages | None = None
  is_filled: bool = False

  def identity(self, model: Any, seed: int) -> dict[str, Any]:
    """What makes up the results, in the words of a user, see `journal.Journal`."""
    parts = [[part.protocol.name, part.orders, len(part.windows_WxN)] for part in self.parts]
    protocol = [self.described, parts]
    return {'model': model, 'text': self.texts, 'protocol': protocol, 'seed': seed}


def likelihood_task(
  config: Config, streams: Sequence[int], orders: int, num_windows: int, text_sha256: str = ''
) -> Suite:
  """Every kind of order on the run's own held-out text.

  Args:
    config: of the run.
    streams: stride counts S.
    orders: K, random orders per window.
    num_windows: of the first ones, of every corpus of a mixture; 0: all.
    text_sha256: of the text that the run was trained on, '' if that is not known.
  Raises:
    UserError: an S is more than the tokens, or the text is not there or another one.
  """
  suite = likelihood.standard_suite(config.model, streams)
  is_shuffled = config.order.max_shuffled > 1 and not config.model.has_own_orders
  if likelihood.UNIFORM in suite and is_shuffled:
    suite.insert(-1, likelihood.shuffled_protocol(config.order))
  corpus = corpus_lib.load(config.data, config.model.length)
  if text_sha256:
    corpus_lib.check_same(text_sha256, corpus, 'the run')
  sides: dict[str, Any] = {
    name: windows[: num_windows or None] for name, windows in parts_of(corpus.held_out_WxN).items()
  }
  parts = [
    scores.ScoredWindows(protocol, windows_WxN, name, 1 if protocol.streams else orders)
    for name, windows_WxN in sides.items()
    for protocol in suite
  ]
  counts = ', '.join(f'{len(windows)} {name}'.strip() for name, windows in sides.items())
  described = (
    f'held out of {corpus.description}, sha256 {corpus.sha256[:16]}',
    f'{counts} windows of {config.model.length} tokens, BOS before each',
  )
  return Suite(described, scores.fingerprint(sides.values()), parts=tuple(parts))


def zero_shot_task(
  name: str,
  given: dict[str, str],
  config: Config,
  tokenizer: Tokenizer,
  streams: Sequence[int],
  orders: int,
  num_windows: int,
) -> Suite:
  """Texts as a published evaluation scores them: left-to-right, where the model can.

  Args:
    name: of `protocols.PROTOCOLS`.
    given: sources by name of a text, as of `protocols.sources_of`.
    config, tokenizer: of the run.
    streams: stride counts S that are scored beside.
    orders: K, random orders per window of a model that has no other.
    num_windows: of the first ones of every text; 0: all.
  Raises:
    UserError: a text is not known or not there, or an S is more than the tokens.
  """
  protocol = protocols.PROTOCOLS[name]
  suite = likelihood.standard_suite(config.model, streams)
  suite = [p for p in suite if p != likelihood.UNIFORM]
  described = [f'{protocol.describe(config.model.length)}; tokenizer {tokenizer.name}']
  parts = []
  for text_name, source in protocols.sources_of(protocol, given).items():
    text = texts.named(text_name)
    rows = texts.read_rows(text, source)
    windows_WxN = protocols.windows(protocol, text, rows, tokenizer, config.model.length)
    found, windows_WxN = len(windows_WxN), windows_WxN[: num_windows or None]
    described.append(
      f'{text.title}: {source}, whose split should be {protocol.split_of(text)!r}; detokenizer '
      f'{text.detokenizer}; {len(windows_WxN)} of {found} windows, {len(rows)} rows'
    )
    parts += [
      scores.ScoredWindows(p, windows_WxN, text.title, 1 if p.streams else orders) for p in suite
    ]
  digits = scores.fingerprint(part.windows_WxN for part in parts)
  return Suite(tuple(described), digits, parts=tuple(parts))


def last_word_task(
  given: dict[str, str], config: Config, tokenizer: Tokenizer, num_windows: int
) -> Suite:
  """LAMBADA's last words; arguments as of `zero_shot_task`.

  Raises:
    UserError: the text is not there, or the model cannot run left-to-right.
  """
  if config.model.orders == 'none':
    raise UserError(
      f'--suite={LAST_WORD} predicts left-to-right, which a model of family '
      f"'{config.model.family}' cannot; choose another suite"
    )
  if list(given) != ['lambada']:
    raise UserError(
      f'--suite={LAST_WORD} reads LAMBADA alone; write --texts=lambada or --texts=lambada=FILE'
    )
  (source,) = protocols.sources_of(protocols.PROTOCOLS['sedd'], given).values()
  rows = texts.read_rows(texts.TEXTS['lambada'], source)[: num_windows or None]
  passages = last_word.passages(rows, tokenizer, config.model)
  described = (
    f'{last_word.describe(config.model.length)}; tokenizer {tokenizer.name}',
    f'LAMBADA: {source}; {len(rows)} passages, of which {passages.cut} lost their beginning',
  )
  digits = scores.fingerprint([passages.text_WxN, passages.first_W])
  return Suite(described, digits, passages=passages)


def infilling_task(
  given: dict[str, str],
  config: Config,
  tokenizer: Tokenizer,
  streams: Sequence[int],
  num_windows: int,
) -> Suite:
  """Missing sentences of stories; arguments as of `zero_shot_task`.

  Raises:
    UserError: the text is not there, or has no stories, or the model cannot predict their gaps.
  """
  if len(given) != 1 or not all(given.values()):
    raise UserError(f'--suite={INFILLING} reads one file of stories; write --texts=NAME=FILE')
  infilling.check_rouge()
  ((name, source),) = given.items()
  stories = infilling.read(source)
  found, stories = len(stories), stories[: num_windows or None]
  parts = infilling.parts(stories, streams, tokenizer, config.model)
  described = (
    f'{infilling.DESCRIBED}; tokenizer {tokenizer.name}',
    f'{name}: {source}; {len(stories)} of {found} stories',
  )
  digits = scores.fingerprint(part.windows_WxN for part in parts)
  return Suite(described, digits, parts=tuple(parts), is_filled=True)


def measure(
  task: Suite,
  decoder: Decoder,
  mesh: Mesh,
  *,
  batch_size: int,
  seed: int,
  journal: Journal,
) -> tuple[list[str], list[dict[str, Any]]]:
  """Measures a task.

  Args:
    task: of `task_of`.
    decoder: of the model.
    mesh: where its parameters are.
    batch_size, seed, journal: as of `scores.score`.
  Returns:
    Lines to print, and rows of numbers.
  """
  model, params = decoder.model, decoder.params
  common: Any = {'batch_size': batch_size, 'journal': journal}
  if task.passages is not None:
    ordered: Any = model  # `last_word_task` refuses others
    words = scores.score_last_words(ordered, params, task.passages, mesh, **common)
    return [words.text()], [vars(words)]
  found = scores.score(model, decoder.tokenizer, params, task.parts, mesh, seed=seed, **common)
  if task.is_filled:
    rows = infilling.rows(found, task.parts, decoder, batch_size=batch_size)
    return [infilling.table(rows)], rows
  return [scores.table(found), scores.to_quote(found)], [one.row() for one in found]


def sources(given: Sequence[str]) -> dict[str, str]:
  """Sources by name of a text, '' where none is given, of words NAME or NAME=FILE.

  Raises:
    UserError: a name is there twice, of which one would not be scored.
  """
  found: dict[str, str] = {}
  for name, _, source in (text.partition('=') for text in given):
    if name in found:
      raise UserError(f'--texts names {name!r} twice; write each text once, or under another name')
    found[name] = source
  return found


def task_of(
  suite: str,
  given: dict[str, str],
  config: Config,
  tokenizer: Tokenizer,
  streams: Sequence[int] | None,
  orders: int,
  num_windows: int,
  text_sha256: str = '',
) -> Suite:
  """The task of any suite.

  Args:
    suite: one of SUITES.
    given: sources by name of a text, '' where none is given; as of `zero_shot_task`.
    config, tokenizer: of the run.
    streams: stride counts S; None: those that the suite scores by itself.
    orders: K, random orders per window.
    num_windows: of the first ones of every text; 0: all.
    text_sha256: of the text that the run was trained on, '' if that is not known.
  Raises:
    UserError: the suite needs texts, or takes none, or cannot be measured.
  """
  if suite == LIKELIHOOD and given:
    raise UserError(
      f'--suite={LIKELIHOOD} scores the held-out text of the run; leave out --texts, or choose a '
      f'suite of {", ".join(protocols.PROTOCOLS)}'
    )
  if suite == LIKELIHOOD:
    streams = (2, 4, 8) if streams is None else streams
    return likelihood_task(config, streams, orders, num_windows, text_sha256)
  if not given:
    raise UserError(
      f'--suite={suite} needs texts; write --texts=NAME=FILE,... with names of '
      f'{", ".join(texts.TEXTS)}, or a name alone to read it from tensorflow-datasets'
    )
  if suite == LAST_WORD:
    return last_word_task(given, config, tokenizer, num_windows)
  if suite == INFILLING:
    streams = (2, 4) if streams is None else streams
    return infilling_task(given, config, tokenizer, streams, num_windows)
  return zero_shot_task(suite, given, config, tokenizer, streams or (), orders, num_windows)

"""A run's text: a prepared corpus, or one loaded, split by document, tokenised and packed here; or
a mixture of several such."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from armd_jax.config import DataConfig
from armd_jax.data import documents
from armd_jax.data.mixture import Mixture, names
from armd_jax.data.packing import Packing, get_packing, pack
from armd_jax.data.prepared import Prepared, is_prepared
from armd_jax.data.sources import Documents, key_of, load_documents, split_documents
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Windows of N tokens to train on and to measure on.

  Attributes:
    train_WxN, held_out_WxN: unsigned token ids, or int32 ones with marks (`documents`); an array,
      or one that is read from files as it is indexed (`prepared.Windows`, `mixture.Mixture`). No
      document is on both sides, except where `load` warns of it.
    tokenizer: what made the ids.
    description: where the text comes from, in words.
    sha256: of the text, hex; it does not depend on the place and the name of the text. A run and
      every number that was measured on the text store it; `check_same` compares.
    statistics: of each prepared corpus in it, by its name ('' of a single one), as
      `data.statistics` reads them.
  """

  train_WxN: np.ndarray | Sequence[np.ndarray]
  held_out_WxN: np.ndarray | Sequence[np.ndarray]
  tokenizer: Tokenizer
  description: str
  sha256: str
  statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load(config: DataConfig, length: int) -> Corpus:
  """Opens the text, in windows of `length` tokens.

  A document that any corpus of a mixture holds out is left out of what is trained on of the others.
  Prepared corpora are as they were written: a warning says where they may hold out different ones.

  Raises:
    UserError: the text is missing, empty, one document only, or shorter than one window; or it was
      prepared with another tokenizer, or is damaged. Of several processes each looks at its part
      of the files.
  """
  tokenizer = get_tokenizer(config.tokenizer)
  apart = config.packing == documents.PACKING
  packing = None if apart else get_packing(config.packing, length, tokenizer)
  sources = config.mixture or (config.source,)
  opened = [
    Prepared(source) if is_prepared(source) else _split(config, source) for source in sources
  ]
  if len(opened) > 1:
    opened = _without_held_out(sources, opened)
  cut = functools.partial(_cut, config, length, tokenizer, packing)
  corpora = [*map(cut, opened)]
  if not config.mixture:
    return corpora[0]
  weights = config.weights or (1.0,) * len(corpora)
  side = lambda name: Mixture(
    dict(zip(names(config.mixture), (getattr(one, name) for one in corpora), strict=True)), weights
  )
  shares = [weight / sum(weights) for weight in weights]
  return Corpus(
    train_WxN=side('train_WxN'),
    held_out_WxN=side('held_out_WxN'),
    tokenizer=tokenizer,
    description='; '.join(
      f'{share:.1%} {one.description}' for share, one in zip(shares, corpora, strict=True)
    ),
    sha256=hashlib.sha256(' '.join(one.sha256 for one in corpora).encode()).hexdigest(),
    statistics={
      name: one.statistics['']
      for name, one in zip(names(config.mixture), corpora, strict=True)
      if one.statistics
    },
  )


class _Split(NamedTuple):
  """A text that is not prepared, and its documents on both sides."""

  text: Documents
  train: list[str]
  held_out: list[str]


def _split(config: DataConfig, source: str) -> _Split:
  text = load_documents(source, config.bad_rows, config.prompt)
  return _Split(text, *split_documents(text, config.held_out))


def _without_held_out(
  sources: Sequence[str], opened: Sequence[Prepared | _Split]
) -> list[Prepared | _Split]:
  """Corpora of a mixture without training documents that another one holds out.

  Each of them holds out the smallest hashes up to its own share of bytes, so that of a document
  that two of them have, one may hold it out and the other not.
  """
  rules = [one.held_out_rule if isinstance(one, Prepared) else None for one in opened]
  if any(rule != rules[0] for rule in rules):
    print(
      f'warning: of documents that several of {", ".join(map(repr, sources))} have, one may hold '
      'out what another is trained on; where they share text, prepare all of them with the same '
      '--held_out',
      file=sys.stderr,
    )
  texts = [one for one in opened if isinstance(one, _Split)]
  apart = {key_of(document) for one in texts for document in one.held_out}
  kept = lambda one: one._replace(train=[text for text in one.train if key_of(text) not in apart])
  return [kept(one) if isinstance(one, _Split) else one for one in opened]


def _cut(
  config: DataConfig,
  length: int,
  tokenizer: Tokenizer,
  packing: Packing | None,
  opened: Prepared | _Split,
) -> Corpus:
  """A single corpus; without a packing, a document a window."""
  if isinstance(opened, Prepared):
    opened.check_prompt(config.prompt)
    opened.check_files(jax.process_index(), jax.process_count())
    windows = lambda side: (
      opened.windows(side, tokenizer, packing)
      if packing
      else opened.documents(side, tokenizer, length)
    )
    return Corpus(
      train_WxN=windows('train'),
      held_out_WxN=windows('held_out'),
      tokenizer=tokenizer,
      description=opened.description,
      sha256=opened.sha256,
      statistics={'': found} if (found := opened.manifest.get('statistics')) else {},
    )
  cut = lambda texts, what: (
    pack(texts, tokenizer, packing, what)
    if packing
    else documents.windows(texts, tokenizer, length)
  )
  return Corpus(
    train_WxN=cut(opened.train, 'the training text'),
    held_out_WxN=cut(opened.held_out, 'the held-out text'),
    tokenizer=tokenizer,
    description=opened.text.description,
    sha256=opened.text.sha256,
  )


def check_same(then: str, corpus: Corpus, what: str) -> None:
  """Refuses a text that is not the one it was.

  Args:
    then: `sha256` of the text that was read before.
    corpus: the text as it is now.
    what: what was made of it, such as 'the run in DIR'.
  Raises:
    UserError: it is another one.
  """
  if corpus.sha256 != then:
    raise UserError(
      f'{what} is of another text (sha256 {then[:16]}) than {corpus.description} is now (sha256 '
      f'{corpus.sha256[:16]}); bring that text back, or train anew in another --workdir'
    )

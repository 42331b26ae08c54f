"""A run's text: a prepared corpus, or one loaded, split by document, tokenised and packed here; or
a mixture of several such."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from armd_jax.config import DataConfig
from armd_jax.data import documents
from armd_jax.data.mixture import Mixture, names
from armd_jax.data.packing import Packing, get_packing, pack
from armd_jax.data.prepared import Prepared, is_prepared
from armd_jax.data.sources import load_documents, split_documents
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Windows of N tokens to train on and to measure on.

  Attributes:
    train_WxN, held_out_WxN: unsigned token ids, or int32 ones with marks (`documents`); an array,
      or one that is read from files as it is indexed (`prepared.Windows`, `mixture.Mixture`). No
      document is on both sides, except in two corpora of a mixture.
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

  Raises:
    UserError: the text is missing, empty, one document only, or shorter than one window; or it was
      prepared with another tokenizer, or is damaged. Of several processes each looks at its part
      of the files.
  """
  tokenizer = get_tokenizer(config.tokenizer)
  apart = config.packing == documents.PACKING
  packing = None if apart else get_packing(config.packing, length, tokenizer)
  one = functools.partial(_load, config, length, tokenizer, packing)
  if not config.mixture:
    return one(config.source)
  corpora = [*map(one, config.mixture)]
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


def _load(
  config: DataConfig, length: int, tokenizer: Tokenizer, packing: Packing | None, source: str
) -> Corpus:
  """A single corpus; without a packing, a document a window."""
  if is_prepared(source):
    prepared = Prepared(source)
    prepared.check_prompt(config.prompt)
    prepared.check_files(jax.process_index(), jax.process_count())
    windows = lambda side: (
      prepared.windows(side, tokenizer, packing)
      if packing
      else prepared.documents(side, tokenizer, length)
    )
    return Corpus(
      train_WxN=windows('train'),
      held_out_WxN=windows('held_out'),
      tokenizer=tokenizer,
      description=prepared.description,
      sha256=prepared.sha256,
      statistics={'': found} if (found := prepared.manifest.get('statistics')) else {},
    )
  loaded = load_documents(source, config.bad_rows, config.prompt)
  train_texts, held_out_texts = split_documents(loaded, config.held_out)
  cut = lambda texts, what: (
    pack(texts, tokenizer, packing, what)
    if packing
    else documents.windows(texts, tokenizer, length)
  )
  return Corpus(
    train_WxN=cut(train_texts, 'the training text'),
    held_out_WxN=cut(held_out_texts, 'the held-out text'),
    tokenizer=tokenizer,
    description=loaded.description,
    sha256=loaded.sha256,
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

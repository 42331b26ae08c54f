"""A run's text: a prepared corpus, or one loaded, split by document, tokenised and packed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from armd_jax.config import DataConfig
from armd_jax.data.packing import get_packing, pack
from armd_jax.data.prepared import Prepared, is_prepared
from armd_jax.data.sources import load_documents, split_documents
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Windows of N tokens to train on and to measure on.

  Attributes:
    train_WxN, held_out_WxN: unsigned token ids, an array or one that is read from files as it is
      indexed (`prepared.Windows`); no document stands on both sides.
    tokenizer: what made the ids.
    description: where the text comes from, in words.
    sha256: of the text, hex.
  """

  train_WxN: np.ndarray | Sequence[np.ndarray]
  held_out_WxN: np.ndarray | Sequence[np.ndarray]
  tokenizer: Tokenizer
  description: str
  sha256: str


def load(config: DataConfig, length: int) -> Corpus:
  """Opens the text, in windows of `length` tokens.

  Raises:
    UserError: the text is missing, empty, one document only, or shorter than one window; or it was
      prepared with another tokenizer.
  """
  tokenizer = get_tokenizer(config.tokenizer)
  packing = get_packing(config.packing, length, tokenizer)
  if is_prepared(config.source):
    prepared = Prepared(config.source)
    return Corpus(
      train_WxN=prepared.windows('train', tokenizer, packing),
      held_out_WxN=prepared.windows('held_out', tokenizer, packing),
      tokenizer=tokenizer,
      description=prepared.description,
      sha256=prepared.sha256,
    )
  documents = load_documents(config.source)
  train_texts, held_out_texts = split_documents(documents, config.held_out)
  return Corpus(
    train_WxN=pack(train_texts, tokenizer, packing, 'the training text'),
    held_out_WxN=pack(held_out_texts, tokenizer, packing, 'the held-out text'),
    tokenizer=tokenizer,
    description=documents.description,
    sha256=documents.sha256,
  )

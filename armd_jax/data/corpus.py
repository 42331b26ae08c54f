"""A run's text: loaded, split by document, tokenised and packed, as the config says."""

from __future__ import annotations

import dataclasses

import numpy as np

from armd_jax.config import DataConfig
from armd_jax.data.pipeline import pack
from armd_jax.data.sources import load_documents, split_documents
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Windows of N tokens to train on and to measure on.

  Attributes:
    train_WxN, held_out_WxN: unsigned token ids; no document stands on both sides.
    tokenizer: what made the ids.
    description: where the text comes from, in words.
    sha256: of the text, hex.
  """

  train_WxN: np.ndarray
  held_out_WxN: np.ndarray
  tokenizer: Tokenizer
  description: str
  sha256: str


def load(config: DataConfig, length: int) -> Corpus:
  """Loads the text and cuts it into windows of `length` tokens.

  Raises:
    UserError: the text is missing, empty, one document only, or shorter than one window.
  """
  tokenizer = get_tokenizer(config.tokenizer)
  documents = load_documents(config.source)
  train_texts, held_out_texts = split_documents(documents, config.held_out)
  return Corpus(
    train_WxN=pack(train_texts, tokenizer, length, 'the training text'),
    held_out_WxN=pack(held_out_texts, tokenizer, length, 'the held-out text'),
    tokenizer=tokenizer,
    description=documents.description,
    sha256=documents.sha256,
  )

"""Tokenizers: text to ids and back, behind one small interface.

Everything downstream (packing, the n-gram yardstick, likelihood, sampling) speaks to the
`Tokenizer` protocol alone, so that another vocabulary is one more class and one more line in
`_TOKENIZERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from armd_jax.errors import UserError


class Tokenizer(Protocol):
  """What the rest of the code knows about a vocabulary.

  Attributes:
    name: what `get_tokenizer` calls it.
    vocab_size: V; every id is in 0..V-1.
    eos_id: the id that ends a document; `encode` never returns it.
    fingerprint: hex digits that change whenever some text would get other ids, stored beside
      checkpoints so that a model is never read with another vocabulary.
    token_bytes_V: int32 [V], UTF-8 bytes of text each id stands for; 0 for EOS.
  """

  @property
  def name(self) -> str: ...

  @property
  def vocab_size(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  @property
  def fingerprint(self) -> str: ...

  @property
  def token_bytes_V(self) -> np.ndarray: ...

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32 [N], without EOS."""
    ...

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]; raises ValueError for an id outside the vocabulary."""
    ...


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255, and EOS as 256.

  >>> tokenizer = ByteTokenizer()
  >>> tokenizer.encode('né').tolist()
  [110, 195, 169]
  >>> tokenizer.decode([110, 195, 169, 256, 195])
  'né\ufffd'
  """

  name = 'bytes'
  vocab_size = 257
  eos_id = 256

  def __init__(self):
    # Computed from what encode returns, so that it cannot stay behind a change of the ids.
    alphabet = ''.join(map(chr, range(0x800)))
    ids = self.encode(alphabet).tobytes()
    self.fingerprint = hashlib.sha256(ids + f'{self.vocab_size} {self.eos_id}'.encode()).hexdigest()
    self.token_bytes_V = np.ones(self.vocab_size, np.int32)
    self.token_bytes_V[self.eos_id] = 0

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.int32)

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]: EOS becomes '', each malformed UTF-8 sequence U+FFFD.

    Documents are decoded apart: a character cut off by EOS does not go on after it.
    """
    ids = np.asarray(ids, np.int64)
    outside = ids[(ids < 0) | (ids >= self.vocab_size)]
    if outside.size:
      raise ValueError(f'id {outside[0]} is not a byte id; ids run from 0 to {self.vocab_size - 1}')
    documents = np.split(ids, np.flatnonzero(ids == self.eos_id))
    texts = [d[d != self.eos_id].astype(np.uint8).tobytes() for d in documents]
    return ''.join(text.decode('utf-8', 'replace') for text in texts)


_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {ByteTokenizer.name: ByteTokenizer}


def get_tokenizer(name: str) -> Tokenizer:
  """The tokenizer of that name.

  Raises:
    UserError: for an unknown name.
  """
  if name not in _TOKENIZERS:
    known = ', '.join(map(repr, sorted(_TOKENIZERS)))
    raise UserError(f'tokenizer {name!r} is unknown; write one of {known}')
  return _TOKENIZERS[name]()

"""From documents to windows: the stream in which every document ends with EOS, cut to length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from armd_jax.data import documents
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError

STREAMS = ('joined', 'wrapped')
PACKINGS = (*STREAMS, documents.PACKING)


@dataclasses.dataclass(frozen=True)
class Packing:
  """How windows of N tokens are cut from a stream.

  'joined' (SEDD's OpenWebText): N tokens of the stream. 'wrapped' (MDLM's LM1B): BOS, N - 2 tokens
  of the stream, EOS; with bert-base-uncased these are [CLS] and [SEP]. What is left at the end of
  a stream is dropped.

  Attributes:
    length: N.
    begin, end: ids put around each piece of the stream.
  """

  length: int
  begin: tuple[int, ...] = ()
  end: tuple[int, ...] = ()

  @property
  def body(self) -> int:
    """Tokens of the stream in one window."""
    return self.length - len(self.begin) - len(self.end)

  def count(self, num_tokens: int) -> int:
    """How many windows a stream of that many tokens gives."""
    return num_tokens // self.body

  def windows(self, stream_T: np.ndarray) -> np.ndarray:
    """The windows of a stream, [count(T), N] of its dtype."""
    num_windows = self.count(len(stream_T))
    body_WxM = stream_T[: num_windows * self.body].reshape(num_windows, self.body)
    if not self.begin and not self.end:
      return body_WxM
    edge = lambda ids: np.tile(np.array(ids, stream_T.dtype), (num_windows, 1))
    return np.concatenate([edge(self.begin), body_WxM, edge(self.end)], axis=1)


def get_packing(name: str, length: int, tokenizer: Tokenizer) -> Packing:
  """The packing of that name, of those that cut a stream.

  Raises:
    UserError: there is none, or a window has no room for text.
  """
  if name not in STREAMS:
    raise UserError(f'packing {name!r} is unknown; write one of {", ".join(map(repr, STREAMS))}')
  wrapped = name == 'wrapped'
  least = 3 if wrapped else 1
  if length < least:
    raise UserError(f'the window length is {length}; write at least {least}')
  if wrapped:
    return Packing(length, (tokenizer.bos_id,), (tokenizer.eos_id,))
  return Packing(length)


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
  """The smallest unsigned dtype that holds the vocabulary."""
  return np.min_scalar_type(tokenizer.vocab_size - 1)


def pack(
  texts: Sequence[str], tokenizer: Tokenizer, packing: Packing, what: str = 'the text'
) -> np.ndarray:
  """Windows of documents in memory.

  Args:
    texts: the documents.
    tokenizer: gives the ids.
    packing: how the stream is cut.
    what: the text's name in the error, such as 'the held-out text'.
  Returns:
    windows_WxN: of `token_dtype`.
  Raises:
    UserError: the text is shorter than one window.

  Examples:
    >>> from armd_jax.data.tokenizers import ByteTokenizer
    >>> pack(['ab', 'c', 'de'], ByteTokenizer(), Packing(4)).tolist()
    [[97, 98, 256, 99], [256, 100, 101, 256]]
  """
  dtype = token_dtype(tokenizer)
  eos_1 = np.array([tokenizer.eos_id], dtype)
  parts = [np.empty(0, dtype)]
  for text in texts:
    parts += [tokenizer.encode(text).astype(dtype), eos_1]
  stream_T = np.concatenate(parts)
  check_not_short(len(stream_T), packing, what)
  return packing.windows(stream_T)


def check_not_short(num_tokens: int, packing: Packing, what: str) -> None:
  """Refuses a stream that does not fill a window.

  Raises:
    UserError: if it does not.
  """
  if num_tokens < packing.body:
    fits = num_tokens + packing.length - packing.body
    raise UserError(
      f'{what} has {num_tokens} tokens, fewer than one window of {packing.length}; '
      f'give more text or a length of at most {fits}'
    )


def text_bytes(windows_WxN: np.ndarray, tokenizer: Tokenizer) -> int:
  """UTF-8 bytes of the text that windows hold; nats summed over them divide to nats per byte.

  Counted id by id, since a window may start or end inside a character; EOS is no text, and what is
  not scored (`documents`) does not count.
  """
  num_of_id_V = np.bincount(windows_WxN[windows_WxN >= 0], minlength=tokenizer.vocab_size)
  return int(num_of_id_V @ tokenizer.token_bytes_V.astype(np.int64))

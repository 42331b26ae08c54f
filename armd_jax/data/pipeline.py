"""From documents to training batches.

`pack` cuts a text into windows; `training_batches` streams them forever. The example at global
index i is a pure function of (seed, i): window `shuffle(seed, i // W)[i % W]` of the W windows. So
the next global index is all there is to save, and it still holds after the batch size or the
number of processes changes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError


def pack(
  texts: Sequence[str], tokenizer: Tokenizer, length: int, what: str = 'the text'
) -> np.ndarray:
  """Joins documents, each followed by EOS, and cuts them into windows; the remainder is dropped.

  Args:
    texts: the documents.
    tokenizer: gives the ids.
    length: N, tokens of a window.
    what: the text's name in the error, such as 'the held-out text'.
  Returns:
    windows_WxN: the smallest unsigned dtype that holds the vocabulary.
  Raises:
    UserError: the text is shorter than one window.

  >>> from armd_jax.data.tokenizers import ByteTokenizer
  >>> pack(['ab', 'c', 'de'], ByteTokenizer(), 4).tolist()
  [[97, 98, 256, 99], [256, 100, 101, 256]]
  """
  if length < 1:
    raise UserError(f'the window length is {length}; write at least 1')
  dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
  eos_1 = np.array([tokenizer.eos_id], dtype)
  parts = [np.empty(0, dtype)]
  for text in texts:
    parts += [tokenizer.encode(text).astype(dtype), eos_1]
  tokens = np.concatenate(parts)
  num_windows = len(tokens) // length
  if not num_windows:
    raise UserError(
      f'{what} has {len(tokens)} tokens, fewer than one window of {length}; '
      f'give more text or a length of at most {len(tokens)}'
    )
  return tokens[: num_windows * length].reshape(num_windows, length)


def text_bytes(windows_WxN: np.ndarray, tokenizer: Tokenizer) -> int:
  """UTF-8 bytes of the text that windows hold; nats summed over them divide to nats per byte.

  Counted id by id, since a window may start or end inside a character; EOS is no text.
  """
  num_of_id_V = np.bincount(np.ravel(windows_WxN), minlength=tokenizer.vocab_size)
  return int(num_of_id_V @ tokenizer.token_bytes_V.astype(np.int64))


class Batch(NamedTuple):
  """One process's part of a global batch of B examples; P processes share it.

  Attributes:
    tokens_BxN: int32 [B/P, N].
    index_B: int64 [B/P], global index of each example.
  """

  tokens_BxN: np.ndarray
  index_B: np.ndarray


class TrainingBatches(Iterator[Batch]):
  """The endless stream made by `training_batches`.

  Attributes:
    next_index: global index of the first example not yet yielded, the stream's whole state;
      the same on every process. Saved, and given as `start_index`, it goes on from there.
  """

  def __init__(self, batches: grain.DatasetIterator[Batch], next_index: int, batch_size: int):
    self._batches = batches
    self._batch_size = batch_size
    self.next_index = next_index

  def __next__(self) -> Batch:
    batch = next(self._batches)
    self.next_index += self._batch_size
    return batch

  def close(self) -> None:
    """Stops the threads that read ahead; `next` raises ValueError from here on."""
    self._batches.close()


def training_batches(
  windows_WxN: Sequence[np.ndarray],
  batch_size: int,
  seed: int,
  start_index: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 1,
) -> TrainingBatches:
  """Shuffled batches for ever, each window once an epoch, every epoch in another order.

  A batch holds the examples `[i, i + batch_size)`, over the end of an epoch too; process p of P
  gets the p-th of P equal runs of them.

  Args:
    windows_WxN: the training windows, anything with a length and random access.
    batch_size: B, examples of a global batch, over all processes.
    seed: of the shuffle, 0..2**32 - 1.
    start_index: global index of the first example; any, it need not be a multiple of B.
    process_index: p.
    process_count: P.
    num_threads: threads that read ahead; one is enough for windows in memory.
  Raises:
    UserError: B is not a positive multiple of P, the seed, start or process is out of range, or
      there are no windows.
  """
  if not 0 <= process_index < process_count:
    raise UserError(
      f'process_index is {process_index}; write one of 0 to {process_count - 1}, since '
      f'process_count is {process_count}'
    )
  if batch_size < 1 or batch_size % process_count:
    raise UserError(
      f'batch_size is {batch_size}, which {process_count} processes cannot share equally; '
      f'write a positive multiple of {process_count}'
    )
  if not 0 <= seed < 2**32:
    raise UserError(f'the data seed is {seed}; write an integer from 0 to {2**32 - 1}')
  if start_index < 0:
    raise UserError(f'start_index is {start_index}; write 0, or the index a checkpoint holds')
  if not len(windows_WxN):
    raise UserError('there are no windows to train on; give more text')
  start_index = int(start_index)  # a restored one may be an array, and the indices are Python's
  # grain shuffles epoch e by `shuffle seed + e`; `.seed` hashes ours first, without which seed 1
  # would be seed 0 one epoch late.
  examples = grain.MapDataset.source(windows_WxN).seed(seed).shuffle().repeat()
  local_size = batch_size // process_count
  local_B = process_index * local_size + np.arange(local_size)

  def local_batch(first_index: int) -> Batch:
    index_B = first_index + local_B
    return Batch(np.stack([examples[int(i)] for i in index_B]).astype(np.int32), index_B)

  # One element a batch, so that neither the start nor an epoch need be a multiple of its size.
  starts = grain.MapDataset.range(start_index, sys.maxsize - batch_size, batch_size)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4 * num_threads)
  batches = starts.map(local_batch).to_iter_dataset(options)
  return TrainingBatches(iter(batches), start_index, batch_size)

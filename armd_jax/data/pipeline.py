"""From windows to training batches.

The example at global index i is a pure function of (seed, i): window `shuffle(seed, i // W)[i % W]`
of the W windows; in a mixture, of those of the corpus whose turn it is, with the number of the
corpus's examples so far for i (`Mixture.turn`). So the next global index is all there is to save,
and it still holds after the batch size or the number of processes changes.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from armd_jax.data import workers
from armd_jax.data.mixture import Mixture, parts_of
from armd_jax.errors import UserError

# Batches ready beyond these only cost memory.
_ENOUGH = 16


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
      the same on every process. Given as `start_index`, it continues the stream.
    input_seconds: how long the last `next` took; above a millisecond, the step waited for data.
  """

  def __init__(self, batches: grain.DatasetIterator[Batch], next_index: int, batch_size: int):
    self._batches = batches
    self._close = weakref.finalize(self, batches.close)  # also at the program's end
    self._batch_size = batch_size
    self.next_index = next_index
    self.input_seconds = 0.0

  def __next__(self) -> Batch:
    begin = time.perf_counter()
    with workers.shielded():  # the first one starts the workers, and a step that saves needs them
      batch = next(self._batches)
    self.input_seconds = time.perf_counter() - begin
    self.next_index += self._batch_size
    return batch

  def close(self) -> None:
    """Stops what reads ahead; `next` raises ValueError from here on."""
    self._close()


def training_batches(
  windows_WxN: np.ndarray | Sequence[np.ndarray],
  batch_size: int,
  seed: int,
  start_index: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  prefetch_bytes: int = 2**28,
) -> TrainingBatches:
  """Shuffled batches for ever, each window once an epoch, every epoch in another order.

  Each corpus of a mixture has epochs of its own.

  A batch holds the examples `[i, i + batch_size)`, over the end of an epoch too; process p of P
  gets the p-th of P equal runs of them.

  Args:
    windows_WxN: the training windows, anything with a length and random access.
    batch_size: B, examples of a global batch, over all processes.
    seed: of the shuffle, 0..2**32 - 1.
    start_index: global index of the first example; any, it need not be a multiple of B.
    process_index: p.
    process_count: P.
    num_workers: processes that read ahead, which import the program's main file; 0: a thread.
    prefetch_bytes: most memory of the batches that are ready or in the making.
  Raises:
    UserError: B is not a positive multiple of P, the seed, start or process is out of range, there
      are no windows, or the memory does not hold the batches that the workers must have at hand.
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
  examples_of = [
    grain.MapDataset.source(windows).seed(seed).shuffle().repeat()
    for windows in parts_of(windows_WxN).values()
  ]
  turn = windows_WxN.turn if isinstance(windows_WxN, Mixture) else lambda index: (0, index)

  def example(index: int) -> np.ndarray:
    corpus, place = turn(index)
    return examples_of[corpus][place]

  local_size = batch_size // process_count
  local_B = process_index * local_size + np.arange(local_size)

  def local_batch(first_index: int) -> Batch:
    index_B = first_index + local_B
    return Batch(np.stack([example(int(i)) for i in index_B]).astype(np.int32), index_B)

  # One element a batch, so that neither the start nor an epoch need be a multiple of its size.
  starts = grain.MapDataset.range(start_index, sys.maxsize - batch_size, batch_size)
  batch_bytes = local_size * (4 * len(windows_WxN[0]) + 8)
  ready = _batches_ready(prefetch_bytes, batch_bytes, num_workers)
  threads = grain.ReadOptions(num_threads=0 if num_workers else 1, prefetch_buffer_size=ready)
  batches = starts.map(local_batch).to_iter_dataset(threads)
  if num_workers:
    if not flags.FLAGS.is_parsed():  # grain reads flags of its own, in notebooks and tests, too
      flags.FLAGS.mark_as_parsed()
    # Batches come through pipes: shared memory would outlive a run that is killed.
    pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    batches = grain.experimental.WithOptionsIterDataset(batches, pipes)
    processes = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=ready)
    batches = batches.mp_prefetch(processes, worker_init_fn=_start_worker)
  return TrainingBatches(iter(batches), start_index, batch_size)


def _batches_ready(prefetch_bytes: int, batch_bytes: int, num_workers: int) -> int:
  """How many batches the thread keeps ready, or each process and, again, its hand-over.

  Beside them each has one in the making, and the hand-over one more.
  """
  most = prefetch_bytes // batch_bytes
  least = 4 * num_workers if num_workers else 2
  if most < least:
    mib = -(-least * batch_bytes // 2**20)
    raise UserError(
      f'config.data.prefetch_mib is {prefetch_bytes // 2**20}, too little for the batches of '
      f'{batch_bytes} bytes that {num_workers or "no"} workers read ahead; write at least {mib}'
    )
  return min(_ENOUGH, (most // num_workers - 2) // 2 if num_workers else most - 1)


def _start_worker(worker_index: int, worker_count: int) -> None:
  del worker_index, worker_count  # grain reports the first; all have the same shape
  workers.exit_with_parent()

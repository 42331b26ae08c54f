"""Packing, byte counts and the training stream."""

import itertools
import pathlib

import numpy as np
import pytest

from armd_jax.data import pipeline, sources, tokenizers
from armd_jax.errors import UserError

TOKENIZER = tokenizers.ByteTokenizer()
SHARED = pathlib.Path(__file__).parents[3] / 'shared/data/train/moby_dick.txt'
# 10 windows; window w holds 100 w, 100 w + 1, 100 w + 2.
WINDOWS = (100 * np.arange(10)[:, None] + np.arange(3)).astype(np.uint16)


@pytest.fixture
def stream():
  """`training_batches`, closed after the test."""
  made = []

  def make(windows=WINDOWS, batch_size=4, seed=0, *args, **kwargs):
    made.append(pipeline.training_batches(windows, batch_size, seed, *args, **kwargs))
    return made[-1]

  yield make
  for batches in made:
    batches.close()


def take(batches, num_batches):
  """Windows by number, int [num_batches B], and the global indices they came with."""
  taken = list(itertools.islice(batches, num_batches))
  tokens = np.concatenate([batch.tokens_BxN for batch in taken])
  np.testing.assert_array_equal(tokens, WINDOWS[tokens[:, 0] // 100])
  return tokens[:, 0] // 100, np.concatenate([batch.index_B for batch in taken])


def test_windows_hold_the_text_and_an_eos_after_each_document():
  texts = ['abc', '', 'né', 'z' * 20]
  windows = pipeline.pack(texts, TOKENIZER, 5)
  expected = [i for text in texts for i in [*text.encode(), 256]]
  assert windows.shape == (len(expected) // 5, 5)
  assert windows.ravel().tolist() == expected[: windows.size]
  assert len(expected) - windows.size < 5


@pytest.mark.parametrize(
  ('vocab_size', 'dtype'), [(256, 'uint8'), (257, 'uint16'), (65536, 'uint16'), (65537, 'uint32')]
)
def test_dtype_is_the_smallest_that_fits(vocab_size, dtype):
  class Wide(tokenizers.ByteTokenizer):
    eos_id = vocab_size - 1

  Wide.vocab_size = vocab_size
  windows = pipeline.pack(['abc'], Wide(), 2)
  assert windows.dtype == dtype
  assert windows[1].tolist() == [ord('c'), vocab_size - 1]


def test_a_text_shorter_than_a_window_is_an_error():
  with pytest.raises(UserError, match='the held-out text has 4 tokens, fewer than one window of 5'):
    pipeline.pack(['abc'], TOKENIZER, 5, 'the held-out text')
  with pytest.raises(UserError, match='has 0 tokens'):
    pipeline.pack([], TOKENIZER, 5)
  with pytest.raises(UserError, match='window length is 0'):
    pipeline.pack(['abc'], TOKENIZER, 0)
  assert pipeline.pack(['abc'], TOKENIZER, 4).shape == (1, 4)


def test_bytes_of_the_scored_text():
  texts = ['naïve', 'x' * 9, '…' * 4]  # windows of 3 cut characters in two
  windows = pipeline.pack(texts, TOKENIZER, 3)
  assert pipeline.text_bytes(windows, TOKENIZER) == windows.size - 3 == len(''.join(texts).encode())
  assert isinstance(pipeline.text_bytes(windows, TOKENIZER), int)

  class Doubled(tokenizers.ByteTokenizer):  # every id stands for two bytes
    def __init__(self):
      super().__init__()
      self.token_bytes_V = 2 * self.token_bytes_V

  assert pipeline.text_bytes(windows, Doubled()) == 2 * np.sum(windows != 256)


def test_each_epoch_is_another_permutation(stream):
  window, index = take(stream(batch_size=4), 50)  # 20 epochs; batches reach over their ends
  np.testing.assert_array_equal(index, np.arange(200))
  epochs = window.reshape(20, 10)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (20, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 20
  # No window has a place of its own: each stands first in some epoch and last in another.
  assert len(set(epochs[:, 0])) > 4 and len(set(epochs[:, -1])) > 4


def test_an_example_is_a_function_of_seed_and_index(stream):
  window, _ = take(stream(batch_size=4), 20)
  for batch_size, start_index in [(1, 0), (4, 4), (5, 3), (7, 27), (16, 11)]:
    batches = stream(WINDOWS, batch_size, 0, start_index)
    other, index = take(batches, 3)
    np.testing.assert_array_equal(index, start_index + np.arange(3 * batch_size))
    np.testing.assert_array_equal(other, window[index])
  np.testing.assert_array_equal(take(stream(num_threads=4), 20)[0], window)
  np.testing.assert_array_equal(take(stream(num_threads=0), 20)[0], window)


def test_seeds_are_unrelated(stream):
  by_seed = [take(stream(seed=seed), 20)[0].reshape(8, 10) for seed in range(8)]
  epochs = [tuple(epoch) for epochs in by_seed for epoch in epochs]
  # Of 10! orders two of 64 agree by chance once in 1,800 runs; seed + epoch would repeat most.
  assert len(set(epochs)) == 64


def test_the_whole_state_is_the_next_index(stream):
  straight, _ = take(stream(batch_size=6), 12)
  batches = stream(batch_size=6)
  assert batches.next_index == 0
  before, _ = take(batches, 5)
  assert batches.next_index == 30  # whatever was read ahead
  after, index = take(stream(WINDOWS, 6, 0, np.int64(batches.next_index)), 7)
  assert index[0] == 30
  np.testing.assert_array_equal(np.concatenate([before, after]), straight)


def test_order_is_what_it_was(stream):
  # Saved runs must go on as they began: another order, even by a new grain, is a breaking change.
  window, _ = take(stream(batch_size=10, seed=123), 2)
  assert window.tolist() == [1, 9, 0, 4, 6, 8, 2, 7, 5, 3, 1, 8, 7, 6, 4, 0, 9, 2, 5, 3]


@pytest.mark.parametrize('process_count', [1, 2, 3, 6])
def test_processes_share_a_batch_in_order(stream, process_count):
  whole = stream(WINDOWS, 6, 5, 9)
  parts = [stream(WINDOWS, 6, 5, 9, p, process_count) for p in range(process_count)]
  for _ in range(7):
    batch, pieces = next(whole), [next(part) for part in parts]
    for field in ('tokens_BxN', 'index_B'):
      pieces_of_field = [getattr(piece, field) for piece in pieces]
      assert all(len(piece) == 6 // process_count for piece in pieces_of_field)
      np.testing.assert_array_equal(np.concatenate(pieces_of_field), getattr(batch, field))
    # One checkpoint serves all processes, and any other number of them.
    assert {part.next_index for part in parts} == {whole.next_index}


def test_batches_are_int32_and_belong_to_the_caller(stream):
  windows = WINDOWS.copy()
  batches = stream(windows, 4, 0)
  batch = next(batches)
  assert batch.tokens_BxN.dtype == np.int32 and batch.tokens_BxN.shape == (4, 3)
  assert batch.index_B.dtype == np.int64 and batch.index_B.shape == (4,)
  batch.tokens_BxN[:] = 0
  np.testing.assert_array_equal(windows, WINDOWS)


def test_far_indices_and_a_single_window(stream):
  start = 2**40 + 3
  window, index = take(stream(WINDOWS, 4, 0, start), 2)
  np.testing.assert_array_equal(index, start + np.arange(8))
  assert set(window) <= set(range(10))
  assert take(stream(WINDOWS[:1], 4, 0), 2)[0].tolist() == [0] * 8


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'process_count': 3}, 'batch_size is 4, which 3 processes'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'process_index': 2, 'process_count': 2}, 'process_index is 2; write one of 0 to 1'),
    ({'process_index': -1}, 'process_index is -1'),
    ({'seed': -1}, 'data seed is -1'),
    ({'seed': 2**32}, 'data seed is 4294967296'),
    ({'start_index': -1}, 'start_index is -1'),
    ({'windows': WINDOWS[:0]}, 'no windows'),
  ],
)
def test_bad_input(stream, change, message):
  with pytest.raises(UserError, match=message):
    stream(**change)


@pytest.mark.skipif(not SHARED.exists(), reason=f'real text is not at {SHARED}')
def test_real_text_survives_packing():
  documents = sources.load_documents(str(SHARED))
  windows = pipeline.pack(documents.texts, TOKENIZER, 256)
  text = ''.join(documents.texts)
  decoded = TOKENIZER.decode(windows.ravel())
  assert text.startswith(decoded[:-1])  # the last character may be cut
  assert documents.num_bytes - 256 < pipeline.text_bytes(windows, TOKENIZER) <= documents.num_bytes

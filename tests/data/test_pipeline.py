"""The training stream: order, position, sharing among processes, reading ahead."""

import itertools
import os
import signal
import subprocess
import sys
import time

import corpora
import numpy as np
import pytest

from armd_jax.data import pipeline, prepare, prepared
from armd_jax.data.packing import Packing
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.errors import UserError

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
    ({'prefetch_bytes': 159}, 'prefetch_mib is 0, too little for the batches of 80 bytes'),
    ({'prefetch_bytes': 639, 'num_workers': 2}, '2 workers read ahead; write at least 1'),
  ],
)
def test_bad_input(stream, change, message):
  with pytest.raises(UserError, match=message):
    stream(**change)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A prepared corpus in several files, as windows of 64 bytes."""
  folder = tmp_path_factory.mktemp('corpus')
  source = corpora.write_text(folder / 'text.txt', corpora.documents(300))
  prepare.prepare(source, 'bytes', str(folder / 'out'), held_out=0.1, part_bytes=20_000)
  return prepared.Prepared(str(folder / 'out')).windows('train', ByteTokenizer(), Packing(64))


@pytest.mark.parametrize(('process_count', 'num_workers'), [(1, 0), (2, 0), (4, 0), (1, 2), (2, 2)])
def test_the_global_batch_has_nothing_to_do_with_who_reads_it(
  corpus, stream, process_count, num_workers
):
  """Neither the number of hosts nor that of worker processes; over the end of an epoch, too."""
  start = len(corpus) - 10
  expected = [corpus[i] for i in _shuffled(len(corpus), seed=3, start=start, count=32)]
  parts = [
    stream(corpus, 8, 3, start, p, process_count, num_workers=num_workers)
    for p in range(process_count)
  ]
  batches = [np.concatenate([next(part).tokens_BxN for part in parts]) for _ in range(4)]
  np.testing.assert_array_equal(np.concatenate(batches), expected)


def _shuffled(num_windows, seed, start, count):
  """Window numbers of a stretch of the stream, by a stream of those numbers."""
  numbers = np.arange(num_windows, dtype=np.uint32)[:, None]
  batches = pipeline.training_batches(numbers, 1, seed, start)
  taken = [int(next(batches).tokens_BxN[0, 0]) for _ in range(count)]
  batches.close()
  return taken


class Recorded:
  """Windows of zeros; every read leaves a byte in a file."""

  def __init__(self, path):
    self.path = path

  def __len__(self):
    return 10**6

  def __getitem__(self, index):
    with open(self.path, 'ab') as file:
      file.write(b'.')
    return np.zeros(1024, np.uint16)


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('ready', [8, 12])
def test_no_more_is_read_ahead_than_the_memory_holds(tmp_path, stream, num_workers, ready):
  path = tmp_path / 'reads'
  batch_size = 4
  batch_bytes = batch_size * (1024 * 4 + 8)
  batches = stream(
    Recorded(path), batch_size, num_workers=num_workers, prefetch_bytes=ready * batch_bytes
  )
  for _ in range(3):
    next(batches)
  # Asking for a window's length reads one; the last batch given is in the caller's hands.
  held = lambda: (path.stat().st_size - 1) / batch_size - 3
  deadline, before = time.time() + 60, -1
  while held() < ready - 1 or held() != before:
    assert time.time() < deadline
    before = held()
    time.sleep(0.5)
  assert held() <= ready


def test_input_seconds_are_what_next_took(stream):
  read = []

  class Slow(Recorded):
    def __getitem__(self, index):
      time.sleep(0.1)
      read.append(index)
      return np.zeros(4, np.uint16)

  batches = stream(Slow(None), 2)
  begin = time.perf_counter()
  next(batches)
  assert 0.15 < batches.input_seconds < time.perf_counter() - begin
  deadline = time.time() + 60
  while len(read) < 9:  # the next batches are ready
    assert time.time() < deadline
    time.sleep(0.1)
  next(batches)
  assert batches.input_seconds < 0.1


@pytest.mark.skipif(not os.path.isdir('/dev/shm'), reason='looks at Linux shared memory')
def test_workers_outlive_sigterm_and_end_with_a_killed_program(tmp_path):
  """Slurm sends SIGTERM to them, too, while the program still needs batches to save."""
  program = tmp_path / 'program.py'
  program.write_text(
    'import multiprocessing, time\n'
    'import numpy as np\n'
    'from armd_jax.data import pipeline\n'
    "if __name__ == '__main__':\n"
    '  windows = np.zeros((9, 1024), np.uint8)\n'
    '  batches = pipeline.training_batches(windows, 32, 0, num_workers=2)\n'
    '  next(batches)\n'
    '  print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n'
    '  input()\n'
    '  for _ in range(100): next(batches)\n'
    '  print("served", flush=True)\n'
    '  time.sleep(1000)\n'
  )
  shared = set(os.listdir('/dev/shm'))
  process = subprocess.Popen(
    [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  pids = [int(pid) for pid in process.stdout.readline().split()]
  assert len(pids) == 2
  for pid in pids:  # one of them is hardly started
    os.kill(pid, signal.SIGTERM)
  process.stdin.write('\n')
  process.stdin.flush()
  assert process.stdout.readline() == 'served\n'
  assert all(map(is_alive, pids))
  process.send_signal(signal.SIGKILL)
  process.wait()
  deadline = time.time() + 30
  while any(map(is_alive, pids)):
    assert time.time() < deadline
    time.sleep(0.05)
  # Nor is memory left behind.
  assert not [name for name in set(os.listdir('/dev/shm')) - shared if name.startswith('psm_')]


def is_alive(pid):
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False

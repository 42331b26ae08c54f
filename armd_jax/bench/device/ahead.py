"""Compiles many programs in threads before the first of them is timed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from armd_jax.bench.device.rows import MIN_SECONDS, NO_TIME, Rows

THREADS = 6
SHARE = 0.65  # of the time that is left, after which timing begins although something compiles
LOCK = 'compiling.lock'


def compiled_ahead(
  rows: Rows,
  keys: Sequence[str],
  compile_: Callable[[str], Any],
  measure: Callable[[str, Any, int], Mapping[str, Any]],
  last: Callable[[], None] = lambda: None,
) -> None:
  """Measures every key.

  Processes of a stage that run side by side compile at the same time, and measure one by one.

  Args:
    rows: take what is measured. What could not be begun in time is skipped.
    keys: in order of worth.
    compile_: makes the program of a key, in a thread.
    measure: gives the numbers of a row; takes the key, its program, and how many programs are
      being compiled beside it.
    last: is called when all are measured, while no other process measures.
  """
  with concurrent.futures.ThreadPoolExecutor(1 if rows.dry else THREADS) as pool:
    with _locked(rows, fcntl.LOCK_SH):
      futures = {pool.submit(compile_, key): key for key in keys}
      concurrent.futures.wait(futures, timeout=max(1, SHARE * rows.left()))
    for future in [future for future in futures if future.cancel()]:
      rows.add(futures.pop(future), skipped=NO_TIME)
    busy = lambda: sum(future.running() for future in futures)
    with _locked(rows, fcntl.LOCK_EX):
      while futures:
        left = max(1, rows.left() - MIN_SECONDS)
        concurrent.futures.wait(futures, left, concurrent.futures.FIRST_COMPLETED)
        done = next((future for future in futures if future.done()), None)
        if done is None:
          for key in futures.values():
            rows.add(key, skipped=f'{NO_TIME}: still compiling')
          break
        key = futures.pop(done)  # frees the program, once it is measured
        rows.measure(key, lambda key=key, done=done: measure(key, done.result(), busy()))
        del done
      last()


@contextlib.contextmanager
def _locked(rows: Rows, kind: int) -> Iterator[None]:
  """Holds the lock of all processes; goes on without where others keep it for too long."""
  until = time.time() + SHARE * rows.left()
  with (rows.job.kept / LOCK).open('a') as file:
    while time.time() < until:
      try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        time.sleep(0.1)
    yield

"""Compiles many programs in threads before the first of them is timed."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from armd_jax.bench.device import kernels
from armd_jax.bench.device.rows import MIN_SECONDS, NO_TIME, Rows

THREADS = 6
SHARE = 0.65  # of the time that is left, after which timing begins although something compiles
LOCK = 'compiling.lock'


def compiled_ahead(
  rows: Rows,
  keys: Sequence[str],
  compile_: Callable[[str], Any],
  measure: Callable[[str, Any, int], Mapping[str, Any]],
  traced: Mapping[str, Callable[[Any], Mapping[str, Any]]] | None = None,
) -> int:
  """Measures every key whose row is not there, and returns the exit code of the process.

  Processes of a stage that run side by side compile at the same time, and measure one by one.

  Args:
    rows: take what is measured. What could not be begun in time is skipped.
    keys: in order of worth.
    compile_: makes the program of a key, in a thread.
    measure: gives the numbers of a row; takes the key, its program, and how many programs or
      processes compile or measure beside it.
    traced: by key, what makes of its program a row of the stage `kernels`, when all are measured:
      a profiler slows down what runs after it.
  """
  traces, kept = rows.of(kernels.STAGE), {}
  traced = {key: trace for key, trace in (traced or {}).items() if not traces.has(key)}
  keys = [key for key in keys if not rows.has(key) or key in traced]
  with concurrent.futures.ThreadPoolExecutor(1 if rows.dry else THREADS) as pool:
    with _locked(rows, fcntl.LOCK_SH):
      futures = {pool.submit(compile_, key): key for key in keys}
      concurrent.futures.wait(futures, timeout=max(1, SHARE * rows.left()))
    # Of a key that is there, the trace alone is missing.
    skip = lambda key, why: (traces if rows.has(key) else rows).add(key, skipped=why)
    for future in [future for future in futures if future.cancel()]:
      skip(futures.pop(future), NO_TIME)
    with _locked(rows, fcntl.LOCK_EX) as alone:
      busy = lambda: sum(future.running() for future in futures) + (not alone)
      while futures:
        left = max(1, rows.left() - MIN_SECONDS)
        concurrent.futures.wait(futures, left, concurrent.futures.FIRST_COMPLETED)
        done = next((future for future in futures if future.done()), None)
        if done is None:
          for key in futures.values():
            skip(key, f'{NO_TIME}: still compiling')
          break
        key = futures.pop(done)  # frees the program, once it is measured
        if key in traced and not done.exception():
          kept[key] = done.result()
        rows.measure(key, lambda key=key, done=done: measure(key, done.result(), busy()))
        del done
      for key, program in kept.items():
        traces.measure(key, functools.partial(traced[key], program))
  return rows.exit_code() or traces.exit_code()


@contextlib.contextmanager
def _locked(rows: Rows, kind: int) -> Iterator[bool]:
  """Holds the lock of all processes; gives False where others keep it for too long."""
  until, held = time.time() + SHARE * rows.left(), False
  with (rows.job.kept / LOCK).open('ab') as file:
    while not held and time.time() < until:
      try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        held = True
      except BlockingIOError:
        time.sleep(0.1)
    yield held

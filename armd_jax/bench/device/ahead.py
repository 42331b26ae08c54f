"""Compiles many programs in threads before the first of them is timed."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armd_jax.bench.device.rows import MIN_SECONDS, NO_TIME, Rows

THREADS = 6
SHARE = 0.65  # of the time that is left, after which timing begins although something compiles


def compiled_ahead(
  rows: Rows,
  keys: Sequence[str],
  compile_: Callable[[str], Any],
  measure: Callable[[str, Any, int], Mapping[str, Any]],
) -> None:
  """Measures every key whose row is not there, in order.

  Args:
    rows: take what is measured. What could not be begun in time is skipped.
    keys: in order of worth.
    compile_: makes the program of a key, in a thread.
    measure: gives the numbers of a row; takes the key, its program, and how many programs are
      being compiled beside it.
  """
  keys = [key for key in keys if not rows.has(key)]
  with concurrent.futures.ThreadPoolExecutor(1 if rows.dry else THREADS) as pool:
    futures = {key: pool.submit(compile_, key) for key in keys}
    concurrent.futures.wait(futures.values(), timeout=max(1, SHARE * rows.left()))
    late = {key for key, future in futures.items() if future.cancel()}
    busy = lambda: sum(future.running() for future in futures.values())
    for key in keys:
      future = futures.pop(key)  # frees the program, once it is measured
      if key in late:
        rows.add(key, skipped=NO_TIME)
        continue

      def numbers(key=key, future=future):
        try:
          program = future.result(timeout=max(1, rows.left() - MIN_SECONDS))
        except concurrent.futures.TimeoutError:
          return {'skipped': f'{NO_TIME}: still compiling'}
        return measure(key, program, busy())

      rows.measure(key, numbers)

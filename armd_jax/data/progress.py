"""How far a preparation is, where there is no terminal for a bar."""

from __future__ import annotations

import sys
import time

_SECONDS_A_LINE = 30


class Lines:
  """A line now and then, and one at the end."""

  def __init__(self, total: int, is_on: bool):
    self._total, self._is_on = total, is_on
    self._done, self._begin, self._told = 0, time.perf_counter(), 0.0

  def update(self, num_bytes: int) -> None:
    self._done += num_bytes
    seconds = time.perf_counter() - self._begin
    if self._is_on and (seconds - self._told > _SECONDS_A_LINE or self._done >= self._total):
      self._told = seconds
      print(
        f'prepare: {self._done / 1e6:.1f} of {self._total / 1e6:.1f} MB, '
        f'{self._done / 1e6 / seconds:.1f} MB/s',
        file=sys.stderr, flush=True,
      )  # fmt: skip

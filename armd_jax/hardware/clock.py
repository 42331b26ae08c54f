"""Interleaved timing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def interleaved(
  calls: Mapping[Any, Callable[[], Any]], repeats: int, warm_up: int = 1
) -> dict[Any, list[float]]:
  """Seconds of every call, taken in turns, so that a busy moment of the machine hits all alike.

  Args:
    calls: by name; each does its whole work, and what it returns is waited for.
    repeats: rounds; every other one runs backwards.
    warm_up: rounds before, not counted.
  """
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for turn in range(-warm_up, repeats):
    names = list(calls) if turn % 2 == 0 else list(calls)[::-1]
    for name in names:
      start = time.perf_counter()
      jax.block_until_ready(calls[name]())
      if turn >= 0:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def medians(seconds: Mapping[Any, Sequence[float]]) -> dict[Any, float]:
  return {name: statistics.median(values) for name, values in seconds.items()}

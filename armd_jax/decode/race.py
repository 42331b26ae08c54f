"""One text token by token beside one in several streams, on one clock."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np

from armd_jax.decode.live import pieces
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request

_SECONDS = 12.0  # that the slowest text takes on the screen
_FRAMES = 15  # a second
_ROUNDS = 5  # that are timed


def run(
  decoder: Decoder,
  request: Request,
  streams: Sequence[int],
  sampling: Sampling,
  out: TextIO,
) -> str:
  """Times the first text of the request for every S, then, on a terminal, shows all of them grow
  at one slowed-down clock.

  Args:
    decoder: a trained model.
    request: what to complete.
    streams: stride counts S.
    sampling: how tokens are drawn.
    out: where.
  Returns:
    The median times, and the first one's over the last one's, in a sentence.
  """
  one = request.replace(
    tokens_BxN=request.tokens_BxN[:1],
    given_BxN=request.given_BxN[:1],
    length_B=request.length_B[:1],
  )
  times: dict[int, list[float]] = {count: [] for count in streams}
  for round_ in range(_ROUNDS + 1):
    for count in streams:  # in turns, so that a busy moment slows all alike
      begin = time.perf_counter()
      decoder.complete(one, count, sampling)
      if round_:  # the first one compiles
        times[count].append(time.perf_counter() - begin)
  runs = []
  for count in streams:
    parts = decoder.parts(one, count, sampling, chunk=1)
    shown = [(np.asarray(part.tokens_BxN)[0], known_BxN[0]) for part, known_BxN in parts]
    runs.append((count, float(np.median(times[count])), shown))
  longest = max(seconds for _, seconds, _ in runs)
  if out.isatty():
    _show(decoder, runs, longest, out)
  told = [f'S = {count} took {1e3 * seconds:.0f} ms' for count, seconds, _ in runs]
  return f'{", ".join(told)}: {runs[0][1] / runs[-1][1]:.1f} times as fast'


def _show(
  decoder: Decoder, runs: list[tuple[int, float, Any]], longest: float, out: TextIO
) -> None:
  slower = max(_SECONDS / longest, 1.0)
  screen = shutil.get_terminal_size()
  height = max(2, (screen.lines - 2 * len(runs)) // len(runs) - 1)
  begin, drawn, is_over = time.perf_counter(), 0, False
  while not is_over:
    clock = (time.perf_counter() - begin) / slower
    is_over = clock >= longest
    lines = []
    for count, seconds, shown in runs:
      share = min(clock / seconds, 1.0)
      tokens_N, known_N = shown[round(share * (len(shown) - 1))]
      there = int(known_N.sum())
      bar = '#' * (30 * there // len(known_N))
      lines.append(
        f'S = {count:<3} [{bar:30}] {there:5} tokens, {1e3 * min(clock, seconds):.0f} ms'
      )
      grown = pieces(decoder.tokenizer, tokens_N, known_N, screen.columns)[:height]
      lines += grown + [''] * (min(count, height) - len(grown))
    if drawn:
      out.write(f'\x1b[{drawn}F\x1b[J')
    out.write('\n'.join(lines) + f'\nshown {slower:.0f} times slower\n')
    out.flush()
    drawn = len(lines) + 1
    time.sleep(1 / _FRAMES)

"""Text on a terminal while it is generated: every stream on a line of its own, and tokens/s."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

import numpy as np

from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode.step import Generated


def pieces(
  tokenizer: Tokenizer, tokens_N: np.ndarray, known_N: np.ndarray, width: int
) -> list[str]:
  """What is there of a text: a line for each unbroken piece, its position and its end.

  Args:
    tokenizer: of the ids.
    tokens_N: int32, in text order.
    known_N: bool, which are there.
    width: characters of a line.

  Examples:
    >>> from armd_jax.data.tokenizers import ByteTokenizer
    >>> text, known = np.frombuffer(b'Once upon a time', np.uint8), np.arange(16) % 8 < 5
    >>> pieces(ByteTokenizer(), text, known, 12)
    ['    1| Once ', '    9| n a t']
  """
  edges = np.flatnonzero(np.diff(known_N, prepend=False, append=False))
  lines = []
  for first, end in edges.reshape(-1, 2):
    # A token is at least one character, or part of one.
    text = tokenizer.decode(tokens_N[max(first, end - 4 * width) : end])
    text = ''.join(c if c.isprintable() else ' ' for c in text)
    lines.append(f'{first + 1:5}| ' + text[-max(width - 7, 1) :])
  return lines


_SECONDS_OF_A_STEP = 0.1  # shown slowly


class Live:
  """Draws what `decode.generate.stream` yields, over what it drew before."""

  def __init__(self, tokenizer: Tokenizer, out: TextIO, slow: bool = False):
    """`slow` waits between two drawings, so that one can read along."""
    self._tokenizer, self._out, self._slow = tokenizer, out, slow
    self._lines = 0  # drawn, and to be drawn over
    self.chunk = 1 if slow else 8  # steps between two drawings
    self._counted: list[tuple[float, int]] = []  # when how many tokens were there

  def __call__(self, generated: Generated, known_BxN: np.ndarray) -> None:
    tokens_BxN = np.asarray(generated.tokens_BxN)
    self._counted.append((time.perf_counter(), int(known_BxN.sum())))
    screen = shutil.get_terminal_size()
    lines = [
      line
      for tokens_N, known_N in zip(tokens_BxN, known_BxN, strict=True)
      for line in pieces(self._tokenizer, tokens_N, known_N, screen.columns)
    ][: screen.lines - 2]
    new = self._counted[-1][1] - self._counted[0][1]
    self.clear()
    status = (
      f'{new} tokens in {int(generated.steps)} steps, {self.tokens_per_second():.1f} tokens/s'
    )
    self._out.write('\n'.join([*lines, status]) + '\n')
    self._out.flush()
    self._lines = len(lines) + 1
    if self._slow:
      time.sleep(_SECONDS_OF_A_STEP)

  def clear(self) -> None:
    """Takes away what was drawn."""
    if self._lines:
      self._out.write(f'\x1b[{self._lines}F\x1b[J')
    self._lines = 0

  def tokens_per_second(self) -> float:
    """Without the prefill and the first chunk of steps, which compile; 0 as long as that is all."""
    if len(self._counted) < 3:
      return 0.0
    (begin, first), (end, last) = self._counted[1], self._counted[-1]
    return (last - first) / (end - begin)

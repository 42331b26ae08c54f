"""A moving picture of generation: one text in S streams beside one token by token, on one clock.

It is an SVG without scripts, which GitHub and browsers play as an image.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

from armd_jax.show.report_page import Replay

_WIDE = 66  # characters of a line
_SIZE = 15  # of a character, pixels
_ADVANCE, _LINE = 0.6 * _SIZE, 1.5 * _SIZE
_PAUSE = 2.5  # seconds, after the last text is complete
_COLORS = ('#2a6fbb', '#b9650f', '#3f9d76', '#a06cc8', '#c0392b', '#16808a', '#7a6a00', '#555555')


def picture(replays: Sequence[Replay], seconds: float = 12.0) -> str:
  """The SVG.

  Args:
    replays: texts, which all share a clock on which a step is a run of the network.
    seconds: that the longest takes.
  """
  longest = max(one.steps for one in replays)
  cycle = seconds + _PAUSE
  parts, top = [], 0.0
  width = 2 * _SIZE + _WIDE * _ADVANCE
  for one in replays:
    top += 2.2 * _LINE
    letters = _letters(one)
    height = (1 + max(row for _, row, *_ in letters)) * _LINE
    name = f'{one.name}: {one.steps} steps'
    parts.append(f'<text class="n" x="{_SIZE}" y="{top - 0.9 * _LINE:.1f}">{name}</text>')
    share = one.steps / longest * seconds / cycle
    parts.append(
      f'<rect class="b" x="{_SIZE + 18 * _ADVANCE:.1f}" y="{top - 1.35 * _LINE:.1f}" height="8" '
      f'width="0"><animate attributeName="width" values="0;{width - 20 * _ADVANCE - _SIZE:.1f};'
      f'{width - 20 * _ADVANCE - _SIZE:.1f}" keyTimes="0;{share:.4f};1" dur="{cycle}s" '
      'repeatCount="indefinite"/></rect>'
    )
    by_step: dict[int, list[str]] = {}
    cursors: dict[int, list[str]] = {}  # behind the letters that a step has made
    for letter, row, column, step, stream in letters:
      x, y = _SIZE + column * _ADVANCE, top + row * _LINE
      color = f' style="fill:{_COLORS[stream % len(_COLORS)]}"' if step else ''
      by_step.setdefault(step, []).append(
        f'<text x="{x:.1f}" y="{y:.1f}"{color}>{html.escape(letter)}</text>'
      )
      if step:
        cursors.setdefault(step, []).append(
          f'<rect x="{x + _ADVANCE:.1f}" y="{y - 0.85 * _SIZE:.1f}" width="{_ADVANCE:.1f}" '
          f'height="{1.1 * _SIZE:.1f}"{color}/>'
        )
    for step, drawn in sorted(by_step.items()):
      at = step / longest * seconds / cycle
      appears = (
        f'<animate attributeName="opacity" values="0;1" keyTimes="0;{at:.4f}" '
        f'calcMode="discrete" dur="{cycle}s" repeatCount="indefinite"/>'
      )
      parts.append(f'<g>{appears if step else ""}{"".join(drawn)}</g>')
    for step, drawn in sorted(cursors.items()):
      at, end = ((step + more) / longest * seconds / cycle for more in (0, 1))
      blinks = (
        f'<animate attributeName="opacity" values="0;.55;0" keyTimes="0;{at:.4f};{end:.4f}" '
        f'calcMode="discrete" dur="{cycle}s" repeatCount="indefinite"/>'
      )
      parts.append(f'<g opacity="0">{blinks}{"".join(drawn)}</g>')
    top += height
  style = (
    'text{font:15px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}'
    'text,.n{fill:#1d1f21}.n{font-weight:600}.b{fill:#2a6fbb}rect.p{fill:#fdfcfa}'
    '@media(prefers-color-scheme:dark){text,.n{fill:#e9e7e2}rect.p{fill:#14161a}}'
  )
  size = f'{width:.0f} {top:.0f}'
  described = ' beside '.join(one.name for one in replays)
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" '
    f'aria-label="A text being generated, {described}"><style>{style}</style>'
    f'<rect class="p" width="100%" height="100%" rx="8"/>\n' + '\n'.join(parts) + '\n</svg>\n'
  )


def _letters(one: Replay) -> list[tuple[str, int, int, int, int]]:
  """(letter, row, column, step, stream) of all that is seen of a text."""
  marks: list[tuple[str, int, int]] = []
  stream = 0
  for number, (text, _, step) in enumerate(one.pieces):
    stream += number in one.junctions
    for letter in text:
      letter = letter if letter.isprintable() else ' '
      if letter != ' ' or (marks and marks[-1][0] != ' '):  # one space is enough
        marks.append((letter, step, stream))
  whole = ''.join(letter for letter, _, _ in marks)
  rows = textwrap.wrap(
    whole, _WIDE, drop_whitespace=False, replace_whitespace=False, break_long_words=True
  )
  found, first = [], 0
  for row, line in enumerate(rows):
    for column, (letter, step, number) in enumerate(marks[first : first + len(line)]):
      if letter != ' ':
        found.append((letter, row, column, step, number))
    first += len(line)
  return found

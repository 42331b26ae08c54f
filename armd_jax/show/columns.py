"""Numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from armd_jax.models.params import Params


def num_parameters(params: Params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of the same columns as text; floats get four significant digits, None and NaN a dash."""

  def text(value):
    if value is None or value != value:
      return '-'
    if isinstance(value, float):
      return f'{value:.0f}' if value >= 1000 else f'{value:.4g}'
    return str(value)

  lines = [list(rows[0]), *([text(x) for x in row.values()] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
  return '\n'.join(map('  '.join, aligned))


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table of a page; None is a dash."""
  line = lambda cells: '| ' + ' | '.join('–' if c is None else str(c) for c in cells) + ' |'
  rule = '|' + '---|' * len(header)
  return '\n'.join([line(header), rule, *map(line, rows)])

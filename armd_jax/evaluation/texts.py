"""The evaluation texts of the literature, row by row as their published data sets have them.

A row is what those data sets call an example: a line of WikiText with its newline, blank ones
included; a sentence of LM1B or Penn Treebank; a passage of LAMBADA; title and body of a news item.
Evaluations end every row with EOS, so what a row is belongs to the number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from armd_jax.data import readers, tfds_reader
from armd_jax.data.sources import TFDS
from armd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Text:
  """An evaluation text.

  Attributes:
    name: on the command line.
    title: in tables.
    detokenizer: of `evaluation.detokenizers`.
    columns: alternatives, the first whose columns are all there is taken; the columns of one are
      joined by a space.
    keeps_newlines: rows are lines with their newline, blank ones empty; else lines without it,
      blank ones left out.
    tfds: set of tensorflow-datasets, '' where there is none and a file must be given.
  """

  name: str
  title: str
  detokenizer: str
  columns: tuple[tuple[str, ...], ...] = (('text',),)
  keeps_newlines: bool = False
  tfds: str = ''


_ALL = (
  Text(
    'lambada',
    'LAMBADA',
    'lambada',
    (('text',), ('context', 'continuation'), ('passage',)),
    tfds='lambada',
  ),
  Text('wikitext2', 'WikiText2', 'wikitext', keeps_newlines=True),
  Text('ptb', 'PTB', 'ptb', (('sentence',), ('text',))),
  Text('wikitext103', 'WikiText103', 'wikitext', keeps_newlines=True),
  Text('lm1b', 'LM1B', 'lm1b', tfds='lm1b'),
  Text('ag_news', 'AG News', 'none', (('text',), ('title', 'description')), tfds='ag_news_subset'),
)
TEXTS = {text.name: text for text in _ALL}


def named(name: str) -> Text:
  """The text of that name; another name is a text of one's own, which no detokenizer changes."""
  return TEXTS.get(name) or Text(name, name, 'none')


def read_rows(text: Text, source: str) -> list[str]:
  """All rows of a text.

  Args:
    text: which text the source holds.
    source: a file of lines, JSON, CSV or parquet, local or gs://, or 'tfds:NAME#SPLIT'.
  Raises:
    UserError: it cannot be read, lacks the columns, or has no rows.
  """
  if source.startswith(TFDS):
    found = _tfds_rows(text, source)
  else:
    choose = lambda _, there, where: _columns(text, there, where)
    found = list(readers.rows_span(source, choose, by_line=True).rows(stop))
  if text.keeps_newlines:
    found = [row if row.strip() else '' for row in found]
  else:
    found = [row.rstrip('\r\n') for row in found if row.strip()]
  if not any(found):
    raise UserError(f'{source!r} holds no rows of {text.title}; give another file')
  return found


def stop(tell: Callable[[], tuple[str, str]]) -> None:
  problem, _ = tell()
  raise UserError(f'{problem}; repair the file, since a number is of all its rows')


def _columns(text: Text, there: list[str], where: str) -> tuple[str, ...]:
  for columns in text.columns:
    if set(columns) <= set(there):
      return columns
  wanted = ' or '.join('+'.join(columns) for columns in text.columns)
  raise UserError(
    f'{where} has the columns {", ".join(there) or "(none)"}, but {text.title} is read from '
    f'{wanted}; rename them'
  )


def _tfds_rows(text: Text, source: str) -> list[str]:
  name, _, split = source.removeprefix(TFDS).partition('#')
  there = tfds_reader.columns(name)
  columns = _columns(text, there, source)
  spans = [tfds_reader.tfds_span(name, split or 'test', c, prepare=False) for c in columns]
  return [' '.join(row) for row in zip(*(span.texts(stop) for span in spans), strict=True)]

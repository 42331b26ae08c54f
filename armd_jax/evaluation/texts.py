"""The evaluation texts of the literature, row by row as their published data sets have them.

A row is what those data sets call an example: a line of WikiText with its newline, blank ones
included; a sentence of LM1B or Penn Treebank; a passage of LAMBADA; title and body of a news item.
Evaluations end every row with EOS, so what a row is belongs to the number.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pyarrow
from etils import epath
from pyarrow import parquet

from armd_jax.data import tfds_reader
from armd_jax.data.sources import TFDS
from armd_jax.errors import UserError, sentence


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


def read_rows(text: Text, source: str) -> list[str]:
  """All rows of a text.

  Args:
    text: which text the source holds.
    source: a file of lines, .jsonl or .parquet, local or gs://, or 'tfds:NAME#SPLIT'.
  Raises:
    UserError: it cannot be read, lacks the columns, or has no rows.
  """
  if source.startswith(TFDS):
    rows = _tfds_rows(text, source)
  else:
    path = epath.Path(source)
    try:
      if path.suffix == '.parquet':
        rows = _parquet_rows(text, path)
      elif path.suffix == '.jsonl':
        rows = _json_rows(text, path)
      else:
        rows = _lines(path.read_text(encoding='utf-8'))
    except OSError as error:
      raise UserError(
        f'{text.title} cannot be read from {source!r} ({error.strerror or error}); give the path '
        'of its file'
      ) from error
    except UnicodeDecodeError as error:
      raise UserError(f'{source!r} is not UTF-8 text; convert it with iconv first') from error
  if text.keeps_newlines:
    rows = [row if row.strip() else '' for row in rows]
  else:
    rows = [row.rstrip('\r\n') for row in rows if row.strip()]
  if not any(rows):
    raise UserError(f'{source!r} holds no rows of {text.title}; give another file')
  return rows


def _lines(data: str) -> list[str]:
  # Not splitlines, which also cuts at characters that are no end of a line in a file of text.
  *lines, last = data.split('\n')
  return [f'{line}\n' for line in lines] + ([last] if last else [])


def _joined(text: Text, rows: Sequence[dict], where: str) -> list[str]:
  columns = _columns(text, list(rows[0]) if rows else [], where)
  try:
    return [' '.join(row[column] for column in columns) for row in rows]
  except (KeyError, TypeError) as error:
    raise UserError(
      f'a row of {where} has no text in columns {", ".join(columns)}; repair the file'
    ) from error


def _columns(text: Text, there: list[str], where: str) -> tuple[str, ...]:
  for columns in text.columns:
    if set(columns) <= set(there):
      return columns
  wanted = ' or '.join('+'.join(columns) for columns in text.columns)
  raise UserError(
    f'{where} has the columns {", ".join(there) or "(none)"}, but {text.title} is read from '
    f'{wanted}; rename them'
  )


def _json_rows(text: Text, path: epath.Path) -> list[str]:
  try:
    rows = [json.loads(line) for line in path.read_text(encoding='utf-8').split('\n') if line]
  except json.JSONDecodeError as error:
    raise UserError(f'{path} is no JSON lines ({error.msg}); repair it') from error
  return _joined(text, rows, str(path))


def _parquet_rows(text: Text, path: epath.Path) -> list[str]:
  try:
    with path.open('rb') as file:
      table = parquet.read_table(file)
  except pyarrow.ArrowException as error:
    raise UserError(f'{path} is no parquet file ({sentence(error)}); get it anew') from error
  return _joined(text, table.to_pylist(), str(path))


def _tfds_rows(text: Text, source: str) -> list[str]:
  name, _, split = source.removeprefix(TFDS).partition('#')
  there = tfds_reader.columns(name)
  columns = _columns(text, there, source)
  spans = [tfds_reader.tfds_span(name, split or 'test', c, prepare=False) for c in columns]
  return [' '.join(row) for row in zip(*(span.texts() for span in spans), strict=True)]

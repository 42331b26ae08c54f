"""How each kind of corpus is cut into spans, and how the rows of a span are read.

A span is a piece of a corpus that can be read on its own, in another process or after a crash. Its
borders are between documents and follow from the corpus alone, so that reading the spans in order
gives the same documents, however the corpus was cut. Training texts, the texts of zero-shot
evaluations and the samples that are judged are all read here. Paths are local or `gs://`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from armd_jax.data import packed_files, rows, stdlib_text
from armd_jax.data.rows import Choose, OnBad, pick_column, pick_prompted
from armd_jax.data.table_files import csv_span, json_lines_span, json_span, parquet_span
from armd_jax.data.text_files import text_span
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths

# Readers of files with columns, by the ends of names in lower case.
_TABLES = {
  '.jsonl': json_lines_span,
  '.ndjson': json_lines_span,
  '.json': json_span,
  '.csv': csv_span,
  '.tsv': csv_span,
  '.parquet': parquet_span,
}
# Others that are not text either.
_NOT_READ = (
  '.tgz', '.bz2', '.xz', '.7z', '.zip', '.tar', '.arrow', '.feather', '.avro',
  '.orc', '.array_record', '.tfrecord', '.npy', '.npz', '.pkl', '.pdf', '.docx', '.xlsx',
)  # fmt: skip


class Span(Protocol):
  """A piece of a corpus.

  Attributes:
    num_bytes: its size, exact for files of text and approximate otherwise.
  """

  @property
  def num_bytes(self) -> int: ...

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    """The documents in source order, none of them blank; `on_bad` is called for each bad row."""
    ...

  def split(self, num_bytes: int) -> Sequence[Span]:
    """Spans of about that size that hold the same documents in the same order."""
    ...


class FileSpan(Span, Protocol):
  """A piece of a file."""

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    """The texts of all rows, blank ones too, as the file has them."""
    ...


@dataclasses.dataclass(frozen=True)
class StdlibSpan:
  """The prose inside CPython, in one piece."""

  python: str
  num_bytes: int = 2_000_000

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    del on_bad  # none of it is bad
    return iter(stdlib_text.documents())

  def split(self, num_bytes: int) -> Sequence[Span]:
    del num_bytes  # gathering it takes two seconds however little of it is wanted
    return [self]


REGISTERED: dict[str, Callable[[str], Iterable[str]]] = {}  # see `armd_jax.register`


@dataclasses.dataclass(frozen=True)
class RegisteredSpan:
  """What a registered source reads, in one piece; its size is not known before.

  Raises:
    UserError: it yields something else than texts, or raises an error.
  """

  name: str
  rest: str
  num_bytes: int = 0

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    del on_bad  # it has no rows
    try:
      for text in REGISTERED[self.name](self.rest):
        if not isinstance(text, str):
          raise TypeError(f'it yields {text!r}, which is no text')
        text.encode('utf-8')  # or raises: half a character is in no vocabulary
        if text.strip():
          yield text
    except UserError:
      raise
    except Exception as error:  # whatever a user's function raises
      raise UserError(
        f'the source {self.name}:{self.rest} cannot be read ({sentence(error)}); mend it'
      ) from error

  def split(self, num_bytes: int) -> Sequence[Span]:
    del num_bytes
    return [self]


def file_span(
  path: str, column: str = '', by_line: bool | None = None, prompt: str = ''
) -> FileSpan:
  """A whole file, of the kind that its name ends with, in capitals or not.

  Args:
    path: `.jsonl` and `.ndjson` hold a JSON object a line; `.json` these as well, or a list of
      objects or texts, or an object with a list `texts`; `.csv` and `.tsv` have the names of their
      columns in the first row; `.parquet`; any other is text. Behind all but `.parquet` may be
      `.gz` or `.zst`.
    column: that holds the documents; '': 'text' if there is one, else the only one that holds text.
    by_line: whether each line of a file of text is a document; None: unless blank lines separate
      at least two.
    prompt: column of prompts, which the documents answer; '': there are none.
  Raises:
    UserError: the file cannot be read, is of a kind that is not read, or lacks a column.
  """
  choose: Choose = lambda texts, columns, where: (pick_column(column, texts, columns, where),)
  if not prompt:
    return rows_span(path, choose, by_line)
  span = rows_span(path, lambda *where: pick_prompted(prompt, column, *where), by_line)
  if not getattr(span, 'columns', ()):
    raise UserError(
      f'the text {path!r} has no columns, and so none of prompts; give .jsonl, .csv or .parquet'
    )
  return span


def rows_span(path: str, choose: Choose, by_line: bool | None = None) -> FileSpan:
  """As `file_span`, with the columns that `choose` chooses."""
  path = os.fspath(paths.readable(path, 'the text'))
  place = pathlib.Path(path)
  # Which cannot be read in pieces, or twice.
  if '://' not in path and place.exists() and not (place.is_file() or place.is_dir()):
    raise UserError(f'the text {path!r} is a pipe or a device; write it to a file first')
  inner = packed_files.without_packing(path)
  suffix = os.path.splitext(inner)[1].lower()
  if inner != path and suffix in ('.parquet', *packed_files.KINDS):
    raise UserError(
      f'the text {path!r} is compressed twice, which cannot be read in pieces; unpack it first'
    )
  if suffix in _NOT_READ:
    raise UserError(
      f'the text {path!r} is a {suffix} file; unpack it, or convert it to .txt, .jsonl, .csv or '
      '.parquet first'
    )
  with rows.open_file(path) as file:
    if suffix in _TABLES:
      return _TABLES[suffix](path, file, choose)
    return text_span(path, file, by_line)

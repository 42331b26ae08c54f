"""How each kind of corpus is cut into spans, and how the documents of a span are read.

A span is a piece of a corpus that can be read on its own, in another process or after a crash. Its
borders lie between documents and follow from the corpus alone, so that whoever reads the spans in
order gets the same documents, however the corpus was cut. Paths are local or `gs://`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import pyarrow
from etils import epath
from pyarrow import parquet

from armd_jax.data import stdlib_text
from armd_jax.errors import UserError, sentence

# A newline, in any convention, and a line that is blank.
_NEWLINE = rb'(?>\r\n|\r|\n)'
_BLANK_LINE = re.compile(_NEWLINE + rb'[^\S\r\n]*' + _NEWLINE)
_BLANK_LINES = re.compile(r'\n\s*\n')
_CHUNK = 1 << 20  # bytes read at a time in search of a border


class Span(Protocol):
  """A piece of a corpus.

  Attributes:
    num_bytes: its size, exact for files of text and approximate otherwise.
  """

  @property
  def num_bytes(self) -> int: ...

  def documents(self) -> Iterator[str]:
    """The documents in source order, none of them blank; raises UserError for a bad one."""
    ...

  def split(self, num_bytes: int) -> Sequence[Span]:
    """Spans of about that size that hold the same documents in the same order."""
    ...


@dataclasses.dataclass(frozen=True)
class StdlibSpan:
  """The prose inside CPython, in one piece."""

  python: str
  num_bytes: int = 2_000_000

  def documents(self) -> Iterator[str]:
    return iter(stdlib_text.documents())

  def split(self, num_bytes: int) -> Sequence[Span]:
    del num_bytes  # gathering it takes two seconds however little of it is wanted
    return [self]


@dataclasses.dataclass(frozen=True)
class TextSpan:
  """Bytes of a UTF-8 file, its documents separated by blank lines, or one a line."""

  path: str
  begin: int
  end: int
  by_line: bool

  @property
  def num_bytes(self) -> int:
    return self.end - self.begin

  def documents(self) -> Iterator[str]:
    data = _read(self.path, self.begin, self.end)
    try:
      text = data.decode('utf-8-sig' if self.begin == 0 else 'utf-8')
    except UnicodeDecodeError as error:
      raise UserError(
        f'the text {self.path!r} is not UTF-8 (byte {self.begin + error.start}); convert it with '
        'iconv, or unpack it, first'
      ) from error
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    # The newline before the text makes a blank line at its start what it is anywhere else.
    parts = text.split('\n') if self.by_line else _BLANK_LINES.split('\n' + text)
    return (part.strip('\n') for part in parts if part.strip())

  def split(self, num_bytes: int) -> Sequence[TextSpan]:
    border = re.compile(_NEWLINE) if self.by_line else _BLANK_LINE
    cuts = _cuts(self.path, self.begin, self.end, num_bytes, border)
    return [dataclasses.replace(self, begin=b, end=e) for b, e in cuts]


@dataclasses.dataclass(frozen=True)
class JsonSpan:
  """Lines of a file, each a JSON object with the document in one of its fields."""

  path: str
  begin: int
  end: int
  column: str

  @property
  def num_bytes(self) -> int:
    return self.end - self.begin

  def documents(self) -> Iterator[str]:
    for number, line in enumerate(_read(self.path, self.begin, self.end).split(b'\n')):
      if line.strip():
        text = self._text(line, number)
        if text.strip():
          yield text

  def split(self, num_bytes: int) -> Sequence[JsonSpan]:
    cuts = _cuts(self.path, self.begin, self.end, num_bytes, re.compile(b'\n'))
    return [dataclasses.replace(self, begin=b, end=e) for b, e in cuts]

  def _text(self, line: bytes, number: int) -> str:
    try:
      row = json.loads(line)
    except ValueError as error:
      reason = error.msg if isinstance(error, json.JSONDecodeError) else 'not UTF-8'
      raise UserError(
        f'{self._line(number)} is no JSON ({reason}); repair or delete that line'
      ) from error
    text = row.get(self.column) if isinstance(row, dict) else None
    if not isinstance(text, str):
      has = f'only {", ".join(sorted(row)) or "nothing"}' if isinstance(row, dict) else 'no fields'
      what = f'{has}' if text is None else f'a {type(text).__name__} there'
      raise UserError(
        f'{self._line(number)} has no text in column {self.column!r} but {what}; write the right '
        '--column, or repair that line'
      )
    # JSON may spell half a character ('\\ud800'), which UTF-8 cannot.
    return text.encode('utf-8', 'replace').decode('utf-8') if b'\\ud' in line else text

  def _line(self, number: int) -> str:
    earlier = _read(self.path, 0, self.begin).count(b'\n')
    return f'line {earlier + number + 1} of {self.path}'


@dataclasses.dataclass(frozen=True)
class ParquetSpan:
  """Row groups [begin, end) of a parquet file, the documents in one column."""

  path: str
  begin: int
  end: int
  column: str
  group_bytes: tuple[int, ...]  # of the column in each of the groups

  @property
  def num_bytes(self) -> int:
    return sum(self.group_bytes)

  def documents(self) -> Iterator[str]:
    groups = list(range(self.begin, self.end))
    with _open(self.path) as file, _arrow_errors(self.path):
      for batch in parquet.ParquetFile(file).iter_batches(
        batch_size=1024, row_groups=groups, columns=[self.column]
      ):
        yield from (text for text in batch.column(0).to_pylist() if text and text.strip())

  def split(self, num_bytes: int) -> Sequence[ParquetSpan]:
    groups, spans = [], []
    for number, size in enumerate(self.group_bytes, self.begin):
      groups.append(size)
      if sum(groups) >= num_bytes or number + 1 == self.end:
        begin = number + 1 - len(groups)
        spans.append(
          dataclasses.replace(self, begin=begin, end=number + 1, group_bytes=tuple(groups))
        )
        groups = []
    return spans


def file_span(path: str, column: str) -> Span:
  """A whole file: `.jsonl` and `.parquet` by their names, any other as text.

  Args:
    path: the file.
    column: field of JSON lines or column of parquet that holds the documents; '': 'text' if there
      is one, else the only one that holds text.
  Raises:
    UserError: the file cannot be read, or the column is not there.
  """
  suffix = os.path.splitext(path)[1]
  with _open(path) as file:
    if suffix == '.parquet':
      return _parquet_span(path, file, column)
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if suffix == '.jsonl':
      return JsonSpan(path, 0, end, column or _json_column(path, file))
    return TextSpan(path, 0, end, by_line=not _has_blank_lines(file))


def pick_column(column: str, texts: list[str], columns: list[str], where: str) -> str:
  """The column to read, of those there are.

  Args:
    column: the one asked for; '': 'text' if it is there, else the only one that holds text.
    texts: the columns that hold text.
    columns: all columns.
    where: what has them, for the error.
  Raises:
    UserError: the column asked for holds no text, or none was and several could be meant.
  """
  if not column and ('text' in texts or len(texts) == 1):
    return 'text' if 'text' in texts else texts[0]
  if column in texts:
    return column
  said = f'no text in column {column!r}' if column else "no column 'text'"
  fix = f'write --column={texts[0]}' if texts else 'give another source'
  raise UserError(f'{where} has {said} but {", ".join(columns) or "nothing"}; {fix}')


def _open(path: str) -> BinaryIO:
  try:
    return epath.Path(path).open('rb')
  except OSError as error:
    raise UserError(
      f'the text {path!r} cannot be read ({error.strerror or error}); check its name and '
      'permissions'
    ) from error


def _read(path: str, begin: int, end: int) -> bytes:
  with _open(path) as file:
    file.seek(begin)
    data = file.read(end - begin)
  if len(data) < end - begin:
    raise UserError(
      f'the text {path!r} has become shorter; leave it as it is while it is read, and start again'
    )
  return data


def _cuts(path: str, begin: int, end: int, num_bytes: int, border: re.Pattern):
  """(begin, end) of pieces cut at the first border after each multiple of `num_bytes`."""
  cuts = [begin]
  with _open(path) as file:
    for wanted in range(begin + num_bytes, end, num_bytes):
      if wanted <= cuts[-1]:
        continue
      file.seek(wanted)
      data, found = b'', None
      while not found and (chunk := file.read(_CHUNK)):
        data += chunk
        found = border.search(data)
      if not found or wanted + found.end() >= end:
        break
      cuts.append(wanted + found.end())
  return list(zip(cuts, [*cuts[1:], end], strict=True))


def _has_blank_lines(file: BinaryIO) -> bool:
  """Whether blank lines separate at least two documents."""
  data = b''
  while chunk := file.read(_CHUNK):
    data = (data + chunk).lstrip()
    blank = _BLANK_LINE.search(data)
    if blank and data[blank.end() :].strip():
      return True
    if blank:
      data = b'x\n\n'  # a document and a blank line; any text from here on is another
    elif data:
      data = b'x' + data[len(data.rstrip()) :]  # a document that may go on
  return False


def _json_column(path: str, file: BinaryIO) -> str:
  for number, line in enumerate(file, 1):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError:
        row = None
      if not isinstance(row, dict):
        raise UserError(
          f'line {number} of {path} is no JSON object; write one like {{"text": "..."}} a line'
        )
      texts = [key for key, value in row.items() if isinstance(value, str)]
      return pick_column('', texts, list(row), f'line {number} of {path}')
  return 'text'  # an empty file has any column


@contextlib.contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
  try:
    yield
  except (pyarrow.ArrowException, OSError) as error:
    raise UserError(
      f'{path} is no parquet file, or damaged ({sentence(error)}); get it anew'
    ) from error


def _parquet_span(path: str, file: BinaryIO, column: str) -> ParquetSpan:
  with _arrow_errors(path):
    table = parquet.ParquetFile(file)
  is_text = lambda kind: pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
  texts = [field.name for field in table.schema_arrow if is_text(field.type)]
  column = pick_column(column, texts, table.schema_arrow.names, path)
  number = table.schema_arrow.names.index(column)
  groups = range(table.num_row_groups)
  sizes = [table.metadata.row_group(g).column(number).total_uncompressed_size for g in groups]
  return ParquetSpan(path, 0, len(sizes), column, tuple(sizes))

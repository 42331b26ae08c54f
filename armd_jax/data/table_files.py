"""Spans of files whose rows have columns: lines of JSON, JSON, CSV and parquet."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow
from pyarrow import parquet

from armd_jax.data import packed_files, rows
from armd_jax.data.rows import BadRow, Choose, OnBad, joined
from armd_jax.errors import UserError, sentence

_DELIMITERS = {'.csv': ',', '.tsv': '\t'}


class _Table:
  """Documents of rows, the same for all of these files."""

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    return (row for row in self.rows(on_bad) if not rows.is_blank(row))  # type: ignore[attr-defined]


# ----- JSON


@dataclasses.dataclass(frozen=True)
class JsonSpan(_Table):
  """Lines of a file, each a JSON object with the text in some of its fields."""

  path: str
  begin: int
  end: int
  columns: tuple[str, ...]

  @property
  def num_bytes(self) -> int:
    return self.end - self.begin

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    position = self.begin
    for line in rows.read(self.path, self.begin, self.end).split(b'\n'):
      if _is_row(line):
        try:
          text = _field(_parsed(line), self.columns)
        except BadRow as error:
          on_bad(lambda at=position, e=error: self._problem(at, e))  # type: ignore[misc]
        else:
          yield text
      position += len(line) + 1

  def split(self, num_bytes: int) -> Sequence[JsonSpan]:
    cuts = rows.cuts(self.path, self.begin, self.end, num_bytes, re.compile(b'\n'))
    return [dataclasses.replace(self, begin=b, end=e) for b, e in cuts]

  def _problem(self, position: int, error: BadRow) -> tuple[str, str]:
    return f'{rows.line_of(self.path, position)} {error.problem}', error.fix


@dataclasses.dataclass(frozen=True)
class JsonDocumentSpan(_Table):
  """A file that is one JSON value, read at once: a list of rows, or an object with `texts`."""

  path: str
  num_bytes: int
  columns: tuple[str, ...]  # empty if the rows are texts themselves

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    for number, item in enumerate(_items(self.path, self.num_bytes), 1):
      try:
        text = _field(item, self.columns) if self.columns else _own_text(item)
      except BadRow as error:
        on_bad(
          lambda n=number, e=error: (f'item {n} of {self.path} {e.problem}', e.fix)  # type: ignore[misc]
        )
      else:
        yield text

  def split(self, num_bytes: int) -> Sequence[JsonDocumentSpan]:
    del num_bytes  # it can only be parsed as a whole
    return [self]


def json_lines_span(path: str, file: BinaryIO, choose: Choose) -> JsonSpan:
  """A whole file of JSON lines.

  Raises:
    UserError: no line is an object, or the columns of none will do.
  """
  lines = ((f'line {n} of {path}', line) for n, line in enumerate(file, 1) if _is_row(line))
  columns = _chosen(((where, _parsed, line) for where, line in lines), choose)
  # An empty file has any column.
  return JsonSpan(path, 0, rows.size_of(file), columns or choose(['text'], ['text'], path))


def json_span(path: str, file: BinaryIO, choose: Choose) -> JsonSpan | JsonDocumentSpan:
  """A whole file of either kind: of lines if its first one is a row and is not all there is."""
  lines = (line for line in file if _is_row(line))
  first = next(lines, b'')
  try:
    is_lines: bool | bytes = isinstance(_parsed(first), dict) and next(lines, b'')
  except BadRow:
    is_lines = not first
  size = rows.size_of(file)
  if is_lines:
    return json_lines_span(path, file, choose)
  items = _items(path, size)
  if not any(isinstance(item, dict) for item in items):
    return JsonDocumentSpan(path, size, ())
  named = ((f'item {n} of {path}', lambda item: item, item) for n, item in enumerate(items, 1))
  return JsonDocumentSpan(path, size, _chosen(named, choose))


def _chosen(found: Iterable[tuple[str, Callable, Any]], choose: Choose) -> tuple[str, ...]:
  """Chosen by the first row whose columns will do; () if there are no rows.

  Args:
    found: of each row its name, and a function that gives the row of what comes after it.
    choose: of the columns.
  Raises:
    UserError: those of no row will do; why the first one's will not.
  """
  first = None
  for where, value_of, raw in found:
    try:
      row = value_of(raw)
      if not isinstance(row, dict):
        raise BadRow(f'a {type(row).__name__}')
      # null in a column 'text' is a bad row, and no reason to read another column.
      texts = [key for key, value in row.items() if isinstance(value, str) or key == 'text']
      return choose(texts, list(row), where)
    except BadRow as error:
      first = first or UserError(
        f'{where} is no JSON object ({error.problem}); write rows like {{"text": "..."}}'
      )
    except UserError as error:
      first = first or error
  if first:
    raise first
  return ()


def _is_row(line: bytes) -> bool:
  return bool(line.removeprefix(codecs.BOM_UTF8).strip())


def _parsed(data: bytes) -> Any:
  """A JSON value; raises BadRow for anything else."""
  try:
    return json.loads(data.removeprefix(codecs.BOM_UTF8).decode('utf-8'))
  except UnicodeDecodeError:
    raise BadRow('is no JSON (not UTF-8)') from None
  except RecursionError:
    raise BadRow('is no JSON that can be read (nested too deeply)') from None
  except ValueError as error:
    raise BadRow(f'is no JSON ({getattr(error, "msg", sentence(error))})') from None


def _field(row: Any, columns: Sequence[str]) -> str:
  if not isinstance(row, dict):
    raise BadRow(f'has no text in column {columns[0]!r} but no fields')
  return joined([row.get(column) for column in columns], columns, sorted(row))


def _own_text(item: Any) -> str:
  if not isinstance(item, str):
    raise BadRow(f'is no text but a {type(item).__name__}')
  return rows.whole(item)


def _items(path: str, size: int) -> list[Any]:
  """The rows of a file that is one JSON value.

  Raises:
    UserError: it is none, or no rows are in it.
  """
  try:
    value = _parsed(rows.read(path, 0, size))
  except BadRow as error:
    raise UserError(f'{path} {error.problem}; repair it, or write one row a line') from None
  if isinstance(value, dict):
    return value['texts'] if isinstance(value.get('texts'), list) else [value]
  if not isinstance(value, list):
    raise UserError(f'{path} holds no rows but a {type(value).__name__}; write a list of them')
  return value


# ----- CSV


@dataclasses.dataclass(frozen=True)
class CsvSpan(_Table):
  """A file of comma or tab separated values in one piece: a newline in it may end no row."""

  path: str
  num_bytes: int
  columns: tuple[str, ...]
  delimiter: str

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    with rows.open_file(self.path) as file:
      found = _csv_rows(file, self.delimiter)
      _, names = next(found, (1, list(self.columns)))
      if isinstance(names, BadRow) or not set(self.columns) <= set(names):
        raise UserError(f'{self.path} has changed; leave it as it is while it is read')
      places = [names.index(column) for column in self.columns]
      for number, row in found:
        try:
          if isinstance(row, BadRow):
            raise row
          if len(row) != len(names):
            raise BadRow(f'has {len(row)} fields, not {len(names)}')
          values = [row[place] for place in places]
          if any(map(_SURROGATE.search, values)):
            raise BadRow('is not UTF-8')
        except BadRow as error:
          on_bad(
            lambda n=number, e=error: (f'row {n} of {self.path} {e.problem}', e.fix)  # type: ignore[misc]
          )
        else:
          yield rows.text_of(values, self.columns)

  def split(self, num_bytes: int) -> Sequence[CsvSpan]:
    del num_bytes  # what is in quotes is known only by reading from the start
    return [self]


_SURROGATE = re.compile('[\ud800-\udfff]')


def csv_span(path: str, file: BinaryIO, choose: Choose) -> CsvSpan:
  """A whole file, its first row the names of columns.

  Raises:
    UserError: the columns will not do, or their names cannot be read.
  """
  delimiter = _DELIMITERS[os.path.splitext(packed_files.without_packing(path))[1].lower()]
  size = rows.size_of(file)
  _, names = next(_csv_rows(file, delimiter), (1, ['text']))  # an empty file has any column
  if isinstance(names, BadRow):
    raise UserError(f'row 1 of {path} {names.problem}; write the names of the columns there')
  if any('\0' in name for name in names):
    raise UserError(
      f'{path} has bytes of 0 in its first row, as UTF-16 has; convert it to UTF-8 (iconv -f '
      'UTF-16 -t UTF-8), or remove them'
    )
  texts = [name for name in names if names.count(name) == 1]
  if len(names) == 1 and names != ['text']:
    texts *= 2  # it could be the first row of a file without names, so --column must name it
  return CsvSpan(path, size, choose(texts, names, path), delimiter)


def _csv_rows(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
  """Numbered rows that are not empty; bytes that are not UTF-8 become surrogates."""
  text = io.TextIOWrapper(file, 'utf-8-sig', errors='surrogateescape', newline='')
  reader = csv.reader(text, delimiter=delimiter, strict=True)
  for number in itertools.count(1):
    try:
      with _long_fields():
        row: list[str] | BadRow = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      row = BadRow(f'is no CSV ({error})')
    if row:
      yield number, row


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
  """Fields of any length, which the module's own limit, that of all who use it, is not made for."""
  before = csv.field_size_limit(sys.maxsize)
  try:
    yield
  finally:
    csv.field_size_limit(before)


# ----- parquet


@dataclasses.dataclass(frozen=True)
class ParquetSpan(_Table):
  """Row groups [begin, end) of a parquet file, the text in some of its columns."""

  path: str
  begin: int
  end: int
  columns: tuple[str, ...]
  group_bytes: tuple[int, ...]  # of the columns in each of the groups

  @property
  def num_bytes(self) -> int:
    return sum(self.group_bytes)

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    groups = list(range(self.begin, self.end))
    with rows.open_file(self.path) as file, _arrow_errors(self.path):
      table = parquet.ParquetFile(file, page_checksum_verification=True)
      number = sum(table.metadata.row_group(group).num_rows for group in range(self.begin))
      names = list(dict.fromkeys(self.columns))
      for batch in table.iter_batches(batch_size=1024, row_groups=groups, columns=names):
        values = [_bytes_of(batch.column(column)) for column in self.columns]
        for row in zip(*values, strict=True):
          number += 1
          try:
            text = joined([_decoded(value) for value in row], self.columns, self.columns)
          except BadRow as error:
            on_bad(
              lambda n=number, e=error: (f'row {n} of {self.path} {e.problem}', e.fix)  # type: ignore[misc]
            )
          else:
            yield text

  def split(self, num_bytes: int) -> Sequence[ParquetSpan]:
    groups, total, spans = [], 0, []
    for number, size in enumerate(self.group_bytes, self.begin):
      groups.append(size)
      total += size
      if total >= num_bytes or number + 1 == self.end:
        begin = number + 1 - len(groups)
        spans.append(
          dataclasses.replace(self, begin=begin, end=number + 1, group_bytes=tuple(groups))
        )
        groups, total = [], 0
    return spans


def parquet_span(path: str, file: BinaryIO, choose: Choose) -> ParquetSpan:
  """A whole file.

  Raises:
    UserError: it is damaged, or its columns will not do.
  """
  with _arrow_errors(path):
    table = parquet.ParquetFile(file, page_checksum_verification=True)
    fields = list(table.schema_arrow)
  names = [field.name for field in fields]
  kinds = {field.name: _plain(field.type) for field in fields if names.count(field.name) == 1}
  of_kind = lambda is_one: [name for name, kind in kinds.items() if is_one(kind)]
  # Old writers do not mark text as text. Bytes of one size may well be none: --column must name it.
  texts = of_kind(_is_text) or of_kind(_is_bytes) or 2 * of_kind(_is_fixed)
  others = {name: f'{name} ({kind})' for name, kind in kinds.items() if name not in texts}
  columns = choose(texts, [others.get(name, name) for name in names], path)
  with _arrow_errors(path):
    # Of all columns: for one whose metadata are damaged, pyarrow 26 aborts the process.
    groups = map(table.metadata.row_group, range(table.num_row_groups))
    sizes = [max(0, group.total_byte_size) for group in groups]
  return ParquetSpan(path, 0, len(sizes), columns, tuple(sizes))


@contextlib.contextmanager
def _arrow_errors(path: str) -> Iterator[None]:
  try:
    yield
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'{path} is no parquet file, or damaged ({sentence(error)}); get it anew'
    ) from error


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
  kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
  is_known = isinstance(kind, pyarrow.BaseExtensionType) and _is_text(kind.storage_type)
  return kind.storage_type if is_known else kind


def _is_text(kind: pyarrow.DataType) -> bool:
  types = pyarrow.types
  return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_bytes(kind: pyarrow.DataType) -> bool:
  types = pyarrow.types
  return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_fixed(kind: pyarrow.DataType) -> bool:
  return pyarrow.types.is_fixed_size_binary(kind)


def _bytes_of(column: pyarrow.Array) -> list[bytes | None]:
  """The values undecoded, so that one that is not UTF-8 can be found among its neighbours."""
  if pyarrow.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  if isinstance(column, pyarrow.ExtensionArray):
    column = column.storage
  return column.cast(pyarrow.large_binary()).to_pylist()


def _decoded(value: bytes | None) -> str | None:
  try:
    return None if value is None else value.decode('utf-8')
  except UnicodeDecodeError:
    raise BadRow('is not UTF-8') from None

"""What all readers of rows share: the column to read, and what becomes of a bad row.

A row is bad if it holds no text: it is not UTF-8, no JSON, has too few fields, null or a number in
its column. A reader gives a description of every bad row to a function, which raises or returns.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, Self

from etils import epath

from armd_jax.data import packed_files
from armd_jax.errors import UserError

CHUNK = 1 << 20  # bytes read at a time in search of something

# Gets a function that returns what is wrong with which row, and the fix. Finding a row's number may
# take a while, so it is called only if the row is reported.
OnBad = Callable[[Callable[[], tuple[str, str]]], None]

# The columns to read, out of: those that hold text, all, and what has them, for the error.
Choose = Callable[[list[str], list[str], str], tuple[str, ...]]


class Apart(tuple[str, ...]):
  """Columns whose texts are kept apart: rows are `Parts`. Those of any other tuple are joined by a
  space."""


class Parts(str):
  """The texts of several columns, right behind each other.

  Attributes:
    parts: each of them; of a prompt and its answer these two.
  """

  parts: tuple[str, ...]

  def __new__(cls, parts: Sequence[str]) -> Parts:
    text = super().__new__(cls, ''.join(parts))
    text.parts = tuple(parts)
    return text


@dataclasses.dataclass(frozen=True)
class RowSpan:
  """Rows [begin, end) of a column of a set's split, about `num_bytes` of text; a reader's own
  subclass has their `documents`."""

  name: str
  split_name: str
  begin: int
  end: int
  column: str
  num_bytes: int

  def split(self, num_bytes: int) -> Sequence[Self]:
    """Spans of at most about so many bytes."""
    count = self.end - self.begin
    pieces = max(1, min(count, -(-self.num_bytes // num_bytes)))
    borders = [self.begin + count * i // pieces for i in range(pieces + 1)]
    return [
      dataclasses.replace(self, begin=b, end=e, num_bytes=self.num_bytes * (e - b) // max(count, 1))
      for b, e in itertools.pairwise(borders)
    ]


class BadRow(Exception):
  """A row without text, raised where it is read: what is wrong with it, and the fix."""

  def __init__(self, problem: str, fix: str = 'repair or delete it'):
    super().__init__(problem)
    self.problem, self.fix = problem, fix


def stop(tell: Callable[[], tuple[str, str]]) -> None:
  """Ends at the first bad row.

  Raises:
    UserError: always.
  """
  problem, fix = tell()
  raise UserError(f'{problem}; {fix}')


class Skip:
  """Leaves out bad rows, and prints which the first ones are.

  Attributes:
    count: rows left out so far.
  """

  MOST_TOLD = 10

  def __init__(self):
    self.count = 0

  def __call__(self, tell: Callable[[], tuple[str, str]]) -> None:
    self.count += 1
    if self.count <= self.MOST_TOLD:
      more = '; further ones are only counted' if self.count == self.MOST_TOLD else ''
      print(f'warning: {tell()[0]}, and is left out{more}', file=sys.stderr)


def _stop_or_skip(tell: Callable[[], tuple[str, str]]) -> None:
  problem, fix = tell()
  raise UserError(f"{problem}; {fix}, or leave out all such rows with bad_rows='skip'")


_CHOICES = {'stop': lambda: _stop_or_skip, 'skip': Skip}  # type: dict[str, Callable[[], OnBad]]
BAD_ROWS = tuple(_CHOICES)


def on_bad(choice: str) -> OnBad:
  """What a corpus does with bad rows.

  Args:
    choice: 'stop' or 'skip'.
  Raises:
    UserError: it is neither.
  """
  if choice not in _CHOICES:
    raise UserError(f'bad_rows is {choice!r}; write one of {", ".join(map(repr, BAD_ROWS))}')
  return _CHOICES[choice]()


def pick_column(column: str, texts: list[str], columns: list[str], where: str) -> str:
  """The column to read, of those there are.

  Args:
    column: the one asked for; '': 'text' if it is there, else the only one that holds text.
    texts: the columns that hold text.
    columns: all columns, with what is in them where that is known and no text.
    where: what has them, for the error.
  Raises:
    UserError: the column asked for holds no text, or none was and several could be meant.
  """
  if not column and ('text' in texts or len(texts) == 1):
    return 'text' if 'text' in texts else texts[0]
  if column in texts:
    return column
  wanted = column or 'text'
  if (count := columns.count(wanted)) > 1:
    raise UserError(f'{where} has {count} columns {wanted!r}; give all but one another name')
  fix = f'write --column={texts[0]}' if texts else 'give another source'
  said = ', '.join(columns) or 'nothing'
  raise UserError(f'{where} has no text in column {wanted!r} but {said}; {fix}')


def pick_prompted(
  prompt: str, column: str, texts: list[str], columns: list[str], where: str
) -> Apart:
  """The column of prompts, and that of what answers them; arguments as of `pick_column`.

  Raises:
    UserError: no text is in the column of prompts, or as `pick_column` of the others.
  """
  if prompt not in texts:
    raise UserError(
      f'{where} has no text in column {prompt!r} but {", ".join(columns) or "nothing"}; name '
      'another column of prompts'
    )
  others = [text for text in texts if text != prompt]
  return Apart((prompt, pick_column(column, others, columns, where)))


def text_of(values: Sequence[str], columns: Sequence[str]) -> str:
  """The text of a row, of the texts of its columns."""
  return Parts(values) if isinstance(columns, Apart) else ' '.join(values)


def is_blank(text: str) -> bool:
  """Whether there is nothing in it; of a prompt and its answer, in the latter."""
  return not (text.parts[-1] if isinstance(text, Parts) else text).strip()


def joined(values: Sequence[Any], columns: Sequence[str], there: Sequence[str]) -> str:
  """The text of a row; see `text_of`.

  Args:
    values: of the columns, None where there is none.
    columns: their names.
    there: the names that the row has, for the error.
  Raises:
    BadRow: a value is no text.
  """
  for column, value in zip(columns, values, strict=True):
    if not isinstance(value, str):
      what = f'a {type(value).__name__} there'
      if value is None:
        what = 'null there' if column in there else f'only {", ".join(there) or "nothing"}'
      raise BadRow(
        f'has no text in column {column!r} but {what}', 'repair it, or write the right --column'
      )
  return text_of([whole(value) for value in values], columns)


def whole(text: str) -> str:
  """The text, with '?' for half a character ('\\ud800'), which JSON may spell but UTF-8 cannot."""
  return text if text.isascii() else text.encode('utf-8', 'replace').decode('utf-8')


def open_file(path: str) -> BinaryIO:
  """A file, local or `gs://`, to read bytes from; of a compressed one, those of its text.

  Raises:
    UserError: it cannot be read.
  """
  try:
    if packed_files.is_packed(path):
      return io.BufferedReader(packed_files.Unpacked(path), CHUNK)
    return epath.Path(path).open('rb')
  except OSError as error:
    raise UserError(
      f'the text {path!r} cannot be read ({error.strerror or error}); check its name and '
      'permissions'
    ) from error


def read(path: str, begin: int, end: int) -> bytes:
  """Bytes [begin, end) of a file.

  Raises:
    UserError: it cannot be read, or has become shorter.
  """
  if packed_files.is_packed(path):
    about = epath.Path(path).stat()
    file = _kept_open(path, about.length, about.mtime)
    file.seek(begin)
    data = file.read(end - begin)
  else:
    with open_file(path) as file:
      file.seek(begin)
      data = file.read(end - begin)
  if len(data) < end - begin:
    raise UserError(
      f'the text {path!r} has become shorter; leave it as it is while it is read, and start again'
    )
  return data


@functools.lru_cache(maxsize=1)
def _kept_open(path: str, length: int, mtime: int) -> BinaryIO:
  """The compressed file that was read last, so that pieces read in order are unpacked once."""
  del length, mtime  # of what it is
  return open_file(path)


def size_of(file: BinaryIO) -> int:
  """Bytes of an open file, which is at its beginning afterwards."""
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  return size


def line_of(path: str, position: int) -> str:
  """'line N of PATH', in which the byte at a position is."""
  number, last = 1, b''
  with open_file(path) as file:
    while position and (chunk := file.read(min(CHUNK, position))):
      position -= len(chunk)
      number += chunk.count(b'\n') + chunk.count(b'\r') - chunk.count(b'\r\n')
      number -= last == b'\r' and chunk.startswith(b'\n')
      last = chunk[-1:]
  return f'line {number} of {path}'


def cuts(
  path: str, begin: int, end: int, num_bytes: int, border: re.Pattern
) -> list[tuple[int, int]]:
  """(begin, end) of pieces cut at the first border after each multiple of `num_bytes`.

  Args:
    path: of the file.
    begin, end: the bytes to cut.
    num_bytes: what a piece has, and more up to its border.
    border: ends with a newline, and begins with one unless it is one; nothing but blanks within.
  """
  found = [begin]
  with open_file(path) as file:
    for wanted in range(begin + num_bytes, end, num_bytes):
      if wanted <= found[-1]:
        continue
      at = _border_after(file, wanted, border)
      if at is None or at >= end:
        break
      found.append(at)
  return list(zip(found, [*found[1:], end], strict=True))


def _border_after(file: BinaryIO, wanted: int, border: re.Pattern) -> int | None:
  """Where the first border after a position ends; reads every byte once."""
  file.seek(wanted)
  data = b''
  while chunk := file.read(CHUNK):
    data += chunk
    if data.endswith(b'\r'):  # perhaps half a newline
      data += file.read(1)
    if match := border.search(data):
      at = file.tell() - len(data) + match.end()
      return at + (match.group().endswith(b'\r') and match.end() == len(data) and _is_lf(file))
    # A border may begin here and end in the next chunk: the last newline, if only blanks follow.
    data = b'\n' if data.rstrip(b' \t\f\v').endswith((b'\n', b'\r')) else b''
  return None


def _is_lf(file: BinaryIO) -> bool:
  return file.read(1) == b'\n'

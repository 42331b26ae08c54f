"""Spans of files of text, their documents separated by blank lines, or one a line."""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from armd_jax.data import rows
from armd_jax.data.rows import CHUNK, OnBad

# A newline, in any convention, and a line that is blank.
_NEWLINE = re.compile(rb'(?>\r\n|\r|\n)')
_BLANK_LINE = re.compile(_NEWLINE.pattern + rb'[^\S\r\n]*' + _NEWLINE.pattern)
_BLANK_LINES = re.compile(r'\n\s*\n')
_LINE = re.compile(r'[^\n]*\n|[^\n]+')


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

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    return (row.strip('\n') for row in self.rows(on_bad) if row.strip())

  def rows(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    """Documents, or lines with the newline that ends them, blank ones too."""
    for text in self._decoded(on_bad):
      text = text.replace('\r\n', '\n').replace('\r', '\n')
      if self.by_line:
        yield from _LINE.findall(text)
      else:
        # With a newline before the text, a blank line at its start is treated like any other.
        parts = _BLANK_LINES.split('\n' + text)
        yield from (part.strip('\n') for part in parts if part.strip())

  def split(self, num_bytes: int) -> Sequence[TextSpan]:
    border = _NEWLINE if self.by_line else _BLANK_LINE
    cuts = rows.cuts(self.path, self.begin, self.end, num_bytes, border)
    return [dataclasses.replace(self, begin=b, end=e) for b, e in cuts]

  def _decoded(self, on_bad: OnBad) -> Iterator[str]:
    """All of it, or in pieces if documents in it are bad."""
    data = rows.read(self.path, self.begin, self.end)
    first = len(codecs.BOM_UTF8) if self.begin == 0 and data.startswith(codecs.BOM_UTF8) else 0
    if (text := _text(data[first:])) is not None:
      yield text
      return
    border = _NEWLINE if self.by_line else _BLANK_LINE
    for last in [*(match.end() for match in border.finditer(data, first)), len(data)]:
      piece = data[first:last]
      if (text := _text(piece)) is not None:
        yield text
      else:
        position = self.begin + first + _bad_byte(piece)
        on_bad(lambda at=position: self._problem(at))  # type: ignore[misc]
      first = last

  def _problem(self, position: int) -> tuple[str, str]:
    where = rows.line_of(self.path, position)
    return f'{where} is not UTF-8 (byte {position})', 'convert the file with iconv, or unpack it'


def text_span(path: str, file: BinaryIO, by_line: bool | None = None) -> TextSpan:
  """A whole file.

  Args:
    path: its path.
    file: opened, at its beginning.
    by_line: whether a document is a line; None: unless blank lines separate at least two.
  """
  end = rows.size_of(file)
  return TextSpan(path, 0, end, not _has_blank_lines(file) if by_line is None else by_line)


def _text(data: bytes) -> str | None:
  """None of what is not UTF-8, or holds zeros: UTF-16 without a mark, or no text at all."""
  try:
    return None if b'\0' in data else data.decode('utf-8')
  except UnicodeDecodeError:
    return None


def _bad_byte(data: bytes) -> int:
  zero = data.find(b'\0')
  try:
    data.decode('utf-8')
  except UnicodeDecodeError as error:
    return error.start if zero < 0 else min(zero, error.start)
  return zero


def _has_blank_lines(file: BinaryIO) -> bool:
  """Whether blank lines separate at least two documents; reads every byte once."""
  data = b''
  while chunk := file.read(CHUNK):
    data = (data + chunk).lstrip()
    blank = _BLANK_LINE.search(data)
    if blank and data[blank.end() :].strip():
      return True
    if blank:
      data = b'x\n\n'  # a document and a blank line; any text from here on is another
    elif data:  # a document that may continue, or end with half a blank line
      space = data[len(data.rstrip()) :]
      data = b'x' + (
        space[-1:] if space.endswith(b'\r') else b'\n' if _NEWLINE.search(space) else b''
      )
  return False

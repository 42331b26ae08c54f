"""Compressed files, read as the text that is in them.

Positions are those of the text, so that a span of a compressed file is that of the text itself.
To move forward, everything on the way is unpacked; to move back, the file is read anew. Pieces of a
file are therefore best read in order, and a file is best no larger than the work item of a worker.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import pyarrow
from etils import epath

from armd_jax.errors import UserError, sentence

KINDS = {'.gz': 'gzip', '.zst': 'zstd'}  # by the ends of names in lower case, as pyarrow calls them
_CHUNK = 1 << 20  # bytes


def without_packing(path: str) -> str:
  """The name of the text in a file: 'a.jsonl' of 'a.jsonl.gz'; any other name itself."""
  stem, end = os.path.splitext(path)
  return stem if end.lower() in KINDS else path


def is_packed(path: str) -> bool:
  """Whether a file is compressed, by its name."""
  return without_packing(path) != path


class Unpacked(io.RawIOBase):
  """The bytes of the text in a compressed file.

  Args:
    path: of the file, local or `gs://`.
  Raises:
    UserError: on reading, where the file is damaged.
  """

  def __init__(self, path: str):
    self._path = path
    self._kind = KINDS[os.path.splitext(path)[1].lower()]
    self._begin()

  def _begin(self) -> None:
    self._file = epath.Path(self._path).open('rb')
    self._at, self._ends = 0, False
    with self._plain_errors():
      self._stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(self._file), self._kind)

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def readinto(self, buffer: Any) -> int:
    with self._plain_errors():
      data = b'' if self._ends else self._stream.read(len(buffer))
    self._ends = not data
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    if whence == io.SEEK_END:
      while self._skip(_CHUNK):
        pass
    target = offset + (0 if whence == io.SEEK_SET else self._at)
    if target < self._at:
      self._file.close()
      self._begin()
    while self._at < target and self._skip(target - self._at):
      pass
    return self._at

  def _skip(self, most: int) -> int:
    return self.readinto(memoryview(bytearray(min(_CHUNK, most))))

  def close(self) -> None:
    if not self.closed:
      self._file.close()
    super().close()

  @contextlib.contextmanager
  def _plain_errors(self) -> Iterator[None]:
    try:
      yield
    except (pyarrow.ArrowException, OSError) as error:
      raise UserError(
        f'the text {self._path!r} is no {self._kind} file, or damaged ({sentence(error)}); get it '
        'anew'
      ) from error

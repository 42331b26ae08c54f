"""What an evaluation has measured so far, kept in a file, so that a stopped one can be resumed.

The file is JSON lines: what is measured, then the results of each batch as they come, each with its
CRC-32. They come in one order, so that their number is the place to resume; every number is read
back to the bit.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from armd_jax.errors import MetByAll, UserError
from armd_jax.files import buckets, lock, paths, whole
from armd_jax.parallel import distributed


class Journal:
  """Results of several parts, each a run of equally shaped rows.

  Args:
    path: the file; None keeps nothing.
    measured: what makes up the results, by name in the words of a user; a file with other values
      is refused.
    restart: drop what the file holds.
    writes: False: reads only; of several processes, one writes.
  Raises:
    UserError: the file holds an evaluation of something else, or anything else, is damaged, or
      cannot be used.
  """

  def __init__(
    self,
    path: str | pathlib.Path | None = None,
    measured: Mapping[str, Any] | None = None,
    *,
    restart: bool = False,
    writes: bool = True,
  ):
    self._path = pathlib.Path(path) if path and writes else None
    self._parts: dict[int, list[Any]] = {}
    if path is None:
      return
    # As it reads when it comes back from the file.
    measured = json.loads(json.dumps(measured))
    found = _content(path, measured)
    # What is behind the last newline was being written when the program stopped.
    *lines, cut_off = (b'' if restart else found).split(b'\n')
    if lines:
      self._read(path, lines, measured)
    if self._path and lines and cut_off:
      self._file('r+b', lambda file: file.truncate(len(found) - len(cut_off)))
    elif self._path and not lines:
      self._file('wb', lambda file: file.write(_first_line(measured)))

  def _read(self, path, lines, measured):
    try:
      first = whole.parse_json(lines[0], {})
      others = [name for name in measured if first.get(name) != measured[name]]
      for line in lines[1:]:
        part, rows, _ = whole.parse_json(line, [int, list, int])
        if _line(part, rows) != line + b'\n':
          raise ValueError('has another CRC-32 than was written')
        self._parts.setdefault(part, []).extend(rows)
      for part in self._parts:
        self.rows(part)  # rows of one shape, of numbers alone
    except (ValueError, TypeError) as error:
      raise UserError(f'{path} is damaged; drop it by --restart') from error
    if others:
      raise UserError(
        f'{path} holds an unfinished evaluation of another {" and another ".join(others)}; repeat '
        'its command, or drop it by --restart'
      )

  @property
  def count(self) -> int:
    """Rows of all parts."""
    return sum(map(len, self._parts.values()))

  def rows(self, part: int) -> np.ndarray:
    """What there is of a part, float64 [rows, ...]."""
    return np.array(self._parts.get(part, []), np.float64)

  def add(self, part: int, rows: np.ndarray) -> None:
    """Appends to a part.

    Raises:
      UserError: the file cannot be written.
    """
    rows = np.asarray(rows, np.float64).tolist()
    self._parts.setdefault(part, []).extend(rows)
    if self._path:
      self._file('ab', lambda file: file.write(_line(part, rows)))

  def finish(self) -> None:
    """Removes the file, once its results are where they belong."""
    if self._path:
      self._path.unlink(missing_ok=True)

  def _file(self, mode, change):
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with self._path.open(mode) as file:
        change(file)
    except OSError as error:
      raise UserError(
        f'cannot write {self._path} ({error.strerror}); give another --partial'
      ) from error


def place(partial: str | None, workdir: str, suite: str) -> pathlib.Path | None:
  """Where results are kept: the value of --partial, or beside the weights; None in a bucket, where
  nothing can be added to a file.

  Raises:
    UserError: it names nothing on a disk.
  """
  if partial:
    return paths.given(partial, '--partial')
  folder = paths.kept(workdir, '--workdir')
  if buckets.is_bucket(folder):
    return None
  folder = folder if folder.is_dir() else folder.parent  # an export may be one file
  return folder / f'evaluate_{suite}.partial'


@contextlib.contextmanager
def shared(
  path: pathlib.Path | None, measured: Mapping[str, Any], *, restart: bool
) -> Iterator[Journal]:
  """A journal that all processes of a job have read alike, that one of them writes, and that no
  other job writes as long as the block runs.

  Args:
    path, measured, restart: see `Journal`; None keeps nothing.
  Raises:
    UserError: as `Journal`; another job has it, or the processes do not read the same.
  """
  if path is None:
    yield Journal()
    return
  is_first = distributed.is_first()
  with contextlib.ExitStack() as stack:
    held = lock.held(lock.beside(path), f'--partial {path}')
    distributed.together(lambda: is_first and stack.enter_context(held))
    journal = distributed.together(
      lambda: Journal(path, measured, restart=restart, writes=is_first)
    )
    if len(set(distributed.gather_text(str(journal.count)))) > 1:
      raise MetByAll(
        f'the processes do not read the same in {path}; give a --partial that all of them can '
        'read, or --restart'
      )
    yield journal


def _content(path, measured):
  """What a journal holds; refuses any other file, which would be cut off, or removed in the end."""
  path = pathlib.Path(path)
  try:
    found = path.read_bytes() if path.is_file() else b''
  except OSError as error:
    raise UserError(f'cannot read {path} ({error.strerror}); give another --partial') from error
  # Of one that was being begun there may be less than this.
  begin = _first_line(measured).partition(b':')[0]
  if (path.exists() and not path.is_file()) or found[: len(begin)] != begin[: len(found)]:
    raise UserError(
      f'{path} is there and is no unfinished evaluation; give another --partial, or take it away'
    )
  return found


def _first_line(measured):
  return json.dumps(measured).encode() + b'\n'


def _line(part, rows):
  text = json.dumps([part, rows])
  return f'{text[:-1]}, {zlib.crc32(text.encode())}]\n'.encode()

"""Files that are written whole or not at all, and JSON that is checked as it is read."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from armd_jax.errors import UserError, sentence
from armd_jax.files import buckets

_DIGITS = 400  # of a number: float64 has at most 309 before its point
_MOST = 2**28  # bytes of a file of JSON
_LARGEST = 2**63  # of whole numbers: arrays and clocks hold no others


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A name beside `path` to write a file to, which takes its place once the block ends well.

  A link is followed, so that it stays one. What is there and is no file, such as a terminal or a
  pipe, is written to directly. In a bucket an object takes its place.
  """
  if buckets.is_bucket(path):
    with tempfile.TemporaryDirectory() as name:
      part = pathlib.Path(name) / 'part'
      part.touch()
      yield part
      buckets.open_path(os.fspath(path), 'the path').write_bytes(part.read_bytes())
    return
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    yield path
    return
  path = path.resolve()
  path.parent.mkdir(parents=True, exist_ok=True)
  # Short, since the name of `path` may be as long as a file system takes.
  handle, name = tempfile.mkstemp(prefix='.armd_jax_', suffix='.part', dir=path.parent)
  os.close(handle)
  part = pathlib.Path(name)
  try:
    # As any new file's: `mkstemp` gives it to this user alone.
    part.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
    yield part
    with part.open('rb+') as file:
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes UTF-8. A lone surrogate, which UTF-8 cannot encode, becomes its escape.

  Raises:
    OSError: it cannot be written; what was there before is there still.
  """
  with replacing(path) as part:
    part.write_text(text, 'utf-8', errors='backslashreplace')


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes indented JSON, as `write_text`.

  JSON has no infinity and no NaN: a number that is not finite is written as null, by which whoever
  reads it must know it.
  """
  write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + '\n')


def _finite(value: Any) -> Any:
  """The value with None for what is not finite, at any depth."""
  if isinstance(value, dict):
    return {name: _finite(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [*map(_finite, value)]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def refusal(error: BaseException | None) -> str | None:
  """What the system answered where it refused to write: no space, no permission and the like."""
  if isinstance(error, UserError):  # a sentence already, perhaps of a file that cannot be read
    return None
  if isinstance(error, BaseExceptionGroup):
    return next(filter(None, map(refusal, error.exceptions)), None)
  if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
    return error.strerror
  if error is not None and (answer := buckets.refusal(error)):
    return answer
  # TensorStore and safetensors have the system's error in their text only.
  code = re.search(r"os_error_code='(\d+)'|\(os error (\d+)\)", str(error))
  # No exception is falsy.
  return os.strerror(int(code[1] or code[2])) if code else error and refusal(error.__cause__)  # type: ignore[return-value]


def parse_json(data: str | bytes, like: Any) -> Any:
  """JSON of a known form.

  Args:
    data: the text.
    like: its form, see `check_form`.
  Raises:
    ValueError: it is no JSON, or has another form; the text describes what is wrong.
  """
  try:
    value = json.loads(data, parse_int=_int, parse_float=_float)
  except RecursionError:
    raise ValueError('is nested too deep') from None
  except ValueError as error:
    raise ValueError(f'is cut short or no JSON: {sentence(error)}') from None
  check_form(value, like)
  return value


def read_bytes(path: Any) -> bytes:
  """All of a file that is small if it is what it should be.

  Args:
    path: a `pathlib.Path`, or, of a bucket, an `epath.Path`.
  Raises:
    OSError: it cannot be read, is no ordinary file, which may never end, or is too large.
  """
  check_ends(path)
  name = os.fspath(path)  # of a bucket, nothing is there on the disk
  if os.path.isfile(name) and os.path.getsize(name) > _MOST:
    raise OSError(errno.EFBIG, f'it has more than {_MOST // 2**20} MiB')
  return path.read_bytes()


def check_ends(path: Any) -> None:
  """Refuses what may never end; folders are left to what reads them.

  Raises:
    OSError: it is a pipe or a device.
  """
  name = os.fspath(path)
  if os.path.exists(name) and not os.path.isdir(name) and not os.path.isfile(name):
    raise OSError(errno.EINVAL, 'it is no ordinary file', name)


def read_json(path: Any, like: Any, fix: str) -> Any:
  """The JSON of a file.

  Args:
    path: the file; of a bucket as an `epath.Path`.
    like: its form, see `check_form`.
    fix: what a user can do about a file that is damaged.
  Raises:
    FileNotFoundError, NotADirectoryError: there is no file.
    UserError: it is damaged, or cannot be read.
  """
  try:
    file = pathlib.Path(path) if isinstance(path, str) else path
    return parse_json(read_bytes(file), like)
  except (FileNotFoundError, NotADirectoryError):
    raise
  except OSError as error:
    raise UserError(f'cannot read {path} ({error.strerror}); {fix}') from error
  except ValueError as error:
    raise UserError(f'{path} is damaged (it {error}); {fix}') from error


def check_form(value: Any, like: Any, where: str = '') -> None:
  """Compares a value that came out of a file with what it should look like.

  Args:
    value: of JSON.
    like: a type, or a tuple of types, that the value must have (int is no bool, float takes int);
      `{'name': like, ...}` for an object with at least these; `{str: like}` for one with any names;
      `[like]` for a list of such, `[like, like]` for one of that many; `(like, None)` for such a
      list or object or null; `None` for anything.
    where: the value's place, for the message.
  Raises:
    ValueError: naming the first place that differs.
  """
  here = f'at {where}' if where else 'at its top'
  if isinstance(like, tuple) and None in like:
    like = None if value is None else like[0]
  if like is None:
    return
  if isinstance(like, dict):
    if not isinstance(value, dict):
      raise ValueError(f'holds {_short(value)} {here}, not an object')
    if str in like:
      for name, item in value.items():
        check_form(item, like[str], f'{where}.{name}'.lstrip('.'))
      return
    for name, item in like.items():
      if name not in value:
        raise ValueError(f'lacks {name!r} {here}')
      check_form(value[name], item, f'{where}.{name}'.lstrip('.'))
    return
  if isinstance(like, list):
    if not isinstance(value, list) or (len(like) > 1 and len(value) != len(like)):
      raise ValueError(f'holds {_short(value)} {here}, not a list')
    for i, item in enumerate(value):
      check_form(item, like[i] if len(like) > 1 else like[0], f'{where}[{i}]')
    return
  kinds = like if isinstance(like, tuple) else (like,)
  if float in kinds:
    kinds = (*kinds, int)
  if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
    names = ' or '.join('null' if kind is type(None) else kind.__name__ for kind in kinds)
    raise ValueError(f'holds {_short(value)} {here}, not {names}')
  if isinstance(value, int) and abs(value) >= _LARGEST:
    raise ValueError(f'holds {_short(value)} {here}, a number out of range')


def sha256(value: Any) -> str:
  """Of a value of JSON, hex, whatever the order of its names: what a file can hold of itself."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _short(value):
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:37]}...'


def _int(text):
  if len(text) > _DIGITS:
    raise ValueError('a number of too many digits')
  return int(text)


def _float(text):
  if len(text) > _DIGITS:
    raise ValueError('a number of too many digits')
  return float(text)

"""Folders of runs in buckets: gs://, through etils.epath and gcsfs.

An object is there as a whole or not at all, and nothing can be renamed or added to. What is kept
here is found again by its last object, and what grows is written in parts.
"""

from __future__ import annotations

import base64
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from armd_jax.errors import UserError, sentence

BUCKET = 'gs://'
_SECONDS = 30  # without a byte, after which a request is made again
_readable: set[str] = set()  # buckets, as this process has found
# What TensorStore, which has no kind of error for it, adds to the text of an answer, or of none.
_TENSORSTORE = re.compile(r"\[(http_response_code|curl_code)='")
_LIBRARIES = ('gcsfs', 'google', 'aiohttp')  # whose errors are answers of the store, or its absence


def is_bucket(path: Any) -> bool:
  """Whether a path is in a bucket and not on a disk."""
  return os.fspath(path).startswith(BUCKET)


def open_path(path: str, what: str) -> Any:
  """An `epath.Path`, whose listings are always new.

  Raises:
    UserError: the package that reads buckets is missing.
  """
  import fsspec
  from etils import epath

  # TensorStore, too, asks again where nothing comes for so long; it would wait for ever.
  os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', str(_SECONDS))
  os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES', '1')

  try:
    fsspec.get_filesystem_class('gcs')
  except ImportError as error:
    raise UserError(
      f'{what} is {path!r}, and {BUCKET} is read by gcsfs; pip install gcsfs, or copy it to a disk'
    ) from error
  import aiohttp

  settings = fsspec.config.conf.setdefault('gcs', {})
  settings['use_listings_cache'] = False  # other processes write, too
  timeout = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
  settings.setdefault('requests_timeout', timeout)
  return epath.Path(path)


def check(folder: Any, what: str) -> None:
  """Refuses a bucket that cannot be read, before anything else is done.

  Args:
    folder: in it; it need not be there.
    what: where it was written, such as '--workdir'.
  Raises:
    UserError: naming what the store answered; one that could be read is not asked again.
  """
  name = _bucket_of(folder)
  if name in _readable:
    return
  if reason := why_not(folder):
    raise UserError(
      f'{what} is {os.fspath(folder)!r}, but the bucket {name!r} cannot be read ({reason}); check '
      'its name, and your credentials (gcloud auth application-default login)'
    )
  _readable.add(name)


def why_not(folder: Any) -> str:
  """What keeps a bucket from being read now, after several attempts; '' if nothing does."""
  try:
    _store(folder).ls(_bucket_of(folder))
  except Exception as error:  # whatever networks and credentials raise
    return refusal(error) or sentence(error)
  return ''


def _bucket_of(folder: Any) -> str:
  return os.fspath(folder).removeprefix(BUCKET).partition('/')[0]


def refusal(error: BaseException) -> str | None:
  """What a store answered, in words; None of any other error."""
  if type(error).__module__.split('.')[0] in _LIBRARIES:
    return f'{type(error).__name__}: {sentence(error)}'
  return sentence(error) if _TENSORSTORE.search(str(error)) else None


def contents(folder: Any) -> dict[str, tuple[int, int]]:
  """Size and CRC-32C of everything below a folder, by its name in it, as the store knows them."""
  below = os.fspath(folder).removeprefix(BUCKET).rstrip('/') + '/'
  found = _store(folder).find(below, detail=True)
  return {
    name.removeprefix(below): (int(about['size']), _number(about))
    for name, about in found.items()
    if about['type'] == 'file'
  }


def copy(source: Any, target: Any, names: Iterable[str]) -> None:
  """Copies what is in one folder to another of the same bucket, in this order, within the store."""
  for name in names:
    _store(source).cp_file(os.fspath(source / name), os.fspath(target / name))


def remove(folder: Any, names: Iterable[str]) -> None:
  """Removes what is in a folder, in no order."""
  if whole_names := [os.fspath(folder / name) for name in names]:
    _store(folder).rm(whole_names)


def put(file: pathlib.Path, path: Any) -> None:
  """Writes an object from a file, without all of it in memory."""
  _store(path).put_file(os.fspath(file), os.fspath(path))


def get(path: Any, file: pathlib.Path) -> None:
  """Writes a file from an object, without all of it in memory."""
  file.parent.mkdir(parents=True, exist_ok=True)
  _store(path).get_file(os.fspath(path), os.fspath(file))


def _number(about: dict[str, Any]) -> int:
  return int.from_bytes(base64.b64decode(about['crc32c']), 'big')


def _store(path: Any) -> Any:
  from etils.epath import backend

  return backend.fsspec_backend.fs(os.fspath(path))

"""Folders of runs in buckets: gs://, through etils.epath and gcsfs.

An object is there as a whole or not at all, and nothing can be renamed or added to. What lies here
is found again by its last object, and what grows is written in parts.
"""

from __future__ import annotations

import base64
import os
from typing import Any

from armd_jax.errors import UserError, sentence

BUCKET = 'gs://'
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

  try:
    fsspec.get_filesystem_class('gcs')
  except ImportError as error:
    raise UserError(
      f"{what} is {path!r}, and {BUCKET} is read by gcsfs; pip install 'armd_jax[gcs]', or copy it "
      'to a disk'
    ) from error
  # Other processes write, too.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  return epath.Path(path)


def check(folder: Any, what: str) -> None:
  """Refuses a bucket that cannot be read, before anything else is done.

  Args:
    folder: in it; it need not be there.
    what: where it was written, such as '--workdir'.
  Raises:
    UserError: naming what the store answered.
  """
  name = os.fspath(folder).removeprefix(BUCKET).partition('/')[0]
  try:
    _store(folder).ls(name)
  except Exception as error:  # whatever networks and credentials raise
    reason = refusal(error) or sentence(error)
    raise UserError(
      f'{what} is {os.fspath(folder)!r}, but the bucket {name!r} cannot be read ({reason}); check '
      'its name, and your credentials (gcloud auth application-default login)'
    ) from error


def refusal(error: BaseException) -> str | None:
  """What a store answered, in words; None of any other error."""
  if type(error).__module__.split('.')[0] in _LIBRARIES:
    return f'{type(error).__name__}: {sentence(error)}'
  return None


def contents(folder: Any) -> dict[str, tuple[int, int]]:
  """Size and CRC-32C of everything below a folder, by its name in it, as the store knows them."""
  below = os.fspath(folder).removeprefix(BUCKET).rstrip('/') + '/'
  found = _store(folder).find(below, detail=True)
  return {
    name.removeprefix(below): (int(about['size']), _number(about))
    for name, about in found.items()
    if about['type'] == 'file'
  }


def _number(about: dict[str, Any]) -> int:
  return int.from_bytes(base64.b64decode(about['crc32c']), 'big')


def _store(path: Any) -> Any:
  from etils.epath import backend

  return backend.fsspec_backend.fs(os.fspath(path))

"""Paths as users write them."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from armd_jax.errors import UserError
from armd_jax.files import buckets

# What begins an address, of a store or of a file.
_ADDRESS = re.compile(r'([A-Za-z][\w+.-]*):/', re.ASCII)

# What results begin with, and names of files that are none, although they look like it.
KINDS = {
  'JSON': (b'{', b'['),
  'page': (b'<!doctype html>',),
  'picture': (
    b'\x89PNG\r\n\x1a\n',
    b'%PDF-',
    b'<svg',
    # As matplotlib begins it: XML of other kinds begins nearly so.
    b'<?xml version="1.0" encoding="utf-8" standalone="no"?>\n<!DOCTYPE svg',
  ),
}
_SUFFIXES = {'picture': ('.png', '.svg', '.pdf')}  # which choose the format; PNG without one
_NO_RESULTS = (
  'config.json', 'text.json', 'tokenizer.json', 'export.json', 'checkpoint.json', 'manifest.json',
  'wandb_run.json',
)  # fmt: skip

# What no library takes for a pattern, an escape, or an address.
_PLAIN = re.compile(r'[\w/.,=+@ -]*', re.ASCII)
_TEMPORARY = ('/tmp', '/var/tmp')  # where there are links to others, if not in TMPDIR
_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes
_PACKAGE = pathlib.Path(__file__).parents[1]
# Places that a program does without, and says so.
_OPTIONAL = ('--compilation_cache',)
_aliases: dict[pathlib.Path, pathlib.Path] = {}


def given(path: str | os.PathLike[str], what: str) -> pathlib.Path:
  """A path that a user wrote, `~` expanded.

  Args:
    path: as written.
    what: where it was written, such as '--workdir'.
  Raises:
    UserError: it names nothing on a disk, its links lead in a circle, this user may not enter it or
      a folder above it, or the current directory, from which it leads on, is gone.

  Examples:
    >>> given('work/mine/', '--workdir')
    PosixPath('work/mine')
  """
  if not isinstance(path, str | os.PathLike):
    raise UserError(f'{what} is {path!r}; write a text or a pathlib.Path')
  text = os.fspath(path)
  if not text.strip():
    raise UserError(f'{what} is empty; write the name of a folder or a file')
  if '\0' in text or not _may_be(text):
    raise UserError(f'{what} is {text!r}, which no file system takes; write another name')
  if scheme := _ADDRESS.match(text):
    if scheme[1].lower() == 'file':
      raise UserError(f'{what} is {text!r}, the address of a file; write its path alone')
    raise UserError(
      f'{what} is {text!r}, but {scheme[1]}:// is not supported here; write a path on a disk, and '
      'mount that store there, or copy'
    )
  try:
    path = pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise UserError(f'{what} is {text!r}, but there is no such home; write a path') from error
  _check_leads_on(path, what)
  return path


def _check_leads_on(path: pathlib.Path, what: str) -> None:
  """Refuses what `resolve`, `absolute` and `exists` raise errors of."""
  try:
    path.is_absolute() or os.getcwd()
  except OSError as error:
    raise UserError(
      f'{what} is {path}, but the current directory is gone; change to one that is there, or write '
      'a path that begins with /'
    ) from error
  try:
    path.stat()
    os.stat(f'{path}/.')  # which takes the permission to enter a folder
  except OSError as error:  # of others, where the path is used
    if error.errno == errno.ELOOP:
      raise UserError(
        f'{what} is {path}, whose links lead in a circle; write another, or mend the links'
      ) from error
    if error.errno in (errno.EACCES, errno.EPERM) and what not in _OPTIONAL:
      raise UserError(
        f'{what} is {path}, which this user may not look into ({error.strerror}); ask its owner '
        'for the permission, or write another'
      ) from error


def forbidden(error: BaseException) -> str | None:
  """Of an error of permissions a sentence that names the file; None of any other error."""
  if not isinstance(error, PermissionError) or not isinstance(error.filename, str | bytes):
    return None
  return (
    f'this user may not use {os.fsdecode(error.filename)} so ({error.strerror}); ask its owner for '
    'the permission, or name another place'
  )


@contextlib.contextmanager
def permitted() -> Iterator[None]:
  """Makes an error of permissions a sentence.

  Raises:
    UserError: naming the file.
  """
  try:
    yield
  except PermissionError as error:
    if (reason := forbidden(error)) is None:
      raise
    raise UserError(reason) from error


def readable(path: str | os.PathLike[str], what: str) -> Any:
  """A path that a user wrote of texts and prepared corpora, which may be in a bucket, too.

  Args:
    path: as written.
    what: where it was written, such as 'config.data.source'.
  Returns:
    An `epath.Path`.
  Raises:
    UserError: as `given`, or the package that reads buckets is missing.
  """
  from etils import epath  # which a launcher need not have

  if _in_bucket(path, what):
    return buckets.open_path(os.fspath(path), what)
  return epath.Path(given(path, what))


def kept(path: str | os.PathLike[str], what: str) -> Any:
  """The folder of a run that a user wrote, which may be in a bucket, too.

  Args:
    path: as written.
    what: where it was written, such as '--workdir'.
  Returns:
    A `pathlib.Path`, or an `epath.Path` of a bucket, which has most of its methods.
  Raises:
    UserError: as `readable`.
  """
  return readable(path, what) if _in_bucket(path, what) else given(path, what)


def check_result(
  path: str | os.PathLike[str], what: str, kind: str, others: Mapping[str, Iterable[str]]
) -> None:
  """Refuses to write a result where it would take the place of anything but an older one.

  Args:
    path: as written; nothing in a bucket is looked at.
    what: the flag.
    kind: of the result, of KINDS.
    others: what other flags name, by flag.
  Raises:
    UserError: it is a folder, what another flag names, a file of a run, or one of another kind; or
      its name ends as no file of this kind does.
  """
  place = kept(path, what)
  suffixes = _SUFFIXES.get(kind)
  if suffixes and place.suffix and place.suffix.lower() not in suffixes:
    named = ' or '.join(suffixes)
    raise UserError(f'{what} is {place}, which ends as no {kind}; end it in {named}')
  if buckets.is_bucket(place):
    return
  if place.is_dir():
    raise UserError(f'{what} is {place}, which is a folder; write the name of a file')
  for name, paths in others.items():
    if any(kept(other, name).resolve() == place.resolve() for other in paths if other):
      raise UserError(f'{what} is {place}, and so is --{name}; write another file')
  if place.exists() and not place.is_file():  # a terminal, a pipe
    return
  above = next(folder for folder in place.resolve().parents if folder.exists())
  if not above.is_dir() or not os.access(above, os.W_OK):
    raise UserError(f'{what} is {place}, but {above} is no folder that takes files; write another')
  if not place.exists():
    return
  try:
    with place.open('rb') as file:
      begin = file.read(128).lstrip()
  except OSError as error:
    raise UserError(f'cannot read {place} ({error.strerror}); give another {what}') from error
  if place.name in _NO_RESULTS or (begin and not begin.startswith(KINDS[kind])):
    raise UserError(
      f'{what} is {place}, which is there and is no {kind} of results; write another file, or '
      'take it away'
    )


def experiment(path: str, what: str) -> str:
  """The file of an experiment that a user named, from the current directory on.

  One that is not there and whose name begins with `experiments/` is the project's own of that name:
  a clone has these beside the package, an installed package inside.

  Args:
    path: as written, perhaps with options behind a colon, like experiments/text8.py:family=mdlm.
    what: where it was written, such as '--config'.
  Raises:
    UserError: it names nothing on a disk, or what is there is no file.
  """
  name, colon, options = path.partition(':')
  file = given(name, what)
  if not file.exists() and file.parts[:1] == ('experiments',):
    own = [root / file for root in (_PACKAGE, _PACKAGE.parent)]
    file = next((path for path in own if path.exists()), file)
  check_file(file, what)
  return f'{file}{colon}{options}'


def check_file(path: pathlib.Path, what: str) -> None:
  """Refuses what is there and would be read for ever, or not at all.

  Raises:
    UserError: it is a folder, a pipe or a device.
  """
  if path.exists() and not path.is_file():
    raise UserError(f'{what} is {path}, which is no ordinary file; write the name of one')


def _in_bucket(path: Any, what: str) -> bool:
  """Whether a path is in a bucket.

  Raises:
    UserError: it is nearly so: `pathlib` makes gs:/bucket of an address.
  """
  if not isinstance(path, str | os.PathLike):
    return False
  if buckets.is_bucket(path):
    return True
  text = os.fspath(path)
  if text[: len('gs:/')].lower() == 'gs:/':
    address = buckets.BUCKET + text[len('gs:/') :].lstrip('/')
    raise UserError(f'{what} is {text!r}; write a bucket as a text that begins so: {address!r}')
  return False


def _may_be(text: str) -> bool:
  """Whether a file system can take the name; others raise an error at the first look for it."""
  try:
    name = os.fsencode(text)
  except UnicodeEncodeError:
    return False
  return len(name) < _LONGEST_PATH and max(map(len, name.split(b'/'))) <= _LONGEST_NAME


def plain(folder: pathlib.Path) -> pathlib.Path:
  """An absolute name of a folder that orbax and TensorStore read as nothing but a name.

  orbax looks for its own files with `glob`, which takes brackets and backslashes anywhere above
  them for a pattern, and TensorStore takes other names for addresses. Such a folder is reached
  through a symbolic link of a plain name, which this process removes when it ends.

  Args:
    folder: that exists, if its name is not plain.
  Raises:
    UserError: it is not, and nor is that of any folder where such a link could be.
  """
  if buckets.is_bucket(folder):
    return folder
  folder = folder.absolute()
  if _PLAIN.fullmatch(str(folder)):
    return folder
  if folder not in _aliases:
    bases = filter(_PLAIN.fullmatch, (tempfile.gettempdir(), *_TEMPORARY))
    base = next((base for base in bases if os.access(base, os.W_OK | os.X_OK)), None)
    if base is None:
      raise UserError(
        f'orbax cannot read below {folder}, and TMPDIR, where a link to it would be, is '
        f'{tempfile.gettempdir()}; set TMPDIR to a folder whose name has only letters, digits, _ '
        'and - in it'
      )
    place = pathlib.Path(tempfile.mkdtemp(prefix='armd_jax_', dir=base))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    _aliases[folder] = place / 'folder'
    _aliases[folder].symlink_to(folder)
  return _aliases[folder]

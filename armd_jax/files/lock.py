"""One program at a time at a folder or a file.

A lock is the operating system's own (`flock`), which ends with the process that holds it, however
it ends, so that none is ever left behind. Its file names who took it, for the message of the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import stat
import sys
from collections.abc import Iterator

from armd_jax.errors import UserError
from armd_jax.files import whole

FOLDER_LOCK = '.armd_jax.lock'

_FORM = {'program': str, 'process': int, 'host': str}
_LONGEST = 4096  # bytes of such a file


@contextlib.contextmanager
def held(path: pathlib.Path, what: str) -> Iterator[None]:
  """Holds a folder, which is made if need be, or a file that is there or not, until the block ends.

  Args:
    path: of the lock: `folder / FOLDER_LOCK`, or `beside` a file.
    what: what to call the place in messages, such as '--workdir work/mine'.
  Raises:
    UserError: another program, or another thread of this one, holds it; it cannot be written; or a
      file of its name is there that is no lock, and is left as it is.
  """
  try:
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _taken(path)
  except OSError as error:
    raise UserError(
      f'cannot write to {path.parent} ({error.strerror}); make it writable, or choose another place'
    ) from error
  if file is None:
    raise UserError(
      f'{what} is in use by {_holder(path)}; wait for it to end, or choose another place'
    )
  with file:
    try:
      yield
    finally:
      path.unlink(missing_ok=True)  # while it is held: who takes it next finds it gone, or makes it
      with contextlib.suppress(OSError):  # something was put there
        for folder in made:
          folder.rmdir()


def beside(path: pathlib.Path) -> pathlib.Path:
  """The lock of a file."""
  return path.with_name(f'.{path.name}.lock')


def _taken(path):
  """The locked file of a lock, or None where another has it."""
  while True:
    file = _opened(path)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.close()
      return None
    except OSError:
      file.close()
      raise
    # Between opening and locking, its holder may have ended and removed it.
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.lstat()):
      break
    file.close()
  # Which is written over here, and removed in the end.
  found = os.pread(file.fileno(), _LONGEST, 0)
  try:
    _ = found and whole.parse_json(found, _FORM)
  except ValueError as error:
    file.close()
    raise _no_lock(path) from error
  program = pathlib.Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else 'python'
  about = {'program': program, 'process': os.getpid(), 'host': socket.gethostname()}
  try:
    file.truncate(0)
    file.write(json.dumps(about).encode())
  except OSError:
    path.unlink(missing_ok=True)
    file.close()
    raise
  return file


def _opened(path):
  # A link leads to a file of somebody, and what is read from a pipe never ends.
  how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
  try:
    file = open(os.open(path, how, 0o666), 'ab', buffering=0)  # noqa: SIM115
  except OSError as error:
    if path.is_symlink() or path.is_dir():
      raise _no_lock(path) from error
    raise
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise _no_lock(path)
  return file


def _no_lock(path):
  return UserError(
    f'{path} is in the place of a lock, and is none of armd_jax; move it away, or choose another '
    'place'
  )


def _holder(path):
  try:
    found = whole.parse_json(path.read_bytes(), _FORM)
    return f'{found["program"]} (process {found["process"]} on {found["host"]})'
  except (OSError, ValueError):  # it has just ended, or taken it
    return 'another program'

"""Compiled programs, kept on a disk for later starts: jax's persistent compilation cache."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import re
import sys

import jax

from armd_jax.files import buckets, paths

FOLDER, NONE = '~/.cache/armd_jax/compiled', 'none'
_SECONDS = 0.1  # what compiles faster is not worth a file
_MOST_BYTES = 4 * 2**30
# Programs that are to see a compiler at work: of what is read from a disk less is known.
_MEASURE = ('armd_jax.aot', 'armd_jax.bench.', 'armd_jax.reproduce.')


def keep(folder: str) -> None:
  """From here on what was compiled before is read from a folder, and what is compiled is added.

  jax's own variables win where no folder is given: JAX_COMPILATION_CACHE_DIR names another one, and
  JAX_ENABLE_COMPILATION_CACHE=false keeps none. Programs that measure compiled programs keep none
  either, unless a folder is given. Of the processes of a job the first one writes.

  Args:
    folder: '' for FOLDER; NONE keeps nothing; in a bucket, where nothing is ever removed, all
      machines of a job share it.
  Raises:
    UserError: it names nothing on a disk, or a bucket that cannot be read.
  """
  if folder == NONE:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  main = getattr(sys.modules['__main__'], '__spec__', None)
  measures = main is not None and main.name.startswith(_MEASURE)
  if not folder and (measures or jax.config.jax_compilation_cache_dir):  # type: ignore[attr-defined]
    return
  # A CPU's programs may hold instructions that another one lacks, which jax does not look at.
  path = paths.kept(folder or FOLDER, '--compilation_cache') / _cpu()
  if buckets.is_bucket(path):
    buckets.check(path, '--compilation_cache')
  elif not _is_writable(path):
    return
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _SECONDS)


def _is_writable(path: pathlib.Path) -> bool:
  """Whether a folder, which is made, takes files and has room; prints a line where it does not."""
  try:
    path.mkdir(parents=True, exist_ok=True)
    _remove_old(path, _MOST_BYTES)
    if not os.access(path, os.W_OK):
      raise PermissionError(0, 'not writable')
  except OSError as error:
    print(
      f'note: compiled programs are not kept in {path} ({error.strerror}); give another '
      f'--compilation_cache, or {NONE}',
      file=sys.stderr,
    )
    return False
  return True


def _cpu() -> str:
  """Names what this CPU's programs run on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    lines = []
  kinds = ('model name', 'flags', 'CPU part', 'Features')
  found = {line for line in lines if re.match('|'.join(kinds), line)}
  digest = hashlib.sha256('\n'.join(sorted(found)).encode()).hexdigest()[:8]
  return f'{platform.machine()}-{digest}'


def _remove_old(folder: pathlib.Path, most_bytes: int) -> None:
  """Removes the oldest files of a folder that holds more."""
  files = sorted((about.st_mtime, about.st_size, path) for path, about in _files(folder))
  size = sum(size for _, size, _ in files)
  for _, own, path in files:
    if size <= most_bytes:
      return
    path.unlink(missing_ok=True)  # another start may do the same
    size -= own


def _files(folder: pathlib.Path) -> list[tuple[pathlib.Path, os.stat_result]]:
  found = []
  for path in folder.iterdir():
    try:
      found.append((path, path.stat()))
    except FileNotFoundError:  # removed meanwhile
      continue
  return [(path, about) for path, about in found if path.is_file()]

"""Checkpoints of a run, through orbax: written beside the training, read back strictly.

  checkpoints/STEP/         the training state as orbax writes it, and its seal,
    checkpoint.json         next global example index, config, size and CRC-32 of every other file,
                            in a bucket the CRC-32C that the store has of it, and the SHA-256 of
                            all that
  checkpoints/STEP.part     a save that is not finished; the next save removes what a kill left

In a bucket there is no STEP.part: STEP/ is a checkpoint once its seal is there. On a disk a folder
gets its number once all of it is on disk and orbax finds in it what it was given. A
checkpoint whose seal is missing or broken, or whose files differ from those in the seal, has been
damaged later. The one before it is then used instead.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from armd_jax import config as config_lib
from armd_jax.errors import UserError
from armd_jax.files import buckets, mounts, paths, whole
from armd_jax.parallel import distributed
from armd_jax.parallel.axes import path_name
from armd_jax.training import TrainState
from armd_jax.training import workdir as workdir_lib

_SEAL = 'checkpoint.json'
_FORBIDDEN = 'forbidden '  # what is no damage: before the name of a file
_FORM = {
  'step': int,
  'next_index': int,
  'held_out': (float, type(None)),
  'files': {str: [int, int]},
}
# What orbax and we write into the folder of a checkpoint.
_OURS = re.compile(
  r'checkpoint\.json|_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|array_metadatas'
  r'|commit_success\.txt|manifest\.ocdbt|ocdbt\.process_\d+|d'
)


class Checkpoints:
  """The checkpoints of one work directory; nothing is created or removed before the first save."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    keep_last: int = 1,
    keep_every: int = 0,
    keep_best: int = 0,
  ):
    """Chooses the folder, and which checkpoints are kept once a newer one is complete.

    Args:
      workdir: the run's directory.
      keep_last: newest checkpoints.
      keep_every: all of steps that are multiples of this; 0: none.
      keep_best: those with the lowest held-out loss.
    """
    folder = paths.kept(workdir, '--workdir')
    # Where a folder cannot be renamed, the seal, which is written last, makes it a checkpoint.
    self._in_bucket = buckets.is_bucket(folder)
    self.directory = (folder if self._in_bucket else folder.absolute()) / 'checkpoints'
    self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
    self._orbax = ocp.StandardCheckpointer()
    logging.getLogger('asyncio').addFilter(_is_news)
    self._finishing: threading.Thread | None = None
    self._error: BaseException | None = None
    self._damaged: set[int] = set()  # as far as `restore` has looked
    self._left: set[int] = set()  # what others have put there under the name of a step
    self._told = False  # where the checkpoints are

  def found(self) -> list[int]:
    """Steps of all checkpoints there are, damaged or not, in order.

    Raises:
      UserError: this user may not read their folder.
    """
    with paths.permitted():
      folders = list(self.directory.iterdir()) if self.directory.is_dir() else ()
    steps = (int(path.name) for path in folders if workdir_lib.is_checkpoint(path.name))
    return sorted(step for step in steps if not self._in_bucket or self._is_sealed(step))

  def _is_sealed(self, step: int) -> bool:
    return (self.directory / str(step) / _SEAL).exists()

  # ----- writing

  def save(self, step: int, state: TrainState, next_index: int, held_out: float | None) -> None:
    """Starts writing; training may continue and donate the state at once.

    Args:
      step: steps done.
      state: the training state.
      next_index: next global example index, the data's whole state.
      held_out: held-out nats per token at this step, if measured; decides what is best, and never
        for a number that is not finite.
    Raises:
      UserError: this checkpoint, or the one before it, cannot be written.
    """
    # One save at a time. An error of the last one is raised here.
    self.wait()
    part = self.directory / (str(step) if self._in_bucket else f'{step}.part')
    with self._saving():
      if self._in_bucket and distributed.is_first():
        self._remove_unsealed(part)
      if not self._in_bucket:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._tell_of_bucket()
      if distributed.is_first() and not self._in_bucket:
        self._make_room(part)
      self._orbax.save(paths.plain(self.directory) / part.name, state)
    if held_out is not None and not math.isfinite(held_out):
      held_out = None
    seal = {'step': step, 'next_index': next_index, 'held_out': held_out}
    self._finishing = threading.Thread(
      target=self._finish, args=(part, seal, _shapes(state)), daemon=True
    )
    self._finishing.start()

  def _make_room(self, part: pathlib.Path) -> None:
    """Removes what killed saves have left on a disk.

    Raises:
      UserError: something of somebody else has a name that this save needs.
    """
    for path in (part, part.with_suffix('')):
      if (path.exists() or path.is_symlink()) and not _is_ours(path):
        raise UserError(
          f'{path} is no checkpoint, and has the name of the one to be saved; move it away, and '
          'give the same command again'
        )
    for path in list(self.directory.iterdir()):
      if workdir_lib.is_checkpoint(path.name, unfinished=True) and _is_ours(path):
        _delete(path)

  def _remove_unsealed(self, part: Any) -> None:
    """What killed saves have left in a bucket, and a damaged checkpoint of the step to be saved."""
    for path in list(self.directory.iterdir()) if self.directory.is_dir() else ():
      if path == part and self._is_sealed(int(path.name)):
        _warn(f'{path}, which is damaged, is replaced')
        self._damaged.discard(int(path.name))
      if path == part or not self._is_sealed(int(path.name)):
        self._remove(path)

  def _tell_of_bucket(self) -> None:
    mounted, told, self._told = mounts.bucket(self.directory), self._told, True
    if mounted and not told:
      _warn(
        f'{self.directory} is on a bucket that {mounted} mounts, where a folder is not renamed at '
        'once: a checkpoint that is cut off there is passed over for the one before; keep two or '
        'more (config.train.keep_last)'
      )

  def _finish(
    self, part: pathlib.Path, seal: dict[str, Any], shapes: dict[str, tuple[int, ...]]
  ) -> None:
    """Once orbax is done, in a thread: seals the folder, names it, removes what it replaces."""
    try:
      self._orbax.wait_until_finished()
      if distributed.is_first():
        if self._written(part) != shapes:
          raise UserError(
            f'orbax does not find what it wrote in {part}; save in a folder on another file system'
          )
        if (self.directory.parent / 'config.json').exists():
          config = workdir_lib.read_config(self.directory.parent)
          seal |= {'config': config_lib.to_dict(config)}
        # From the files and not from memory: the seal describes what a reader will find.
        seal |= {'files': dict(_contents(part))}
        whole.write_text(part / _SEAL, json.dumps(seal | {'sha256': _sha256(seal)}) + '\n')
        if not self._in_bucket:
          folder = part.with_suffix('')
          if folder.exists() or folder.is_symlink():
            _warn(f'{folder}, which is damaged, is replaced')
            self._remove(folder)
            self._damaged.discard(seal['step'])
          # The rename is the moment from which the checkpoint exists: it is atomic, writing is not.
          part.rename(folder)
        workdir_lib.forget_replaced(self.directory.parent)
        self._remove_old(seal['step'])
    except BaseException as error:  # raised by `wait`, in the thread that trains
      self._error = error

  def _remove_old(self, newest: int) -> None:
    steps = [step for step in self.found() if step <= newest]
    seals = {step: self._seal(step) for step in steps if step not in self._damaged}
    whole = {step: seal.get('held_out') for step, seal in seals.items() if seal}
    measured = sorted(
      # Of older versions there are seals that hold NaN.
      (step for step, nats in whole.items() if nats is not None and math.isfinite(nats)),
      key=whole.get,  # type: ignore[arg-type]
    )
    kept = {*sorted(whole)[-self._keep_last :], *measured[: self._keep_best]}
    if self._keep_every:
      kept |= {step for step in whole if step % self._keep_every == 0}
    for step in set(steps) - kept - self._left:
      folder = self.directory / str(step)
      if not self._in_bucket and not _is_ours(folder):
        self._left.add(step)
        _warn(f'{folder} holds nothing of a checkpoint, and stays')
        continue
      if step not in whole:
        _warn(f'{folder}, which is damaged, is removed')
      self._remove(folder)

  def _remove(self, folder: Any) -> None:
    if self._in_bucket:
      (folder / _SEAL).unlink(missing_ok=True)
      if folder.exists():
        folder.rmtree()
      return
    # Under another name first, so that nothing is ever a checkpoint that lacks half of its files.
    gone = folder.with_name(f'{folder.name}.part-removed')
    while gone.exists() or gone.is_symlink():
      gone = gone.with_name(f'{gone.name}-')
    _delete(folder.rename(gone))

  def wait(self) -> None:
    """Returns once everything that was saved is on disk.

    Raises:
      UserError: it cannot be written.
    """
    if self._finishing is None:
      return
    self._finishing.join()
    self._finishing = None
    error, self._error = self._error, None
    if error is not None:
      with self._saving():
        raise error

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      reason = whole.refusal(error)
      if reason is None:
        raise
      found = self.found()
      goes_on = f'step {found[-1]}' if found else 'the start'
      raise UserError(
        f'cannot save in {self.directory} ({reason}); free space or make it writable, and '
        f'give the same command again to go on from {goes_on}'
      ) from error

  def close(self) -> None:
    """Waits, and ends orbax's threads."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  # ----- reading

  def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, int]:
    """Reads a checkpoint onto the shardings of `abstract`; of several processes, all must call it.

    Every file is compared with its size and checksum in checkpoint.json before any is read.

    Args:
      abstract: shapes, dtypes and shardings of the state, as `training.abstract_state` gives.
      step: which one; the newest that is not damaged if None, with a warning for each that is.
    Returns:
      The state, and the next global example index.
    Raises:
      UserError: there is none, all are damaged, this user may not read one, or a parameter is
        missing, extra or misshapen.
    """
    problems = []
    while (candidate := self._newest(step)) is not None:
      folder = self.directory / str(candidate)
      damage = next(filter(None, distributed.gather_text(self._damage(candidate))), '')
      if not damage:
        seal: Any = self._seal(candidate)
        self._check_config(seal.get('config'), folder)
        # Before orbax reads: its errors name neither the array nor the fix.
        _check_shapes(self._written(folder), _shapes(abstract), folder)
        name = paths.plain(self.directory) / folder.name
        return self._orbax.restore(name, abstract), seal['next_index']
      if damage.startswith(_FORBIDDEN):
        place = str(self.directory / damage.removeprefix(_FORBIDDEN))
        with paths.permitted():
          raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
      self._damaged.add(candidate)
      problems.append(f'checkpoint {folder} is damaged ({damage})')
      _warn(f'{problems[-1]} and is passed over')
    if problems:
      raise UserError(
        f'{problems[0]}, and there is no other to go on from; bring its files back, or train anew '
        'in another --workdir or with --overwrite'
      )
    raise UserError(
      f'{self.directory} holds no {"" if step is None else f"step {step} "}checkpoint; train '
      'there first: armd train --config=CONFIG.py --workdir=DIR'
    )

  def _newest(self, step: int | None) -> int | None:
    """The newest not known to be damaged, or `step` alone, as the first process sees it."""
    left = set(self.found()) - self._damaged
    if step is not None:
      left &= {step}
    newest = distributed.gather_text(str(max(left, default='')))[0]
    return int(newest) if newest else None

  def _damage(self, step: int) -> str:
    """What is wrong with the files; each process looks at its share of them. What this user may not
    read is told the others, too, which would wait."""
    try:
      return self._damage_of(step)
    except PermissionError as error:
      file = error.filename or self.directory / str(step)
      return f'{_FORBIDDEN}{os.path.relpath(file, self.directory)}'

  def _damage_of(self, step: int) -> str:
    folder, seal = self.directory / str(step), self._seal(step)
    if seal is None:
      with contextlib.suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
        if not self._in_bucket:
          (folder / _SEAL).open('rb').close()
      return f'its {_SEAL} is missing or broken'
    there = _contents(folder)
    for name in sorted({*seal['files'], *there} - {_SEAL})[
      jax.process_index() :: jax.process_count()
    ]:
      if name not in seal['files']:
        return f'{name} was put there later'
      if name not in there:
        return f'{name} is missing'
      (size, crc), found = seal['files'][name], there[name]
      if found[0] != size:
        return f'{name} has {found[0]} of {size} bytes'
      if found[1] != crc:
        return f'{name} has other bytes than were written'
    return ''

  def _seal(self, step: int) -> dict[str, Any] | None:
    """What checkpoint.json holds; None where it is missing or broken."""
    try:
      seal = whole.parse_json(whole.read_bytes(self.directory / str(step) / _SEAL), _FORM)
    except (OSError, ValueError):
      return None
    digest = seal.pop('sha256', None)
    # Seals of version 0.1 have neither digest nor config.
    is_whole = seal.keys() == _FORM.keys() if digest is None else digest == _sha256(seal)
    return seal if is_whole and seal['step'] == step else None

  def _written(self, folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, as orbax finds them in a folder; none where it finds nothing."""
    found = self._orbax.metadata(paths.plain(self.directory) / folder.name).item_metadata
    return _shapes(getattr(found, 'tree', found))

  def _check_config(self, raw: Any, folder: pathlib.Path) -> None:
    if raw is None:
      return
    workdir = self.directory.parent
    config = workdir_lib.read_config(workdir)
    if differs := workdir_lib.first_difference(config_lib.parse_file(raw, folder / _SEAL), config):
      name, saved, now = differs
      raise UserError(
        f'{workdir / "config.json"} has {name} = {now!r}, but {folder} was saved with {saved!r}; '
        'put back what was changed'
      )


class _Files(Mapping[str, tuple[int, int]]):
  """Size and CRC-32 of every file in a folder by its name, computed when it is looked up."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    inside = (pathlib.Path(above, name) for above, _, names in _walked(folder) for name in names)
    self._names = sorted(str(path.relative_to(folder)) for path in inside if path.is_file())

  def __getitem__(self, name: str) -> tuple[int, int]:
    return _size_and_crc(self._folder / name)

  def __contains__(self, name: object) -> bool:
    return name in self._names

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def _walked(folder: pathlib.Path) -> Iterator[tuple[str, list[str], list[str]]]:
  """`os.walk`, which raises a PermissionError."""

  def tell(error: OSError) -> None:
    if isinstance(error, PermissionError):
      raise error

  return os.walk(folder, onerror=tell)


def _contents(folder: Any) -> Mapping[str, tuple[int, int]]:
  """Size and checksum of all that is in a folder; a store has these without its being read."""
  return buckets.contents(folder) if buckets.is_bucket(folder) else _Files(folder)


def _is_ours(path: pathlib.Path) -> bool:
  """Whether a folder on a disk holds what a save writes, or nothing, as one that was just begun."""
  if not path.is_dir():
    return False
  names = [inside.name for inside in path.iterdir()]
  is_being_written = '.orbax-checkpoint-tmp' in path.name
  return not names or is_being_written or any(map(_OURS.fullmatch, names))


def _delete(folder: pathlib.Path) -> None:
  """Deletes a checkpoint; where it is a link, what it leads to is kept elsewhere, and stays."""
  folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


def _sha256(seal: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(seal, sort_keys=True).encode()).hexdigest()


def _size_and_crc(path: pathlib.Path) -> tuple[int, int]:
  size = crc = 0
  with path.open('rb') as file:
    while chunk := file.read(2**22):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return size, crc


def _is_news(record: logging.LogRecord) -> bool:
  """False for an error of a write after the one whose error `wait` raises; nothing awaits it."""
  error = record.exc_info[1] if record.exc_info else None
  return error is None or whole.refusal(error) is None


def _warn(text: str) -> None:
  if distributed.is_first():
    print(f'warning: {text}', file=sys.stderr, flush=True)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  return {path_name(path): tuple(x.shape) for path, x in leaves}


def _check_shapes(
  have: dict[str, tuple[int, ...]], want: dict[str, tuple[int, ...]], folder: pathlib.Path
) -> None:
  fix = 'use the config it was trained with'
  for name in sorted(want.keys() - have.keys()):
    raise UserError(f'checkpoint {folder} lacks {name!r} {want[name]}; {fix}')
  for name in sorted(have.keys() - want.keys()):
    raise UserError(f'checkpoint {folder} holds {name!r}, which the model lacks; {fix}')
  for name in sorted(want):
    if have[name] != want[name]:
      raise UserError(
        f'{name!r} is {have[name]} in checkpoint {folder} but {want[name]} in the model; {fix}'
      )

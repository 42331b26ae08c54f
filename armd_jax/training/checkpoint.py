"""Checkpoints of a run, through orbax: written beside the training, read back strictly.

A work directory holds

  config.json               the config the run was started with
  checkpoints/STEP/         the training state as orbax writes it, and
    checkpoint.json         the next global example index, and size and CRC-32 of every other file
  checkpoints/STEP.part     a save that is not finished; the next save removes what a kill left

A folder gets its number once all of it is on disk, so one without a checkpoint.json, or with
another file than it says, has been damaged later. It is passed over for the one before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import os
import pathlib
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from armd_jax import config as config_lib
from armd_jax.errors import UserError
from armd_jax.parallel import distributed
from armd_jax.parallel.axes import path_name
from armd_jax.training import TrainState

_SEAL = 'checkpoint.json'


class Checkpoints:
  """The checkpoints of one work directory; nothing is created or removed before the first save."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    keep_last: int = 1,
    keep_every: int = 0,
    keep_best: int = 0,
  ):
    """Says where they are, and which are kept once a newer one is complete.

    Args:
      workdir: the run's directory.
      keep_last: newest checkpoints.
      keep_every: all of steps that are multiples of this; 0: none.
      keep_best: those with the lowest held-out loss.
    """
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints'
    self._keep_last, self._keep_every, self._keep_best = keep_last, keep_every, keep_best
    self._orbax = ocp.StandardCheckpointer()
    logging.getLogger('asyncio').addFilter(_is_news)
    self._finishing: threading.Thread | None = None
    self._error: BaseException | None = None
    self._damaged: set[int] = set()  # as far as `restore` has looked

  def found(self) -> list[int]:
    """Steps of all checkpoints there are, damaged or not, in order."""
    folders = self.directory.iterdir() if self.directory.is_dir() else ()
    return sorted(int(path.name) for path in folders if path.name.isdecimal())

  # ----- writing

  def save(self, step: int, state: TrainState, next_index: int, held_out: float | None) -> None:
    """Starts writing; training may go on and donate the state at once.

    Args:
      step: steps done.
      state: the training state.
      next_index: next global example index, the data's whole state.
      held_out: held-out nats per token at this step, if measured; decides what is best.
    Raises:
      UserError: this checkpoint, or the one before it, cannot be written.
    """
    # One save at a time. An error of the last one is raised here.
    self.wait()
    part = self.directory / f'{step}.part'
    with self._saving():
      if distributed.is_first():
        self.directory.mkdir(parents=True, exist_ok=True)
        for unfinished in self.directory.glob('*.part*'):
          shutil.rmtree(unfinished)
      self._orbax.save(part, state)
    seal = {'step': step, 'next_index': next_index, 'held_out': held_out}
    self._finishing = threading.Thread(target=self._finish, args=(part, seal), daemon=True)
    self._finishing.start()

  def _finish(self, part: pathlib.Path, seal: dict[str, Any]) -> None:
    """Once orbax is done, in a thread: seals the folder, names it, removes what it replaces."""
    try:
      self._orbax.wait_until_finished()
      if distributed.is_first():
        # From the files and not from memory: the seal vouches for what a reader will find.
        files = {name: _size_and_crc(part / name) for name in _files(part)}
        (part / _SEAL).write_text(json.dumps(seal | {'files': files}) + '\n')
        folder = part.with_suffix('')
        if folder.exists():
          _warn(f'{folder}, which is damaged, is replaced')
          self._remove(folder)
          self._damaged.discard(seal['step'])
        # The rename is the moment from which the checkpoint exists: it is atomic, writing is not.
        part.rename(folder)
        self._remove_old(seal['step'])
    except BaseException as error:  # told by `wait`, in the thread that trains
      self._error = error

  def _remove_old(self, newest: int) -> None:
    steps = [step for step in self.found() if step <= newest]
    seals = {step: self._seal(step) for step in steps if step not in self._damaged}
    whole = {step: seal.get('held_out') for step, seal in seals.items() if seal}
    measured = sorted((step for step in whole if whole[step] is not None), key=whole.get)
    kept = {*sorted(whole)[-self._keep_last :], *measured[: self._keep_best]}
    if self._keep_every:
      kept |= {step for step in whole if step % self._keep_every == 0}
    for step in set(steps) - kept:
      if step not in whole:
        _warn(f'{self.directory / str(step)}, which is damaged, is removed')
      self._remove(self.directory / str(step))

  def _remove(self, folder: pathlib.Path) -> None:
    # Under another name first, so that nothing is ever a checkpoint that lacks half of its files.
    shutil.rmtree(folder.rename(folder.with_name(f'{folder.name}.part-removed')))

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
      reason = _refusal(error)
      if reason is None:
        raise
      found = self.found()
      goes_on = f'step {found[-1]}' if found else 'the start'
      raise UserError(
        f'cannot save in {self.directory} ({reason}); free space or make it writable, and '
        f'give the same command again to go on from {goes_on}'
      ) from error

  def close(self) -> None:
    """Waits, and lets go of orbax's threads."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  # ----- reading

  def restore(self, abstract: TrainState, step: int | None = None) -> tuple[TrainState, int]:
    """Reads a checkpoint onto the shardings of `abstract`; of several processes, all must call it.

    Every file is compared with what checkpoint.json says of it before any is read.

    Args:
      abstract: shapes, dtypes and shardings of the state, as `training.abstract_state` gives.
      step: which one; the newest that is not damaged if None, with a warning for each that is.
    Returns:
      The state, and the next global example index.
    Raises:
      UserError: there is none, all are damaged, or a parameter is missing, extra or misshapen.
    """
    problems = []
    while (candidate := self._newest(step)) is not None:
      folder = self.directory / str(candidate)
      damage = next(filter(None, distributed.gather_text(self._damage(candidate))), '')
      if not damage:
        # Before orbax looks: its errors name neither the array nor what to do.
        _check_tree(self._orbax.metadata(folder).item_metadata, abstract, folder)
        return self._orbax.restore(folder, abstract), self._seal(candidate)['next_index']
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
      'there first: python -m armd_jax.train --config=CONFIG.py --workdir=DIR'
    )

  def _newest(self, step: int | None) -> int | None:
    """The newest not known to be damaged, or `step` alone, as the first process sees it."""
    left = set(self.found()) - self._damaged
    if step is not None:
      left &= {step}
    newest = distributed.gather_text(str(max(left, default='')))[0]
    return int(newest) if newest else None

  def _damage(self, step: int) -> str:
    """What is wrong with the files; each process looks at its share of them."""
    folder, seal = self.directory / str(step), self._seal(step)
    if seal is None:
      return f'its {_SEAL} is missing or cut short'
    for name in sorted(seal['files'])[jax.process_index() :: jax.process_count()]:
      if not (folder / name).is_file():
        return f'{name} is missing'
      (size, crc), found = seal['files'][name], _size_and_crc(folder / name)
      if found[0] != size:
        return f'{name} has {found[0]} of {size} bytes'
      if found[1] != crc:
        return f'{name} has other bytes than were written'
    return ''

  def _seal(self, step: int) -> dict[str, Any] | None:
    try:
      return json.loads((self.directory / str(step) / _SEAL).read_text())
    except (FileNotFoundError, ValueError):
      return None


def _files(folder: pathlib.Path) -> list[str]:
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def _size_and_crc(path: pathlib.Path) -> tuple[int, int]:
  size = crc = 0
  with path.open('rb') as file:
    while chunk := file.read(2**22):
      size, crc = size + len(chunk), zlib.crc32(chunk, crc)
  return size, crc


def _refusal(error: BaseException | None) -> str | None:
  """What the system says where it refused to write: no space, no permission and the like."""
  if isinstance(error, BaseExceptionGroup):
    return next(filter(None, map(_refusal, error.exceptions)), None)
  if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
    return error.strerror
  # tensorstore, which writes the arrays, tells of the system's error in its text only.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else error and _refusal(error.__cause__)


def _is_news(record: logging.LogRecord) -> bool:
  """False of a write that was refused after the one that `wait` tells of, which nobody awaits."""
  error = record.exc_info[1] if record.exc_info else None
  return error is None or _refusal(error) is None


def _warn(text: str) -> None:
  if distributed.is_first():
    print(f'warning: {text}', file=sys.stderr, flush=True)


def _check_tree(found: Any, abstract: Any, folder: pathlib.Path) -> None:
  shapes = lambda tree: {
    path_name(path): tuple(x.shape)
    for path, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  }
  have, want = shapes(getattr(found, 'tree', found)), shapes(abstract)
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


def write_config(workdir: str | pathlib.Path, config: config_lib.Config) -> None:
  """Writes config.json of a new run."""
  path = pathlib.Path(workdir) / 'config.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix('.part')  # a killed process must not leave half a file
  part.write_text(json.dumps(config_lib.to_dict(config), indent=2) + '\n')
  part.replace(path)


def read_config(workdir: str | pathlib.Path) -> config_lib.Config:
  """The config of the run in a work directory.

  Raises:
    UserError: there is no run there, or its config.json is damaged or of another version.
  """
  path = pathlib.Path(workdir) / 'config.json'
  try:
    raw = json.loads(path.read_text())
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f'{workdir} holds no run (no config.json); give the --workdir of a training run'
    ) from None
  except ValueError as error:  # of JSON or of UTF-8
    raise UserError(
      f'{path} is damaged ({error}); restore it, or train in another folder'
    ) from None
  return config_lib.parse_file(raw, path)


def check_same_run(workdir: str | pathlib.Path, config: config_lib.Config) -> None:
  """Refuses to go on with a run under a config that would make it another one.

  Raises:
    UserError: naming the first field that differs.
  """
  old = read_config(workdir)
  for name, field in config_lib.fields():
    was, now = (operator.attrgetter(name)(c) for c in (old, config))
    if was != now and not field.metadata['resumable']:
      raise UserError(
        f'{workdir} was started with config.{name} = {was!r}, not {now!r}; use another --workdir, '
        'or --overwrite to delete that run and start anew'
      )

"""The folder of a run: what it holds, and what of it may be moved or deleted.

A work directory holds config.json, as the run was started with it; text.json, which names its text;
tokenizer.json, where its vocabulary is such a file; `checkpoints/` (see
`armd_jax.training.checkpoint`); metrics.jsonl, `tensorboard/`, `profile/` and training.png;
wandb_run.json, which names its run of Weights & Biases; and while `--overwrite` replaces a run,
that run in `.replaced/` until the new one has saved. In a bucket it is copied there, and is whole
once `.replaced/whole` is there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import operator
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from armd_jax import config as config_lib
from armd_jax.data import tokenizer_file
from armd_jax.errors import UserError
from armd_jax.files import buckets, paths, whole

REPLACED, _MOVING = '.replaced', '.replaced-moving'
WANDB = 'wandb_run.json'
# What a run leaves in its folder. Nothing else is ever moved or deleted.
_MADE = (
  'config.json', 'tokenizer.json', 'text.json', WANDB, 'metrics.jsonl', 'training.png',
  'tensorboard/events.out.tfevents.*', 'profile/plugins/', 'checkpoints/[0-9]*/',
)  # fmt: skip
_CONFIG, _TEXT = 'config.json', 'text.json'
# The same of a bucket, by names of objects; what makes a checkpoint there; and what is written last
# of a run that is set aside there.
_MADE_IN_BUCKET = re.compile(
  r'(config|tokenizer|text|wandb_run)\.json|training\.png|metrics\.jsonl/.+|checkpoints/\d+/.+'
  r'|tensorboard/events\.out\.tfevents\..+'
).fullmatch
_SEALED = re.compile(r'checkpoints/\d+/checkpoint\.json')
_WHOLE = 'whole'


def place(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """The folder for a run that a user named.

  Raises:
    UserError: it cannot be one.
  """
  path = paths.kept(workdir, '--workdir')
  if buckets.is_bucket(path):
    if '/' not in os.fspath(path).removeprefix(buckets.BUCKET).strip('/'):
      raise UserError(f'--workdir is {path}, which is a whole bucket; write a folder in it')
    buckets.check(path, '--workdir')
    return path
  where = path.resolve()
  if where in (pathlib.Path(where.anchor), pathlib.Path.home().resolve()):
    raise UserError(f'--workdir is {path}, which is no folder for a run; write one below it')
  if (where / '.git').exists() or (where / 'setup.py').exists():
    raise UserError(
      f'--workdir is {path}, which holds a repository; write a folder below it, like work/mine'
    )
  return path


# ----- config.json


def write_config(workdir: str | os.PathLike[str], config: config_lib.Config) -> None:
  """Writes config.json of a new run, and a copy of its tokenizer.json, if it has one.

  Raises:
    UserError: it cannot be written.
  """
  workdir = place(workdir)
  try:
    # In this order: by the other one, a kill would leave a vocabulary of nobody.
    text = tokenizer_file.text_of(config.data.tokenizer)
    whole.write_json(workdir / 'config.json', config_lib.to_dict(config))
    if text is not None and _own_vocabulary(workdir) != text:
      whole.write_text(workdir / tokenizer_file.FILE, text)
  except OSError as error:
    raise UserError(
      f'cannot write to {workdir} ({error.strerror}); use another --workdir'
    ) from error


def read_config(workdir: str | os.PathLike[str]) -> config_lib.Config:
  """The config of the run in a work directory, whose tokenizer is the run's own copy where the file
  that it was started with is gone, or another one by now.

  Raises:
    UserError: there is no run there, or its config.json is damaged or of another version.
  """
  path = paths.kept(workdir, '--workdir') / 'config.json'
  if buckets.is_bucket(path):
    buckets.check(path, '--workdir')
  try:
    raw = whole.read_json(path, {}, 'restore it, or train in another folder')
  except (FileNotFoundError, NotADirectoryError):
    raise UserError(
      f'{workdir} holds no run (no config.json); give the --workdir of a training run'
    ) from None
  return _with_vocabulary(path.parent, config_lib.parse_file(raw, path))


def _with_vocabulary(workdir: Any, config: config_lib.Config) -> config_lib.Config:
  if not tokenizer_file.is_named(config.data.tokenizer):
    return config
  try:
    fingerprint = whole.read_json(workdir / _TEXT, {}, '').get('tokenizer', '')
  except (OSError, UserError):  # of which `text` tells who wants to know
    return config

  def own() -> str | None:
    text = _own_vocabulary(workdir)
    is_disk = not buckets.is_bucket(workdir)
    return text and (
      str((workdir / tokenizer_file.FILE).absolute()) if is_disk else tokenizer_file.kept(text)
    )

  name = tokenizer_file.found(config.data.tokenizer, fingerprint, own)
  return dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=name))


def _own_vocabulary(workdir: Any) -> str | None:
  """The tokenizer.json in a work directory; None where there is none."""
  file = workdir / tokenizer_file.FILE
  if not buckets.is_bucket(workdir):
    return tokenizer_file.text_of(str(file))
  try:
    return file.read_text('utf-8')
  except (FileNotFoundError, UnicodeDecodeError):
    return None


def check_same_run(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Refuses to resume a run with a config that would make it another one.

  Raises:
    UserError: naming the first field that differs.
  """
  started = read_config(workdir)
  differs = first_difference(started, config)
  if not differs:
    old, new = started.data.tokenizer, config.data.tokenizer
    texts = {*map(tokenizer_file.text_of, (old, new))} - {None}
    differs = ('data.tokenizer', old, new) if len(texts) > 1 else None
  if differs:
    name, old, new = differs
    raise UserError(
      f'{workdir} was started with config.{name} = {old!r}, not {new!r}; use another --workdir, or '
      '--overwrite to delete that run and start anew'
    )


def first_difference(old: config_lib.Config, new: config_lib.Config) -> tuple[str, Any, Any] | None:
  """Name and both values of a field that makes two configs those of different runs.

  Which vocabulary a file holds, whatever its name, is for `text.check_tokenizer` to compare.
  """
  for name, field in config_lib.fields():
    was, now = (operator.attrgetter(name)(config) for config in (old, new))
    if name == 'data.tokenizer' and all(map(tokenizer_file.is_named, (was, now))):
      continue
    if was != now and not field.metadata['resumable']:
      return name, was, now
  return None


# ----- what is there, and what replaces it


def check_free(workdir: pathlib.Path, overwrite: bool) -> None:
  """Refuses a folder where a new run would mix with something else.

  Raises:
    UserError: there are checkpoints without a run, a config.json that is not a run's, links, or
      files in the place of checkpoints.
  """
  if (workdir / 'config.json').exists():
    read_config(workdir)
  elif made := list(_made(workdir)):
    raise UserError(
      f'{workdir} holds {made[0].relative_to(workdir)} but no config.json that says whose it is; '
      'use another --workdir, or remove that'
    )
  if buckets.is_bucket(workdir):
    return
  folder = workdir / 'checkpoints'
  for path in sorted(folder.iterdir()) if folder.is_dir() else ():
    is_named = is_checkpoint(path.name) or is_checkpoint(path.name, unfinished=True)
    if is_named and not path.is_dir():
      raise UserError(
        f'{path} is no folder, and has the name of a checkpoint; move it away, or use another '
        '--workdir'
      )
  for above in _places():
    if overwrite and (workdir / above).is_symlink():
      raise UserError(
        f'{workdir / above} is a link, and --overwrite deletes nothing outside of {workdir}; '
        'remove the link, or use another --workdir'
      )


@contextlib.contextmanager
def begun(workdir: pathlib.Path, config: config_lib.Config, overwrite: bool) -> Iterator[None]:
  """The folder of a new run, once all else that can be wrong has been looked at.

  A run that was there is set aside. The first checkpoint of the new one deletes it; where the block
  ends in an error before that, it is put back.

  Raises:
    UserError: the folder cannot be written to, or the new run needs the vocabulary in it.
  """
  if overwrite:
    _check_vocabulary_stays(workdir, config)
  try:
    if overwrite and _is_aside(workdir) and not _saved(workdir):
      delete(workdir)  # it was to replace what is aside, and was killed before it had saved
    elif overwrite:
      forget_replaced(workdir)
      _set_aside(workdir)
  except Exception as error:
    if (reason := whole.refusal(error)) is None:
      raise
    put_back(workdir)
    raise UserError(f'cannot write to {workdir} ({reason}); use another --workdir') from error
  try:
    write_config(workdir, config)
    yield
  except BaseException:
    if _is_aside(workdir) and not _saved(workdir):
      delete(workdir)
      put_back(workdir)
    raise


def _check_vocabulary_stays(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Refuses to delete a run together with the tokenizer.json of the one that replaces it."""
  name = config.data.tokenizer
  if buckets.is_bucket(workdir) or tokenizer_file.text_of(name) is None:
    return
  file = paths.given(name, 'the tokenizer').resolve()
  file = file / tokenizer_file.FILE if file.is_dir() else file
  going = [path.resolve() for path in (*_made(workdir), workdir / REPLACED, workdir / _MOVING)]
  if any(path in (file.resolve(), *file.resolve().parents) for path in going):
    raise UserError(
      f'config.data.tokenizer is {name}, which --overwrite would delete with the run in {workdir}; '
      'copy it to another folder and name it there, or use another --workdir'
    )


def put_back(workdir: pathlib.Path) -> None:
  """Ends what was killed while it moved a run aside or back; to be called before all else.

  Raises:
    UserError: something of somebody else is where a run is set aside; nothing is touched.
  """
  aside, moving = workdir / REPLACED, workdir / _MOVING
  if buckets.is_bucket(workdir):
    if _is_aside(workdir) and not (workdir / 'config.json').exists():
      delete(workdir)
      # Its config.json makes it a run again.
      names = sorted(set(buckets.contents(aside)) - {_WHOLE}, key=lambda name: name == _CONFIG)
      buckets.copy(aside, workdir, names)
      forget_replaced(workdir)
    return
  for path in (aside, moving):
    if (path.exists() or path.is_symlink()) and not _is_run(path):
      raise UserError(
        f'{path} is no run that --overwrite has set aside, whose place it takes; move it away, or '
        'use another --workdir'
      )
  # A run is aside as a whole, or still moving; of the one that replaces it, config.json goes first.
  if aside.exists() and not (workdir / 'config.json').exists():
    delete(workdir)
    aside.rename(moving)
  if moving.exists():
    _move(moving, workdir)
    moving.rmdir()


def forget_replaced(workdir: pathlib.Path) -> None:
  """Deletes the run that `begun` has set aside."""
  aside = workdir / REPLACED
  if buckets.is_bucket(workdir):
    (aside / _WHOLE).unlink(missing_ok=True)
    buckets.remove(aside, buckets.contents(aside))
  else:
    shutil.rmtree(aside, ignore_errors=True)


def _is_aside(workdir: Any) -> bool:
  """Whether all of a run is set aside."""
  aside = workdir / REPLACED
  return (aside / _WHOLE if buckets.is_bucket(workdir) else aside).exists()


def _set_aside(workdir: Any) -> None:
  if buckets.is_bucket(workdir):  # where nothing is renamed, and one object after another is copied
    aside = workdir / REPLACED
    buckets.copy(workdir, aside, (os.fspath(path.relative_to(workdir)) for path in _made(workdir)))
    (aside / _WHOLE).write_bytes(b'')
    delete(workdir)
  else:
    _move(workdir, workdir / _MOVING)
    (workdir / _MOVING).rename(workdir / REPLACED)


def is_checkpoint(name: str, unfinished: bool = False) -> bool:
  """Whether something in `checkpoints/` is a checkpoint, or what a killed save has left of one."""
  # No other names of numbers, such as 007, and nothing that was put there, such as 20.partial.
  rest = r'\.part([-.].*)?' if unfinished else ''
  return re.fullmatch(f'(0|[1-9][0-9]*){rest}', name, re.DOTALL) is not None


def _saved(workdir: pathlib.Path) -> bool:
  if buckets.is_bucket(workdir):
    return any(map(_SEALED.fullmatch, buckets.contents(workdir)))
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(is_checkpoint(path.name) for path in folder.iterdir())


def _made(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """What a run has left in a folder, links not followed."""
  if buckets.is_bucket(folder):
    yield from (folder / name for name in sorted(filter(_MADE_IN_BUCKET, buckets.contents(folder))))
    return
  for pattern in _MADE:
    above, _, name = pattern.rstrip('/').rpartition('/')
    inside = folder / above
    if (above and inside.is_symlink()) or not inside.is_dir():
      continue
    for path in sorted(inside.iterdir()):
      is_kind = path.is_dir() if pattern.endswith('/') else path.is_file()
      if not fnmatch.fnmatchcase(path.name, name) or not is_kind or path.is_symlink():
        continue
      unfinished = is_checkpoint(path.name, unfinished=True)
      if above != 'checkpoints' or is_checkpoint(path.name) or unfinished:
        yield path


def _is_run(folder: pathlib.Path) -> bool:
  """Whether a folder, which is no link, holds nothing but what a run has left, or a part of it."""
  is_folder = lambda path: path.is_dir() and not path.is_symlink()
  places = {folder / name for name in _places()}
  known = {*_made(folder), *filter(is_folder, places)}
  return is_folder(folder) and all(
    path in known for above in filter(is_folder, (folder, *places)) for path in above.iterdir()
  )


def _places() -> set[str]:
  """The folders in a work directory."""
  return {pattern.partition('/')[0] for pattern in _MADE if '/' in pattern}


def _move(source: pathlib.Path, target: pathlib.Path) -> None:
  target.mkdir(exist_ok=True)
  for path in list(_made(source)):
    new = target / path.relative_to(source)
    new.parent.mkdir(parents=True, exist_ok=True)
    path.rename(new)
  _remove_empty(source)


def delete(folder: pathlib.Path) -> None:
  """Removes what a run has left in a folder, and nothing else."""
  if buckets.is_bucket(folder):
    # First of all, so that what a kill leaves is no run.
    (folder / _CONFIG).unlink(missing_ok=True)
    buckets.remove(folder, (os.fspath(path.relative_to(folder)) for path in _made(folder)))
    return
  for path in list(_made(folder)):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  _remove_empty(folder)


def _remove_empty(folder: pathlib.Path) -> None:
  for inside in map(folder.joinpath, _places()):
    if inside.is_dir() and not inside.is_symlink() and not any(inside.iterdir()):
      inside.rmdir()

"""What the programs share: flags, and bad input told in one sentence."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging

from armd_jax.config import RENAMED, MeshConfig
from armd_jax.errors import CRASHED, MetByAll, UserError
from armd_jax.files import paths, whole
from armd_jax.parallel import ambient, distributed


def run(main: Callable[[], None]) -> None:
  """Parses flags, runs `main`; a `UserError` or a wrong flag is one sentence and exit code 1."""
  # Libraries tell of every checkpoint they touch; what a user needs to know, the programs print.
  absl_logging.set_verbosity(absl_logging.WARNING)
  logging.getLogger('jax').setLevel(logging.WARNING)
  logging.getLogger('armd_jax').setLevel(logging.INFO)
  # Where one file cannot be written, orbax tells of all that it then leaves, beside raising it.
  logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)
  sys.unraisablehook = _tell_unraisable
  ambient.settle()

  def guarded(argv):
    if len(argv) > 1:
      raise UserError(f'{argv[1]!r} is no flag; flags look like --name=value')
    main()

  try:
    app.run(guarded, flags_parser=_parse)
  except UserError as error:
    # In this order: where there are no devices, nobody knows which process is the first.
    if not isinstance(error, MetByAll) or distributed.is_first():
      print(f'error: {error}', file=sys.stderr)
    distributed.leave(1)
  except Exception as error:
    if reason := _environment(error):
      print(f'error: {reason}', file=sys.stderr)
      distributed.leave(1)
    if not jax.distributed.is_initialized():
      raise
    traceback.print_exc()
    print(
      'error: this process failed, or lost another one; see what the first to end says, and start '
      'all of them again to go on from the last checkpoint',
      file=sys.stderr,
    )
    distributed.leave(CRASHED)


def _environment(error: Exception) -> str | None:
  """What of the process's environment is behind an error of jax, and the fix; None if nothing."""
  if not isinstance(error, AssertionError | RuntimeError):
    return None
  precision = jax.config.jax_default_matmul_precision
  if precision and 'ALG_' in str(error):
    return (
      f'JAX_DEFAULT_MATMUL_PRECISION={precision} is not what this device can do; unset it, or set '
      'default, high or highest'
    )
  return distributed.why_no_devices()


def _tell_unraisable(what: Any) -> None:
  if str(what.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(what)


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, FileNotFoundError) as error:
    # ml_collections raises Python's own errors for a config file or field that is not there.
    text = str(error.args[0] if error.args else error).replace('\\n', ' ').replace("\\'", "'")
    text = ' '.join(text.strip('"\'').split()).rstrip('.?')
    if isinstance(error, (AttributeError, KeyError)):
      name, _, guess = text.replace("'", '').partition(' ')
      guess = f' ({guess}?)' if guess else ''
      hint = 'armd_jax/config.py lists all fields'
      if name in RENAMED:
        guess, hint = '', f'its name is {RENAMED[name]!r} now'
      raise UserError(f'the config has no field {name!r}{guess}; {hint}') from error
    raise UserError(f'{text}; see --help') from error


def experiment(
  config_flag: flags.FlagHolder[ml_collections.ConfigDict],
) -> ml_collections.ConfigDict:
  """The config of --config=FILE with its overrides.

  Raises:
    UserError: the file is not there.
  """
  raw = config_flag.value
  if not isinstance(raw, ml_collections.ConfigDict):
    raise UserError(
      '--config names no experiment file; write the path of one, like experiments/quickstart.py'
    )
  return raw


def mesh_flag() -> flags.FlagHolder[str]:
  """--mesh=data=-1,fsdp=1,tensor=2 for programs that use a trained run; read by `mesh_of`."""
  return flags.DEFINE_string(
    'mesh',
    '',
    "Devices along each axis, like data=-1,tensor=2; left out: the run's mesh if it makes up the "
    'devices that are here, else all of them along data.',
  )


def mesh_of(text: str) -> MeshConfig | None:
  """The mesh of a `mesh_flag`, None if it was left out.

  Raises:
    UserError: it is no list of axes and sizes.
  """
  pairs = [pair.partition('=') for pair in text.split(',')] if text else []
  given = {name: int(size) for name, _, size in pairs if re.fullmatch('-1|[1-9][0-9]*', size)}
  axes = [field.name for field in dataclasses.fields(MeshConfig)]
  if len(given) < len(pairs) or not set(given) <= set(axes):
    raise UserError(
      f'--mesh={text} is no mesh; write sizes for some of {", ".join(axes)}, like '
      '--mesh=data=-1,fsdp=1,tensor=2'
    )
  if not given:
    return None
  return MeshConfig(**({'data': 1 if -1 in given.values() else -1} | given))


def streams_flag(default: str) -> flags.FlagHolder[list[str]]:
  """--streams=2,4,8 for programs that measure several S; read by `streams_of`."""
  holder = flags.DEFINE_list('streams', default, 'Stride counts S.')
  message = 'must be whole numbers, like 2,4,8'
  fine = lambda values: all(v.isdigit() and int(v) > 0 for v in values)
  flags.register_validator('streams', fine, message)
  return holder


def streams_of(holder: flags.FlagHolder[list[str]]) -> list[int]:
  """The stride counts of a `streams_flag`."""
  return [int(value) for value in holder.value]


def workdir_flag(help_text: str) -> flags.FlagHolder[str]:
  """The required --workdir."""
  return flags.DEFINE_string('workdir', None, help_text, required=True)


def json_flag() -> flags.FlagHolder[str | None]:
  """--json, where a program also writes its numbers."""
  return flags.DEFINE_string('json', None, 'Also write the numbers to this file.')


def write_json(path: str | pathlib.Path, numbers: Any) -> None:
  """Writes what a program measured.

  Raises:
    UserError: the file cannot be written.
  """
  path = paths.given(path, '--json')
  try:
    whole.write_json(path, numbers)
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); give another --json') from error

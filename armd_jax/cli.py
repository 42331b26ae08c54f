"""What the programs share: how they start and end, and flags that several of them have."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app
from absl import flags as absl_flags
from absl import logging as absl_logging

from armd_jax import flags
from armd_jax.config import MeshConfig
from armd_jax.errors import CRASHED, USER_ERROR, MetByAll, UserError, sentence
from armd_jax.files import buckets, paths, whole
from armd_jax.hardware import kept_programs, starts
from armd_jax.parallel import ambient, distributed, ends, others


def run(main: Callable[[flags.Options], None], options: type[flags.Options]) -> None:
  """Runs `main` with the flags of this process; a `UserError` is one sentence and exit code 1.

  Args:
    main: of the program.
    options: the dataclass of its flags, see `armd_jax.flags`.
  """
  # Libraries log every checkpoint they touch; programs print what a user needs.
  absl_logging.set_verbosity(absl_logging.WARNING)
  _open_output()
  logging.getLogger('jax').setLevel(logging.WARNING)
  logging.getLogger('armd_jax').setLevel(logging.INFO)
  logging.getLogger('absl').addFilter(_is_news)
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # what it logs, it raises as well
  sys.unraisablehook = _tell_unraisable
  ambient.settle()
  ends.limit_interrupts()

  starts.program_begins()
  given = []

  def parse(argv):
    load_plugins()
    # Beside the flags of libraries, such as absl's --flagfile.
    given.append(flags.parse(options, argv, absl_flags.FLAGS))
    kept_programs.keep(absl_flags.FLAGS[flags.CACHE].value)
    return argv[:1]

  def run_main(_):
    main(*given)
    sys.stdout.flush()  # or raises, while an error can still be printed

  try:
    app.run(run_main, flags_parser=parse)
  except KeyboardInterrupt:
    ends.interrupted()
  except UserError as error:
    if isinstance(error, MetByAll) and distributed.own_number():
      distributed.leave_after_another()
    ends.leave(USER_ERROR, f'error: {error}')
  except Exception as error:
    if reason := _environment(error) or _store(error) or paths.forbidden(error):
      ends.leave(USER_ERROR, f'error: {reason}')
    others.hear()
    traceback.print_exc()
    several = others.missing() or 'this process failed, or lost another one'
    several += '; see what the first to end says, and start all of them again to go on from the '
    several += 'last checkpoint'
    alone = 'this is a fault of the program itself; see the traceback above'
    ends.leave(CRASHED, f'error: {several if jax.distributed.is_initialized() else alone}')


class _Output(io.TextIOWrapper):
  """Standard output, of which an error is a sentence."""

  def write(self, text: str) -> int:
    with _writing():
      return super().write(text)

  def flush(self) -> None:
    with _writing():
      super().flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'what this program prints cannot be written ({error.strerror}); free space, or send it to '
      'another place'
    ) from error


def _open_output() -> None:
  """Standard output that takes every text, where a terminal cannot spell it or nobody reads it."""
  for number in range(3):  # of those that are closed files would take the numbers, and get what
    try:  # libraries print
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
  if sys.stderr is None:
    sys.stderr = open(2, 'w', encoding='utf-8', closefd=False)  # noqa: SIM115
  out: Any = sys.stdout
  how: dict[str, Any] = {'errors': 'backslashreplace', 'encoding': 'utf-8'}
  if out is not None:
    how |= {name: getattr(out, name) for name in ('encoding', 'line_buffering', 'write_through')}
  buffer = open(1, 'wb', closefd=False) if out is None else out.buffer  # noqa: SIM115
  sys.stdout = _Output(buffer, **how)


PLUGINS = 'ARMD_JAX_PLUGINS'


def load_plugins() -> None:
  """Imports the modules that $ARMD_JAX_PLUGINS names, which `armd_jax.register` what is theirs.

  Raises:
    UserError: one cannot be imported.
  """
  for name in filter(None, os.environ.get(PLUGINS, '').split(',')):
    try:
      importlib.import_module(name.strip())
    except (Exception, SystemExit) as error:  # whatever a user's module raises
      raise UserError(
        f'{PLUGINS} names {name!r}, which cannot be imported ({sentence(error)}); mend it, or '
        'leave it out'
      ) from error


# What orbax logs of an error beside raising it, which is how a user learns of it: a line and a
# traceback from each of its threads. Of an ordinary save or restore orbax warns of nothing.
_RAISED_AS_WELL = (
  r'\[process=\d+\] Failed to run \d+ Handler Commit operations',
  r'\[process=\d+\]\[thread=[^]]+\]\[operation_id=\w+\] _SignalingThread.run\(\) raised an '
  'exception',
)


def _is_news(record: logging.LogRecord) -> bool:
  is_known = '/orbax/' in record.pathname and re.match(
    '|'.join(_RAISED_AS_WELL), record.getMessage()
  )
  return not is_known


def _environment(error: Exception) -> str | None:
  """What of the process's environment is behind an error of jax, and the fix; None if nothing."""
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  # XLA names the algorithm that it lacks; for a CPU jax refuses some before.
  if precision and re.search('ALG_|precision .* is not supported by dot_general', str(error)):
    return (
      f'JAX_DEFAULT_MATMUL_PRECISION={precision} is not what this device can do; unset it, or set '
      'default, high or highest'
    )
  # Other kinds are no errors of jax's about its devices, and asking for these starts them.
  return distributed.why_no_devices() if isinstance(error, AssertionError | RuntimeError) else None


def _store(error: BaseException | None) -> str | None:
  """What a bucket answered that is behind an error, and the fix; None if nothing."""
  while error is not None:
    if reason := buckets.refusal(error):
      return (
        f'a bucket did not do what it was asked ({reason}); see that it can be reached, and give '
        'the same command again'
      )
    error = error.__cause__
  return None


def _tell_unraisable(what: Any) -> None:
  if str(what.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(what)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnCluster:
  """Flags for several processes."""

  cluster: str = flags.flag(
    'Where other processes are; auto: Slurm steps and GKE TPU slices.',
    'auto',
    choices=distributed.CLUSTERS,
  )
  coordinator: str = flags.flag('HOST:PORT of process 0, on any cluster.', '')
  num_processes: int = flags.flag('Processes of the job; 0: as many as there are.', 0, at_least=0)
  process_id: int = flags.flag('This process, from 0, with --coordinator.', -1)
  devices_per_process: int = flags.flag(
    'Refuse to start where a process sees another number; 0: any.', 0, at_least=0
  )

  def start(self) -> None:
    """Joins the other processes, see `distributed.start`.

    Raises:
      UserError: the flags contradict each other or the environment.
    """
    given = distributed.Cluster(
      self.cluster,
      self.coordinator,
      self.num_processes,
      self.process_id,
      self.devices_per_process,
      distributed.shared_flags(vars(self)),
    )
    distributed.start(distributed.resolve(given, os.environ))


def mesh_of(text: str) -> MeshConfig | None:
  """The mesh of --mesh=data=-1,fsdp=1,tensor=2, None for ''.

  Raises:
    UserError: it is no list of axes and sizes.
  """
  pairs = [pair.partition('=') for pair in text.split(',')] if text else []
  given = {name: int(size) for name, _, size in pairs if re.fullmatch('-1|[1-9][0-9]{0,8}', size)}
  axes = [field.name for field in dataclasses.fields(MeshConfig)]
  if len(given) < len(pairs) or not set(given) <= set(axes):
    raise UserError(
      f'--mesh={text} is no mesh; write sizes for some of {", ".join(axes)}, like '
      '--mesh=data=-1,fsdp=1,tensor=2'
    )
  if not given:
    return None
  return MeshConfig(**({'data': 1 if -1 in given.values() else -1} | given))


def mesh() -> Any:
  """The field of --mesh, a `MeshConfig` or None, for programs that use a trained run."""
  return flags.flag(
    "Devices along each axis, like data=-1,tensor=2; left out: the run's mesh if it makes up the "
    'devices that are here, else all of them along data.',
    None,
    parse=mesh_of,
  )


def json_file() -> Any:
  """The field of --json, where a program also writes its numbers, or None."""
  return flags.flag('Also write the numbers to this file.', None, is_path=True, writes='JSON')


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

"""What every launcher shares: its flags, the job they describe, and the command of a process.

A process of the job runs the user's command with flags of `armd_jax.parallel.distributed` added.
How it ended is its exit code: 0, done; 1, an error that starting again would not mend; 75 (or 143
before there is anything to save), stopped by SIGTERM; 130, stopped by Ctrl-C; anything else, a
crash. Launchers start a job again after 75, 143 and a crash.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from armd_jax.errors import INTERRUPTED, STOPPED, UserError

DONE, USER_ERROR = 0, 1
TOLD_TO_STOP = (STOPPED, 128 + signal.SIGTERM)

_PLATFORM_VARIABLE = {'cpu': 'cpu', 'gpu': 'cuda', 'tpu': 'tpu'}


@dataclasses.dataclass(frozen=True)
class Job:
  """What to run, however it is launched.

  Attributes:
    command: of every process, without the flags with its number.
    name: of the job; lower case letters, digits and dashes.
    processes: how many.
    devices_per_process: devices that each of them has, checked at start.
    platform: 'cpu', 'gpu' or 'tpu'; no process may fall back to another.
    max_restarts: how often the job is started again after a crash.
    grace: seconds from SIGTERM, after which a process saves and exits, to SIGKILL.
    elastic: the least processes that it is started with, where there are not devices for all; 0:
      all of them.
  """

  command: tuple[str, ...]
  name: str
  processes: int
  devices_per_process: int
  platform: str
  max_restarts: int
  grace: int
  elastic: int = 0


def parser(description: str, platforms: Sequence[str]) -> argparse.ArgumentParser:
  """The flags that all launchers share; the first platform is the default."""
  result = _Parser(
    description=description,
    usage='%(prog)s --processes N --devices-per-process K [flags] -- COMMAND ...',
    allow_abbrev=False,
  )
  add = result.add_argument
  add('--processes', type=at_least(1), required=True, help='processes of the job')
  add('--devices-per-process', type=at_least(1), required=True, help='devices that each one has')
  add('--platform', choices=platforms, default=platforms[0], help='their kind')
  add('--name', default='armd', help='name of the job')
  add('--max-restarts', type=at_least(0), default=0, help='starts again after a crash')
  add('--grace', type=at_least(1), default=120, help='seconds to save in after SIGTERM')
  add(
    '--elastic', type=at_least(1), default=0, metavar='MIN',
    help='start with what is there, from so many processes on',
  )  # fmt: skip
  add('--dry-run', action='store_true', help='print exactly what would run, and run nothing')
  add('command', nargs='*', help='what every process runs, after --')
  return result


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> None:
    raise UserError(f'{message}; see --help')


def at_least(least: int) -> Callable[[str], int]:
  """Reads a flag that is a whole number of at least this."""

  def read(text: str) -> int:
    if not text.isdecimal() or int(text) < least:
      raise argparse.ArgumentTypeError(f'{text!r} is no whole number of at least {least}')
    return int(text)

  return read


def job(arguments: argparse.Namespace) -> Job:
  """The job that the flags describe.

  Raises:
    UserError: no command, one that starts with no program, or a name that Slurm or Kubernetes
      would refuse.
  """
  if not arguments.command:
    raise UserError('there is no command; write it after --, like -- python -m armd_jax.train ...')
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', arguments.name):
    raise UserError(
      f'--name is {arguments.name!r}; write at most 40 lower case letters, digits and dashes, '
      'starting with a letter'
    )
  program = arguments.command[0]
  if not program or program.startswith('-') or '=' in program:
    raise UserError(
      f'the command starts with {program!r}, which no shell takes for a program; write its path '
      'after --'
    )
  if arguments.elastic > arguments.processes:
    raise UserError(
      f'--elastic is {arguments.elastic}; write at most --processes = {arguments.processes}'
    )
  fields = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Job)}
  return Job(**fields | {'command': tuple(arguments.command)})


def check_fixed(job: Job, what: str) -> None:
  """Refuses `--elastic` where there is always one number of processes.

  Args:
    job: what to run.
    what: has that number.
  Raises:
    UserError: it is asked for.
  """
  if job.elastic:
    raise UserError(
      f'--elastic is {job.elastic}, but {what} has all of its processes or none; leave it out, or '
      'use launch/slurm.py or launch/local.py'
    )


def environment(job: Job) -> dict[str, str]:
  """Variables of every process: which devices it uses, with no other to fall back to."""
  variables = {'JAX_PLATFORMS': _PLATFORM_VARIABLE[job.platform]}
  if job.platform == 'cpu':
    variables['JAX_NUM_CPU_DEVICES'] = str(job.devices_per_process)
  return variables


def on_cluster(job: Job, cluster: str) -> list[str]:
  """The command of every process where the cluster itself numbers them."""
  return [*job.command, f'--cluster={cluster}', *expected(job)]


def explicit(job: Job, coordinator: str, process: int | str) -> list[str]:
  """The command of one process, with the address of process 0 and its own number."""
  where = [f'--coordinator={coordinator}', f'--process_id={process}']
  return [*job.command, *where, *expected(job)]


def expected(job: Job) -> list[str]:
  """Flags by which a process refuses to start in another job than this."""
  processes = [] if job.elastic else [f'--num_processes={job.processes}']
  return [*processes, f'--devices_per_process={job.devices_per_process}']


def shell_line(command: Sequence[str], variables: dict[str, str]) -> str:
  """One line of shell that runs a command with variables set."""
  return ' '.join([*(f'{k}={shlex.quote(v)}' for k, v in variables.items()), shlex.join(command)])


def here_document(command: str, text: str) -> str:
  """Lines of shell that give `text`, which ends with a newline, to a command's standard input."""
  end = 'END'
  while end in text.split('\n'):
    end += '_'
  return f"{command} <<'{end}'\n{text}{end}"


def show(text: str) -> None:
  """Prints what would run, byte by byte what was given, whatever the terminal's encoding."""
  sys.stdout.buffer.write(os.fsencode(f'{text}\n'))
  sys.stdout.flush()


def call(
  command: Sequence[str], fix: str = 'install it, or use --dry-run', **options: Any
) -> subprocess.CompletedProcess[Any]:
  """Runs a program of the cluster to its end.

  Args:
    command: the program, and what it takes.
    fix: what to do where it is not there.
    options: of `subprocess.run`.
  Raises:
    UserError: it is not there.
  """
  try:
    return subprocess.run(command, **options)
  except FileNotFoundError:
    raise UserError(f'there is no {command[0]} here; {fix}') from None


def starts_again(code: int, restarts: int, job: Job) -> bool:
  """Whether a job that ended with `code`, started again `restarts` times, is started once more."""
  if code in (DONE, USER_ERROR, INTERRUPTED):
    return False
  return code in TOLD_TO_STOP or restarts < job.max_restarts


def run(main: Callable[[Sequence[str]], int]) -> None:
  """Runs a launcher's main; a `UserError` is one sentence and exit code 1."""
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(USER_ERROR)
  except KeyboardInterrupt:
    print('stopped by Ctrl-C', file=sys.stderr)
    sys.exit(INTERRUPTED)

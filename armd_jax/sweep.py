"""Runs an experiment once per set of overrides:

  armd sweep --sweep=experiments/sweeps/standard.py:learning_rate \\
    --config=experiments/owt_small.py:runlocal --workdir=work/lr [--dry_run]
  armd sweep ... --launcher='python launch/slurm.py --processes=8 --time=24:00:00'

A sweep is a function without arguments that returns the overrides of every run, such as
[{'optimizer.learning_rate': 3e-4}, {'optimizer.learning_rate': 1e-3}]. Run i trains in a folder
named after its overrides, here or as a job of a launcher. The same command resumes a stopped sweep.
"""

from __future__ import annotations

import dataclasses
import pathlib
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax import cli
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths
from armd_jax.flags import config_of, flag
from armd_jax.parallel import ends


def overrides_of(name: str) -> list[Mapping[str, Any]]:
  """What the sweep `FILE:FUNCTION` returns.

  Raises:
    UserError: there is no such function, or it returns something else.
  """
  path, _, function = paths.experiment(name, '--sweep').partition(':')
  if not pathlib.Path(path).is_file() or not function:
    raise UserError(
      f'--sweep is {name!r}; write FILE:FUNCTION, like experiments/sweeps/standard.py:seeds'
    )
  try:
    found = runpy.run_path(path).get(function)
    runs = found() if callable(found) else None
  except (Exception, SystemExit) as error:  # whatever a user's file raises
    told = f'{type(error).__name__}: {sentence(error)}'
    raise UserError(f'{path} cannot be run ({told}); mend it') from error
  if not callable(found):
    raise UserError(f'{path} has no function {function!r}; write one that it has')
  are_fields = lambda run: isinstance(run, Mapping) and all(isinstance(field, str) for field in run)
  if not isinstance(runs, list) or not runs or not all(map(are_fields, runs)):
    raise UserError(f'{name} returns {runs!r}; return a list of dicts from field to value')
  if len({run_name(run) for run in runs}) < len(runs):
    raise UserError(f'{name} returns the same overrides twice; return each once')
  return runs


def run_name(overrides: Mapping[str, Any]) -> str:
  """A folder's name.

  Examples:
    >>> run_name({'optimizer.learning_rate': 3e-4, 'order.strided_streams': (1, 2)})
    'learning_rate=0.0003,strided_streams=1_2'
  """
  text = lambda value: '_'.join(map(str, value)) if isinstance(value, tuple | list) else str(value)
  name = ','.join(f'{field.split(".")[-1]}={text(value)}' for field, value in overrides.items())
  return name.replace('/', '_') or 'base'


def commands(
  runs: Sequence[Mapping[str, Any]], config: str, workdir: str, launcher: str = ''
) -> list[list[str]]:
  """The command line of every run.

  Args:
    runs: overrides, see `overrides_of`.
    config: experiment file, as for `armd_jax.train`.
    workdir: folder of the runs' work directories.
    launcher: command line of a launcher; '': run here.
  Raises:
    UserError: the launcher is no command line, or a run's folder can have no name like this.
  """
  found = []
  try:
    first = shlex.split(launcher)
  except ValueError as error:
    told = f'--launcher is {launcher!r} ({sentence(error)}); write a command line'
    raise UserError(told) from None
  for overrides in runs:
    folder = paths.given(pathlib.Path(workdir) / run_name(overrides), 'the folder of a run')
    train = [
      'python' if launcher else sys.executable, '-m', 'armd_jax.train', f'--config={config}',
      f'--workdir={folder}', *(f'--config.{field}={value}' for field, value in overrides.items()),
    ]  # fmt: skip
    found.append([*first, '--', *train] if launcher else train)
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  sweep: str = flag('FILE:FUNCTION that returns overrides.')
  config: str = flag('Experiment file.')
  workdir: str = flag('Folder of the work directories.', is_path=True)
  launcher: str = flag("A launcher's command line; left out: run here.", '')
  dry_run: bool = flag('Print the commands only.', False)


def main(options: Options) -> None:
  runs = overrides_of(options.sweep)
  for overrides in runs:
    config_of(options.config, overrides)  # or raises, before any run begins
  for command in commands(runs, options.config, options.workdir, options.launcher):
    print(shlex.join(command), flush=True)
    if not options.dry_run and (code := ends.run(command)):
      raise UserError(
        f'{shlex.join(command)} ended with code {code}; mend what it says, and give the same '
        'command again to go on'
      )


if __name__ == '__main__':
  cli.run(main, Options)

"""Command lines of programs that run where nothing but Python's own modules may be installed."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from armd_jax.errors import UserError


class Parser(argparse.ArgumentParser):
  """A parser whose --out takes a folder, and to which a wrong command line is a UserError.

  Args:
    program: the module that is run.
    about: a sentence.
    out: what goes into the folder.
  """

  def __init__(self, program: str, about: str, out: str):
    super().__init__(prog=f'python -m {program}', description=about)
    self.add_argument('--out', type=pathlib.Path, required=True, help=out)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; see --help')


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Runs `main` with this process's arguments; a `UserError` is one sentence and exit code 1."""
  try:
    main(sys.argv[1:])
  except UserError as wrong:
    sys.exit(f'error: {wrong}')

"""Measures everything that one GPU has to show; see `docs/device.md`.

    python -m armd_jax.bench.device --out=FOLDER [--limit=575] [--stages=smoke,numerics,...]

It imports nothing but Python's own modules, starts every measurement as a process of its own, and
ends in time with a table, a page and a picture, whatever those processes do.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from armd_jax.bench.device import command, environment, goals, page, stages
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.runner import Runner
from armd_jax.errors import UserError

LIMIT = 575  # seconds, which the limits of stages are made for
FOR_PAGE = 12  # of them
SCRATCH = pathlib.Path(tempfile.gettempdir()) / 'armd_jax_device'


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """The command line.

  Raises:
    UserError: it is wrong.
  """
  names = ', '.join(stages.STAGES)
  about = __doc__.splitlines()[0]
  parser = command.Parser('armd_jax.bench.device', about, 'takes rows, page, picture and log')
  add = parser.add_argument
  add('--limit', type=float, default=LIMIT, help='seconds for everything')
  add('--stages', default=','.join(stages.STAGES), help=f'some of {names}')
  add('--wheels', type=pathlib.Path, help='of packages that may be missing here')
  add('--ptxas', choices=('system', 'carried'), default='system', help='what compiles all programs')
  add('--kept', type=pathlib.Path, default=SCRATCH, help='keeps rows if --out is emptied')
  add('--fresh', action='store_true', help='forget what these stages measured before')
  add('--page_only', action='store_true', help='measure nothing; write the page of rows in --out')
  given = parser.parse_args(argv)
  given.stages = given.stages.split(',')
  if unknown := set(given.stages) - set(stages.STAGES):
    raise UserError(f'--stages={",".join(sorted(unknown))} is unknown; write some of {names}')
  if given.limit <= FOR_PAGE:
    raise UserError(f'--limit={given.limit:g} leaves no time; write more than {FOR_PAGE} seconds')
  return given


def prepare(given: argparse.Namespace) -> tuple[stages.Place, dict[str, str]]:
  """Packages and compilers, and the environment of every process.

  Raises:
    UserError: what was carried here cannot be used, or --ptxas=carried without one.
  """
  paths = [str(environment.ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  carried = texts = None
  system = environment.system_cuda()
  if given.wheels:
    site = environment.site(given.wheels, SCRATCH)
    paths += [str(site)] if site else []
    folder = given.wheels.resolve().parent
    carried = environment.carried_cuda(folder / environment.PTXAS, system, SCRATCH)
    texts = folder / environment.TEXTS
  chosen = system
  if given.ptxas == 'carried':
    if carried is None:
      raise UserError(f'--ptxas=carried needs --wheels with {environment.PTXAS} beside it')
    chosen, carried = carried, None
  variables = {
    'PYTHONPATH': os.pathsep.join(paths),
    'PYTHONUNBUFFERED': '1',
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    'JAX_COMPILATION_CACHE_DIR': str(SCRATCH / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1',
  }
  variables |= chosen.variables() if chosen else {}
  place = stages.Place(
    out=given.out,
    carried=carried,
    texts=texts if texts and texts.exists() else None,
    xla_flags=os.environ.get('XLA_FLAGS', ''),
  )
  machine = rows_lib.Rows(rows_lib.Job('machine', given.out, given.kept, 0))
  machine.add(
    'compilers',
    ptxas=chosen.version if chosen else 'that of jax or none',
    carried_ptxas=carried and carried.version,
  )
  return place, variables


def report(out: pathlib.Path, variables: dict[str, str]) -> None:
  """Writes table, page and picture."""
  rows = rows_lib.read(out)
  page.write(out, rows, goals.judge(rows))
  draw = [sys.executable, '-m', 'armd_jax.bench.device.picture', f'--out={out}']
  with (out / 'log.txt').open('a', encoding='utf-8') as log:
    try:
      code = subprocess.run(
        draw,
        env=os.environ | variables | {'JAX_PLATFORMS': 'cpu'},  # it needs no device
        stdout=log,
        stderr=subprocess.STDOUT,
        timeout=4 * FOR_PAGE,
      ).returncode
    except subprocess.TimeoutExpired:
      code = 'no end'
  if code:
    print(f'the picture was not drawn ({code}); see {out / "log.txt"}', file=sys.stderr)
  page.write(out, rows, goals.judge(rows))
  print((out / page.TABLE).read_text('utf-8'), end='')


def main(argv: Sequence[str]) -> None:
  begin = time.time()
  given = parse(argv)
  if given.page_only:
    if not rows_lib.read(given.out):
      raise UserError(f'{given.out} holds no rows to write a page of; leave out --page_only')
    report(given.out, {})
    return
  fresh = [*given.stages, *stages.filed(given.stages)] if given.fresh else ()
  there = rows_lib.merge(given.out, given.kept, fresh, environment.has_gpu())
  print(f'{there} rows were measured before; {given.kept} keeps them for the next call')
  place, variables = prepare(given)
  # Whoever ends this program ends its processes, too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  job = rows_lib.Job(rows_lib.PROCESS, given.out, given.kept, begin + given.limit - FOR_PAGE)
  runner = Runner(job, variables, max(1, given.limit / LIMIT))
  try:
    for name in given.stages:
      for stage in stages.STAGES[name](place):
        runner.run(stage)
  finally:
    report(given.out, variables)
  print(f'{time.time() - begin:.0f} s; everything is in {given.out.absolute()}')


if __name__ == '__main__':
  command.run(main)

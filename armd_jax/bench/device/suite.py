"""The repository's own tests of the kernels, drills included, on this device."""

from __future__ import annotations

import collections
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from armd_jax.bench.device import calls
from armd_jax.bench.device.environment import ROOT
from armd_jax.bench.device.rows import Rows

PROCESSES = 12
TESTS = ('tests/attention/test_hopper.py', 'tests/attention/test_hopper_splits.py')
# Thirty programs in one test.
LEFT_OUT = 'tests/attention/test_hopper.py::test_many_random'
DRY_TESTS = ('tests/attention/test_hopper.py', '-k', 'bounds or registers or refused')


def outcomes(report: pathlib.Path) -> dict:
  """The numbers of a row from a report of pytest's."""
  counts, bad = collections.Counter(), []  # type: collections.Counter[str], list[str]
  for case in ElementTree.parse(report).iter('testcase'):
    kinds = {child.tag for child in case} & {'failure', 'error', 'skipped'}
    kind = next(iter(kinds), 'passed')
    counts[kind] += 1
    if kind in ('failure', 'error'):
      bad.append(case.get('name'))
  return {'ok': not bad and counts['passed'] > 0, **counts, 'bad': bad}


def main(rows: Rows, _: list[str]) -> int:
  report = rows.job.out / 'suite.xml'

  def run():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider']
    command += ['-o', 'addopts=--import-mode=importlib', f'--junitxml={report}']
    if rows.dry:
      command += ['-n', '0', *DRY_TESTS]
    else:
      command += ['--device', '-n', f'{PROCESSES}', '--dist', 'load']
      command += [*TESTS, '--deselect', LEFT_OUT]
    report.unlink(missing_ok=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if not report.exists():
      return {'error': f'pytest ended with {code} and left no report; see log.txt'}
    return outcomes(report)

  rows.measure('tests of the kernels', run)
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

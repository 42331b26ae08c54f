"""Every drill has passed with the sources of today, and how that is kept track of."""

import os
import pathlib
import subprocess
import sys

import drills
import known_stale
import pytest

from armd_jax import records

TESTS = pathlib.Path(__file__).parent

_MODULE = """
import helper
import pytest

DRILL_ALSO = ('source*.txt',)

@pytest.mark.drill
@pytest.mark.parametrize('value', [1, 2])
def test_passes(value):
  pass

@pytest.mark.drill
def test_fails():
  assert helper.RIGHT

@pytest.mark.drill
def test_skips():
  pytest.skip('not here')

@pytest.fixture
def unclean():
  yield
  raise OSError

@pytest.mark.drill
def test_fails_afterwards(unclean):
  pass

def test_no_drill():
  pass
"""
_PASSES = ['tests/test_some.py::test_passes[1]', 'tests/test_some.py::test_passes[2]']
_FAILS = 'tests/test_some.py::test_fails'


def test_every_drill_has_a_current_record(request):
  stamps = request.config.stash[drills.STAMPS]
  if not stamps:
    pytest.skip('drills are collected by a run of all tests')
  kept = records.Records(TESTS.parent / 'docs' / 'records' / 'drills.json')
  known_stale.check(kept, set(kept.missing(stamps)), '`make drills`')


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'tests').mkdir()
  (tmp_path / 'tests' / 'test_some.py').write_text(_MODULE)
  (tmp_path / 'tests' / 'helper.py').write_text('RIGHT = False')
  (tmp_path / 'source1.txt').write_text('one')
  return tmp_path


def run(folder, *options):
  """Counts of outcomes, as 'a passed, b failed', and what it printed."""
  command = [sys.executable, '-m', 'pytest', '-p', 'drills', '--rootdir=.', *options, 'tests']
  path = os.pathsep.join([str(TESTS), str(folder / 'tests')])
  variables = {key: os.environ[key] for key in os.environ if not key.startswith('PYTEST_')}
  variables |= {'PYTHONPATH': path, 'PYTHONDONTWRITEBYTECODE': '1'}
  done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
  return done.stdout.strip().splitlines()[-1].strip('= '), done


def record(folder, *options):
  outcome, _ = run(folder, '-m', 'drill', '--record=record.json', *options)
  return outcome.rsplit(' in ', 1)[0], records.Records(folder / 'record.json').read()


def test_left_out_unless_asked_for(folder):
  outcome, _ = run(folder)
  assert outcome.startswith('1 passed, 5 deselected')
  outcome, _ = run(folder, '-m', 'drill')
  assert outcome.startswith('1 failed, 3 passed, 1 skipped, 1 deselected, 1 error')


def test_records_what_passes_and_goes_on_from_there(folder):
  outcome, first = record(folder, '-n', '2', '--dist', 'worksteal')
  assert outcome == '1 failed, 3 passed, 1 skipped, 1 error'
  assert list(first) == _PASSES
  assert {'stamp', 'seconds', 'jax', 'python'} == first[_PASSES[0]].keys()
  outcome, again = record(folder)
  assert outcome == '1 failed, 1 passed, 1 skipped, 3 deselected, 1 error'
  assert again == first
  assert [file.name for file in folder.glob('record*')] == ['record.json']


def test_success_if_all_is_on_record(folder):
  for _ in range(2):
    _, done = run(folder, '-m', 'drill', '--record=record.json', '-k', 'test_passes')
    assert done.returncode == 0
  assert 'no tests ran' in done.stdout or '6 deselected' in done.stdout


def test_changed_source_or_helper_runs_again_and_a_comment_does_not(folder):
  _, first = record(folder)
  (folder / 'source2.txt').write_text('two')
  outcome, second = record(folder)
  assert outcome == '1 failed, 3 passed, 1 skipped, 1 deselected, 1 error'
  for path in (folder / 'tests').glob('*.py'):
    path.write_text(f'{path.read_text()}\n# A comment.\n')
  outcome, _ = record(folder)
  assert outcome == '1 failed, 1 passed, 1 skipped, 3 deselected, 1 error'
  (folder / 'tests' / 'helper.py').write_text('RIGHT = True')
  outcome, third = record(folder)
  assert outcome == '4 passed, 1 skipped, 1 deselected, 1 error'
  assert list(third) == [_FAILS, *_PASSES]
  assert len({found[_PASSES[0]]['stamp'] for found in (first, second, third)}) == 3


def test_globs_that_match_nothing_pass_nothing(folder):
  path = folder / 'tests' / 'test_some.py'
  path.write_text(path.read_text().replace('source*', 'nothing*'))
  _, done = run(folder, '-m', 'drill', '--record=record.json')
  assert 'DRILL_ALSO and DRILL_WITHOUT in test_some.py must match a file' in done.stdout
  assert not (folder / 'record.json').exists()

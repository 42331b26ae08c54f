"""Full matrices are marked `drill`: `make drills` runs and records them, `make test` leaves them.

The stamp of a drill is the digest of its module and of the project files that it imports (see
`armd_jax.records`). A module may name further entries in DRILL_ALSO, such as programs that it
starts as processes, and in DRILL_WITHOUT files that do not decide what its drills show; both hold
globs relative to the repository's root. A drill that has passed under today's stamp is not run
again.
"""

import importlib.metadata
import pathlib
import platform

import pytest

from armd_jax import records

STAMPS = pytest.StashKey[dict[str, str]]()  # of every drill collected, by node id


def _stamp(config, item) -> str:
  """Of a drill; empty if its module's globs match nothing."""
  entries = (str(item.path.relative_to(config.rootpath)), *getattr(item.module, 'DRILL_ALSO', ()))
  without = getattr(item.module, 'DRILL_WITHOUT', ())
  try:
    return records.digest(entries, without, root=config.rootpath)
  except ValueError:
    return ''


class _Recorder:
  """Writes down the drills that pass, in the one process that hears of all of them."""

  def __init__(self, path):
    self.records, self.seconds = records.Records(path), {}

  def pytest_runtest_logreport(self, report):
    stamp = dict(report.user_properties).get('drill')
    if stamp is None or not report.passed:
      return
    if report.when == 'call':
      self.seconds[report.nodeid] = round(report.duration, 1)
    elif report.when == 'teardown' and report.nodeid in self.seconds:
      versions = {'jax': importlib.metadata.version('jax'), 'python': platform.python_version()}
      record = {'seconds': self.seconds[report.nodeid], **versions}
      self.records.add(report.nodeid, stamp, record)

  def pytest_sessionfinish(self, session, exitstatus):
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # every drill is on record
      session.exitstatus = pytest.ExitCode.OK


def pytest_addoption(parser):
  parser.addoption(
    '--record', type=pathlib.Path, help='record drills that pass here, leave out those on record'
  )


def pytest_configure(config):
  config.addinivalue_line('markers', 'drill: full matrices, run by `make drills`')
  if config.option.record and not hasattr(config, 'workerinput'):
    config.pluginmanager.register(_Recorder(config.option.record))


def pytest_collection_modifyitems(config, items):
  drills = [item for item in items if item.get_closest_marker('drill')]
  stamps = config.stash[STAMPS] = {}
  for item in drills:
    stamps[item.nodeid] = _stamp(config, item)
    item.user_properties.append(('drill', stamps[item.nodeid]))
  if config.option.record:
    current = records.Records(config.option.record).current(stamps)
    left = [item for item in drills if item.nodeid in current]
  elif 'drill' in config.option.markexpr or config.getoption('device', False):
    left = []
  else:
    left = drills
  config.hook.pytest_deselected(items=left)
  items[:] = [item for item in items if item not in left]


def pytest_runtest_setup(item):
  if ('drill', '') in item.user_properties:
    message = f'every glob of DRILL_ALSO and DRILL_WITHOUT in {item.path.name} must match a file'
    pytest.fail(message, pytrace=False)

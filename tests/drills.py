"""Full matrices are marked `drill`: `make drills` runs and records them, `make test` leaves them.

A module with drills states in DRILL_SOURCES what they cover, as globs relative to the repository's
root. The stamp of a drill is a digest of these files, of its module and of the modules of `tests`
that it imports; a drill that has passed with the stamp of today is not run again.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform

import pytest

STAMPS = pytest.StashKey[dict[str, str]]()  # of every drill collected, by node id


def read(path: pathlib.Path) -> dict[str, dict]:
  """Records by node id."""
  return json.loads(path.read_text()) if path.exists() else {}


def _add(path: pathlib.Path, nodeid: str, record: dict) -> None:
  """Reads again what others may have recorded meanwhile; leaves a whole file at any time."""
  records = sorted((read(path) | {nodeid: record}).items())
  lines = [f'  {json.dumps(key)}: {json.dumps(value)}' for key, value in records]
  new = path.with_name(f'{path.name}.{os.getpid()}')
  new.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
  new.replace(path)


def _with_imports(path: pathlib.Path, tests: pathlib.Path) -> set[pathlib.Path]:
  """A module's file and those of the modules beside it, or in `tests`, that it imports."""
  found, left = set(), {path}
  while left:
    path = left.pop()
    found.add(path)
    names = []
    for node in ast.walk(ast.parse(path.read_text('utf-8'))):
      if isinstance(node, ast.ImportFrom):
        names += [node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)]
      elif isinstance(node, ast.Import):
        names += [alias.name for alias in node.names]
    files = [f'{name.replace(".", "/")}.py' for name in names]
    files = {folder / file for file in files for folder in (tests, path.parent)}
    left |= {file for file in files if file.is_file()} - found
  return found


@functools.cache
def _stamp(root: pathlib.Path, path: pathlib.Path, globs: tuple[str, ...]) -> str:
  """Of the drills of a module; empty if its DRILL_SOURCES are not what they should be."""
  matches = [set(root.glob(glob)) for glob in globs]
  if not matches or not all(matches):
    return ''
  digest = hashlib.sha256()
  for file in sorted(_with_imports(path, root / 'tests').union(*matches)):
    digest.update(f'{file.relative_to(root)}\0'.encode())
    digest.update(hashlib.sha256(file.read_bytes()).digest())
  return digest.hexdigest()[:16]


class _Recorder:
  """Writes down the drills that pass, in the one process that hears of all of them."""

  def __init__(self, path):
    self.path, self.seconds = path, {}

  def pytest_runtest_logreport(self, report):
    stamp = dict(report.user_properties).get('drill')
    if stamp is None or not report.passed:
      return
    if report.when == 'call':
      self.seconds[report.nodeid] = round(report.duration, 1)
    elif report.when == 'teardown' and report.nodeid in self.seconds:
      versions = {'jax': importlib.metadata.version('jax'), 'python': platform.python_version()}
      seconds = self.seconds[report.nodeid]
      _add(self.path, report.nodeid, {'stamp': stamp, 'seconds': seconds, **versions})

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
    globs = getattr(item.module, 'DRILL_SOURCES', ())
    stamps[item.nodeid] = _stamp(config.rootpath, item.path, globs)
    item.user_properties.append(('drill', stamps[item.nodeid]))
  if config.option.record:
    records = read(config.option.record)
    left = [i for i in drills if records.get(i.nodeid, {}).get('stamp') == stamps[i.nodeid]]
  elif 'drill' in config.option.markexpr or config.getoption('device', False):
    left = []
  else:
    left = drills
  config.hook.pytest_deselected(items=left)
  items[:] = [item for item in items if item not in left]


def pytest_runtest_setup(item):
  if ('drill', '') in item.user_properties:
    message = f'{item.path.name} must state DRILL_SOURCES, globs that each match a file'
    pytest.fail(message, pytrace=False)

"""Programs are compiled side by side and measured one after the other."""

import dataclasses
import threading
import time

import pytest

from armd_jax.bench.device import ahead, kernels
from armd_jax.bench.device import rows as rows_lib


@pytest.fixture
def rows(tmp_path):
  for name in ('out', 'kept'):
    (tmp_path / name).mkdir()
  job = rows_lib.Job('models', tmp_path / 'out', tmp_path / 'kept', time.time() + 60)
  return rows_lib.Rows(job, 'cpu')


def test_what_is_ready_is_measured_although_the_first_is_not(rows, monkeypatch):
  monkeypatch.setattr(ahead, 'SHARE', 0.1)
  rows = rows_lib.Rows(dataclasses.replace(rows.job, until=time.time() + 8), 'cpu')
  never = threading.Event()

  def compile_(key):
    if key == 'first':
      never.wait(6)
    return key

  order = []
  code = ahead.compiled_ahead(
    rows, ['first', 'second'], compile_, lambda key, *_: order.append(key) or {'ms': 1}
  )
  assert order == ['second'] and code == 1
  told = rows_lib.read(rows.job.out)
  assert 'still compiling' in told['models', 'first']['skipped']
  assert told['models', 'second']['ms'] == 1


def test_a_trace_that_is_missing_is_made_and_its_row_is_kept(rows):
  rows.add('one', ms=5)
  code = ahead.compiled_ahead(
    rows, ['one', 'two'], str.upper, lambda *_: {'ms': 7}, {'one': lambda made: {'of': made}}
  )
  told = rows_lib.read(rows.job.out)
  assert code == 0
  assert (told['models', 'one']['ms'], told['models', 'two']['ms']) == (5, 7)
  assert told[kernels.STAGE, 'one']['of'] == 'ONE' and (kernels.STAGE, 'two') not in told


def test_late_programs_overwrite_no_row(rows):
  rows.add('one', ms=5)
  late = rows_lib.Rows(dataclasses.replace(rows.job, until=time.time() + 6), dry=True)
  slow = lambda key: time.sleep(5)
  code = ahead.compiled_ahead(late, ['zero', 'one'], slow, dict, {'one': dict})
  told = rows_lib.read(rows.job.out)
  assert told['models', 'one']['ms'] == 5 and code == 1
  assert 'skipped' in told[kernels.STAGE, 'one']


def test_two_that_compile_at_once_measure_one_by_one(rows):
  both = threading.Barrier(2, timeout=20)
  now, most = [], []

  def measure(key, *_):
    now.append(key)
    most.append(len(now))
    time.sleep(0.3)
    now.remove(key)
    return {'ms': 1}

  def process(stage):
    # Each compiles only while the other does.
    ahead.compiled_ahead(rows.of(stage), ['a'], lambda key: both.wait() and 0, measure)

  threads = [threading.Thread(target=process, args=(name,)) for name in ('train', 'decode')]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1, 1]
  assert {stage for stage, _ in rows_lib.read(rows.job.out)} == {'train', 'decode'}

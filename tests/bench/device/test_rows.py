"""Rows are on the disk at once, in both folders; what is there is not measured again."""

import json
import time

import numpy as np
import pytest

from armd_jax.bench.device import rows as rows_lib
from armd_jax.errors import UserError


def rows_of(tmp_path, stage='times', seconds=60, **more):
  job = rows_lib.Job(stage, tmp_path / 'out', tmp_path / 'kept', time.time() + seconds, **more)
  rows_lib.merge(job.out, job.kept)
  return rows_lib.Rows(job, 'a device')


def test_row_is_in_both_folders_and_is_plain_json(tmp_path):
  rows = rows_of(tmp_path)
  rows.add('a', ms=np.float32(1.5), many=[np.float64(2)], ok=True, nothing=None, bad=float('nan'))
  for folder in (tmp_path / 'out', tmp_path / 'kept'):
    (line,) = rows_lib.lines(folder)
    row = json.loads(line, parse_constant=pytest.fail)
    assert row['stage'] == 'times' and row['key'] == 'a' and row['device'] == 'a device'
    assert (row['ms'], row['many'], row['ok'], row['nothing']) == (1.5, [2.0], True, None)
    assert row['bad'] == 'nan' and row['dry'] is False


def test_what_is_there_is_not_measured_again(tmp_path):
  rows = rows_of(tmp_path)
  rows.measure('a', lambda: {'ms': 1.0})
  rows.measure('a', lambda: pytest.fail('measured again'))
  assert rows.exit_code() == 0
  # Nor by a later process, nor after the folder of results was emptied.
  (tmp_path / 'out' / rows_lib.FILE).unlink()
  rows_of(tmp_path).measure('a', lambda: pytest.fail('measured again'))


@pytest.mark.parametrize('numbers', [{'ok': False}, {'skipped': 'no time left'}, {'error': 'x'}])
def test_what_failed_or_was_skipped_is_measured_again(tmp_path, numbers):
  rows = rows_of(tmp_path)
  rows.measure('a', lambda: numbers)
  assert rows.exit_code() == 1
  rows.measure('a', lambda: {'ms': 1.0})
  assert rows.exit_code() == 0
  assert rows_lib.read(tmp_path / 'out')['times', 'a']['ms'] == 1.0


def test_error_is_a_row_and_the_next_is_measured(tmp_path):
  rows = rows_of(tmp_path)

  def breaks():
    raise ValueError('no such kernel\nand a long story')

  rows.measure('a', breaks)
  rows.measure('b', lambda: {'ms': 1.0})
  found = rows_lib.read(tmp_path / 'out')
  assert found['times', 'a']['error'] == 'ValueError: no such kernel'
  assert found['times', 'b']['ms'] == 1.0
  assert rows.exit_code() == 1


def test_without_time_nothing_is_begun(tmp_path):
  rows = rows_of(tmp_path, seconds=1)
  rows.measure('a', lambda: pytest.fail('begun'))
  assert rows_lib.read(tmp_path / 'out')['times', 'a']['skipped'] == rows_lib.NO_TIME


def test_label_is_another_row(tmp_path):
  rows_of(tmp_path).measure('a', lambda: {'ms': 1.0})
  rows_of(tmp_path, label=', ptxas 13.5').measure('a', lambda: {'ms': 2.0})
  found = rows_lib.read(tmp_path / 'out')
  assert [found['times', key]['ms'] for key in ('a', 'a, ptxas 13.5')] == [1.0, 2.0]


def test_fresh_forgets_a_stage_and_how_its_processes_ended(tmp_path):
  for stage in ('times', 'train'):
    rows_of(tmp_path, stage).add('a', ms=1.0)
    rows_of(tmp_path, rows_lib.PROCESS).add(rows_lib.process_key(stage, 'a'))
  assert rows_lib.merge(tmp_path / 'out', tmp_path / 'kept', ['times']) == 2
  for folder in ('out', 'kept'):
    assert set(rows_lib.read(tmp_path / folder)) == {('train', 'a'), ('process', 'train: a')}


def test_a_dry_run_is_not_taken_for_measurements(tmp_path):
  """Nor loses those that were made on a GPU."""
  rows_of(tmp_path).add('a', ms=1.0)
  dry = rows_of(tmp_path, 'train')
  dry.dry = True  # on a CPU
  dry.add('a', ms=1.0)
  for stage in ('times', 'train'):
    rows_of(tmp_path, rows_lib.PROCESS).add(rows_lib.process_key(stage, 'a'))
  assert rows_lib.merge(tmp_path / 'out', tmp_path / 'kept') == 4
  assert rows_lib.merge(tmp_path / 'out', tmp_path / 'kept', on_gpu=True) == 2
  assert set(rows_lib.read(tmp_path / 'out')) == {('times', 'a'), ('process', 'times: a')}


def test_later_row_holds_whichever_folder_it_is_in(tmp_path):
  rows = rows_of(tmp_path)
  rows.add('a', ms=1.0)
  old = (tmp_path / 'out' / rows_lib.FILE).read_text()
  time.sleep(0.2)
  rows.add('a', ms=2.0)
  (tmp_path / 'out' / rows_lib.FILE).write_text(old)
  rows_lib.merge(tmp_path / 'out', tmp_path / 'kept')
  assert rows_lib.read(tmp_path / 'out')['times', 'a']['ms'] == 2.0


def test_arguments_of_a_job_are_read_back():
  from pathlib import Path

  job = rows_lib.Job('flags', Path('a b/out'), Path('kept'), 1.5, ', plain products')
  assert rows_lib.parse([*job.arguments(), 'ar 1 1', 'x']) == (job, ['ar 1 1', 'x'])


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write to'):
    rows_lib.merge(tmp_path / 'file', tmp_path / 'kept')

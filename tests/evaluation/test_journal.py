"""What was measured comes back to the bit; what was measured of something else does not."""

import json
import os

import numpy as np
import pytest

from armd_jax.errors import UserError
from armd_jax.evaluation.journal import Journal

MEASURED = {'model': [3, 'abc'], 'text': 'def', 'protocol': ('left-to-right', 8)}
ROWS = np.array([[1 / 3, 1e-300], [-0.1, 2.0]])


@pytest.fixture
def path(tmp_path):
  """A journal of five rows of two parts."""
  path = tmp_path / 'new' / 'evaluate.partial'
  journal = Journal(path, MEASURED)
  journal.add(0, ROWS)
  journal.add(0, ROWS[:1].astype(np.float32))
  journal.add(1, ROWS[:, 0])
  return path


def test_comes_back_to_the_bit(path):
  journal = Journal(path, MEASURED)
  expected = np.concatenate([ROWS, ROWS[:1].astype(np.float32).astype(np.float64)])
  np.testing.assert_array_equal(journal.rows(0), expected)
  np.testing.assert_array_equal(journal.rows(1), ROWS[:, 0])
  assert journal.count == 5 and len(journal.rows(2)) == 0


@pytest.mark.parametrize('lost', range(1, 40))
def test_a_line_cut_off_is_measured_again(path, lost):
  whole = path.read_bytes()
  path.write_bytes(whole[:-lost])
  lines = whole[:-lost].count(b'\n')
  journal = Journal(path, MEASURED)
  assert journal.count == [0, 0, 2, 3, 5][lines]
  for part, rows in [(0, ROWS), (0, ROWS[:1].astype(np.float32)), (1, ROWS[:, 0])][lines - 1 :]:
    journal.add(part, rows)
  assert path.read_bytes() == whole


def test_a_file_that_was_being_begun(path):
  path.write_bytes(path.read_bytes()[:10])
  assert Journal(path, MEASURED).count == 0
  assert json.loads(path.read_text()) == json.loads(json.dumps(MEASURED))


@pytest.mark.parametrize(
  ('change', 'what'),
  [
    ({'model': [3, 'abd']}, 'another model;'),
    ({'protocol': ('left-to-right', 4), 'text': 'dee'}, 'another text and another protocol;'),
  ],
)
def test_something_else_is_refused(path, change, what):
  before = path.read_bytes()
  with pytest.raises(UserError, match=f'{path} holds an unfinished evaluation of {what}'):
    Journal(path, MEASURED | change)
  assert path.read_bytes() == before
  assert Journal(path, MEASURED | change, restart=True).count == 0
  assert Journal(path, MEASURED | change).count == 0


def test_one_of_several_processes_writes(path):
  before = path.read_bytes()
  reader = Journal(path, MEASURED, writes=False)
  reader.add(1, ROWS[:, 0])
  reader.finish()
  assert reader.count == 7 and path.read_bytes() == before


def test_finished_ones_leave_nothing(path):
  Journal(path, MEASURED).finish()
  assert not path.exists()


@pytest.mark.parametrize('damage', ['{"model": 1}\n[0]\n', '{"model"\n', '{"model": [\n'])
def test_damage(path, damage):
  path.write_text(damage)
  with pytest.raises(UserError, match='is damaged; drop it by --restart'):
    Journal(path, MEASURED)


def test_no_flipped_bit_is_believed(path):
  whole = path.read_bytes()
  for place in range(len(whole)):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    try:
      journal = Journal(path, MEASURED, writes=False)
    except UserError:
      continue
    # Of a newline that is gone, or of what is behind the last one.
    assert journal.count < 5
    expected = np.concatenate([ROWS, ROWS[:1].astype(np.float32).astype(np.float64)])
    np.testing.assert_array_equal(journal.rows(0), expected[: len(journal.rows(0))])


@pytest.mark.parametrize('restart', [False, True])
@pytest.mark.parametrize('content', ['notes', 'notes\n', '{"mode": 1}\n', '[]\n', '{"a": 1}'])
def test_nothing_but_a_journal_is_written_to(tmp_path, content, restart):
  path = tmp_path / 'mine'
  path.write_text(content)
  with pytest.raises(UserError, match='is no unfinished evaluation; give another --partial'):
    Journal(path, MEASURED, restart=restart)
  assert path.read_text() == content


def test_no_pipe_folder_or_device_is_a_journal(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path / 'pipe', tmp_path, '/dev/null', '/dev/full'):
    with pytest.raises(UserError, match='is no unfinished evaluation; give another --partial'):
      Journal(path, MEASURED, restart=True)


def test_nowhere_to_write(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match=r'cannot write .*; give another --partial'):
    Journal(tmp_path / 'file' / 'evaluate.partial', MEASURED)

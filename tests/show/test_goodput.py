"""Where a run's time went, counted from its log."""

import pytest

from armd_jax.show import goodput


def started(time, seconds, step=1):
  return {
    'step': step, 'start_seconds': sum(seconds), 'start_data_seconds': seconds[0],
    'start_restore_seconds': seconds[1], 'start_compile_seconds': seconds[2], 'time': time,
  }  # fmt: skip


def steps(time, step, timed, seconds, waited=0.0):
  return {
    'step': step, 'loss': 1.0, 'time': time, 'timed_steps': timed, 'step_seconds': seconds,
    'input_seconds': waited,
  }  # fmt: skip


FIRST = [
  started(110.0, (2.0, 1.0, 7.0)),  # of 100 to 110
  steps(130.0, 11, 10, 2.0, 0.5),
  {'step': 11, 'held_out': 1.0},
  {'step': 11, 'time': 135.0, 'evaluation_seconds': 3.0, 'save_seconds': 1.0},
  steps(155.0, 21, 10, 2.0, 0.5),
]


def test_all_of_the_time_is_somewhere():
  found = goodput.of(FIRST)
  assert (found.total, found.starts) == (55.0, 1)
  assert found.trained == pytest.approx(30.0)
  expected = dict(start=3, compile=7, input=10, evaluation=3, samples=0, saves=1, lost=0, other=1)
  assert found.parts == pytest.approx(expected)
  assert found.trained + sum(found.parts.values()) == pytest.approx(found.total)
  text = found.text()
  assert text.startswith('goodput   54.5% of 0:00:55 in 1 start trained; start 5.5%, compile 12.7%')
  assert 'samples' not in text


def test_steps_that_are_done_again_are_lost_and_so_is_the_time_between():
  """Killed after step 21, started again from step 16 after 45 seconds."""
  again = [started(210.0, (1.0, 1.0, 8.0), step=17), steps(228.0, 26, 9, 2.0)]
  found = goodput.of([*FIRST, *again])
  assert (found.total, found.starts) == (128.0, 2)
  # Steps 17 to 21 of the record of 12 to 21.
  assert found.parts['lost'] == pytest.approx(45 + 5 * 2.0)
  assert found.trained == pytest.approx(15 + 0.5 * 15 + 18)
  assert found.trained + sum(found.parts.values()) == pytest.approx(found.total)


def test_older_logs_have_none_and_what_is_missing_does_no_harm():
  assert goodput.of([]) is None
  assert goodput.of([{'step': 1, 'loss': 2.0, 'step_seconds': 1.0}]) is None
  odd = [{'step': 1, 'start_seconds': 1.0, 'time': None}, started(0.0, (0.0, 0.0, 0.0))]
  found = goodput.of([*odd, {'step': 2, 'time': 0.0, 'timed_steps': None}])
  assert found.total == found.trained == 0 and found.text().startswith('goodput   0.0% of 0:00:00')

"""Jobs one of whose processes stands still, or is told to stop, wherever in a run that happens.

Marked `drill`; a case of each is in tests/parallel and tests/training.
"""

import pytest
import tiny_run
from finished import WITHOUT, assert_same_run
from signalled import CHANGES, HANG_SECONDS, LAST, begun, is_told, stands_still

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures('compiled_alike')]
DRILL_ALSO = ('armd_jax/train.py', 'launch/*')
DRILL_WITHOUT = WITHOUT


@pytest.fixture(autouse=True)
def without_jax_notices(monkeypatch):
  # Our own notices of SIGTERM do without it.
  monkeypatch.setenv('JAX_ENABLE_PREEMPTION_SERVICE', 'false')


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """By the number of its processes, a run that nothing happens to."""
  folder = tmp_path_factory.mktemp('straight')
  experiment = tiny_run.write_experiment(folder)

  def run(processes):
    workdir = folder / str(processes)
    if not workdir.exists():
      done = tiny_run.run(
        tiny_run.local(processes, 2, tiny_run.train(experiment, workdir, *CHANGES))
      )
      assert done.returncode == 0, done.stderr
    return workdir

  return run


@pytest.mark.parametrize('stopped', [0, 2])
@pytest.mark.parametrize('moment', ['a restore', 'the first compile', 'a save', 'a step'])
def test_one_of_4_stands_still_in(moment, stopped, straight, tmp_path):
  """The others end soon, each with a sentence that names it; nothing is lost."""
  workdir = tmp_path / 'run'
  command = begun(tmp_path, workdir, 4, f'--config.train.hang_seconds={HANG_SECONDS}')
  stands_still(command, moment, stopped, 4, tmp_path / 'flag')
  again = tiny_run.run(tiny_run.local(4, 2, command))
  assert again.returncode == 0, again.stderr
  assert_same_run(workdir, straight(4))


TOLD = {
  'a restore': 1, 'the first compile': 0, 'an evaluation': 1, 'a sample': 0, 'the last save': 1,
}  # fmt: skip


@pytest.mark.parametrize('moment', TOLD)
def test_one_of_2_is_told_to_stop_in(moment, straight, tmp_path):
  """Both end with 75 and say how long it took, and no step is lost."""
  workdir = tmp_path / 'run'
  command = begun(tmp_path, workdir, 2)
  saved = is_told(command, moment, TOLD[moment], tmp_path / 'flag', workdir)
  again = tiny_run.run(tiny_run.local(2, 2, command))
  assert again.returncode == 0, again.stderr
  assert saved == LAST or f'going on from step {saved} of {LAST}' in again.stdout
  assert (workdir / 'training.png').exists()
  assert_same_run(workdir, straight(2))

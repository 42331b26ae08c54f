"""Processes are ended at their limit with all they started, named, and the next ones run."""

import os
import sys
import time

import pytest

from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device import runner as runner_lib
from armd_jax.bench.device.stages import Process, Stage


def process(name, code, **more):
  return Process(name, (sys.executable, '-c', code), **more)


@pytest.fixture
def runner(tmp_path, monkeypatch):
  monkeypatch.setattr(runner_lib, 'SHORTEST', 1)
  monkeypatch.setattr(runner_lib, 'GRACE', 0)
  out = tmp_path / 'out'
  rows_lib.merge(out, tmp_path / 'kept')
  job = rows_lib.Job(rows_lib.PROCESS, out, tmp_path / 'kept', time.time() + 60)
  return runner_lib.Runner(job, {'GIVEN': 'to all'})


def rows(runner):
  return {key: row for (_, key), row in rows_lib.read(runner.job.out).items()}


def running(pid):
  """Whether a process runs; one that ended and was not asked for does not."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      return file.read().rsplit(')', 1)[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_hang_is_killed_and_named_and_others_are_not_stopped_by_it(runner):
  stage = Stage(
    'smoke', 3, (process('good', 'print(1)'), process('hangs', 'input_ = 1\nwhile 1: 0'))
  )
  begin = time.time()
  runner.run(stage)
  runner.run(Stage('times', 20, (process('times', 'print(2)'),)))
  assert time.time() - begin < 20
  found = rows(runner)
  assert found['smoke: hangs']['error'].startswith('killed after ')
  assert 'error' not in found['smoke: good'] and 'error' not in found['times: times']


def test_what_a_process_started_ends_with_it_even_if_it_listens_to_nothing(runner, tmp_path):
  pids = tmp_path / 'pids'
  stubborn = 'import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
  stubborn += f'open({str(pids)!r}, "a").write(f"{{os.getpid()}}\\n"); time.sleep(300)'
  parent = f'import subprocess, sys; subprocess.Popen([sys.executable, "-c", {stubborn!r}]); '
  runner.run(Stage('suite', 3, (process('suite', parent + stubborn),)))
  two = list(map(int, pids.read_text().split()))
  assert len(two) == 2 and not any(map(running, two))


def test_how_a_process_ended(runner):
  runner.run(
    Stage(
      'train',
      20,
      (
        process('segfault', 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)'),
        process('failed', 'raise SystemExit(1)'),
        process('fine', 'pass'),
      ),
    )
  )
  found = rows(runner)
  assert 'SIGSEGV' in found['train: segfault']['error']
  assert 'exit code 1' in found['train: failed']['error']
  assert 'error' not in found['train: fine']


def test_second_call_starts_only_what_did_not_end_well(runner, tmp_path):
  count = lambda name: f'open({str(tmp_path / name)!r}, "a").write("x")\n'
  stage = Stage(
    'train', 20,
    (process('fine', count('fine')), process('failed', count('failed') + 'raise SystemExit(1)')),
  )  # fmt: skip
  runner.run(stage)
  runner.run(stage)
  assert (tmp_path / 'fine').read_text() == 'x'
  assert (tmp_path / 'failed').read_text() == 'xx'


def test_processes_get_their_job_arguments_and_environment(runner, tmp_path):
  code = f'import os, sys; open({str(tmp_path / "told")!r}, "w").write(repr((sys.argv, '
  code += '{k: os.environ[k] for k in ("GIVEN", "OWN")})))'
  own = process('one', code, arguments=('ar 1 1',), variables={'OWN': 'mine'}, label=', x')
  runner.run(Stage('flags', 20, (own,)))
  argv, variables = eval((tmp_path / 'told').read_text())
  job, rest = rows_lib.parse(argv[1:])
  assert (job.stage, job.label, job.out, rest) == ('flags', ', x', runner.job.out, ['ar 1 1'])
  assert 0 < job.until - time.time() < 20
  assert variables == {'GIVEN': 'to all', 'OWN': 'mine'}


def test_no_more_at_once_than_cores(tmp_path, runner):
  code = f'import os, time; name = {str(tmp_path)!r} + f"/run{{os.getpid()}}"; open(name, "w"); '
  code += 'time.sleep(.3); n = sum(f.startswith("run") for f in os.listdir('
  code += f'{str(tmp_path)!r})); os.remove(name); raise SystemExit(n > 2)'
  two = runner_lib.Runner(runner.job, {}, cores=2)
  two.run(Stage('smoke', 30, tuple(process(f'{i}', code) for i in range(5))))
  found = rows(runner)
  assert len(found) == 5 and not any('error' in row for row in found.values())


def test_without_time_nothing_is_started(tmp_path, runner):
  late = rows_lib.Job(rows_lib.PROCESS, runner.job.out, runner.job.kept, time.time())
  runner_lib.Runner(late, {}).run(Stage('train', 20, (process('train', 'raise SystemExit(1)'),)))
  assert rows(runner)['train: train']['skipped'] == rows_lib.NO_TIME


def test_what_had_less_than_its_limit_is_not_called_a_hang(runner):
  soon = rows_lib.Job(rows_lib.PROCESS, runner.job.out, runner.job.kept, time.time() + 2)
  runner_lib.Runner(soon, {}).run(Stage('smoke', 20, (process('slow', 'while 1: 0'),)))
  row = rows(runner)['smoke: slow']
  assert 'error' not in row and row['skipped'].startswith('no time left: killed after ')


def test_an_interrupted_runner_leaves_no_process(runner, monkeypatch, tmp_path):
  pid = tmp_path / 'pid'
  code = f'import os, time; open({str(pid)!r}, "w").write(str(os.getpid())); time.sleep(300)'

  def sleep(_, real=time.sleep):
    real(0.05)
    if pid.exists() and pid.read_text():
      raise KeyboardInterrupt

  monkeypatch.setattr(runner_lib.time, 'sleep', sleep)
  with pytest.raises(KeyboardInterrupt):
    runner.run(Stage('train', 50, (process('train', code),)))
  assert not running(int(pid.read_text()))
  assert os.path.exists('/proc')  # or the line before would say nothing

"""launch/local.py: processes live and die together, and its exit code says how."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

# What every process of these jobs runs: python with its own number as PROCESS.
_SHELL = 'for a; do case $a in --process_id=*) PROCESS=${a#*=};; esac; done; '


def command(script, processes=3, *flags):
  shell = ['sh', '-c', _SHELL + script, 'sh']
  return tiny_run.local(processes, 1, shell, *flags)


def run(script, processes=3, *flags):
  return tiny_run.run(command(script, processes, *flags))


def wait_for(path):
  deadline = time.time() + 60
  while not path.exists():
    assert time.time() < deadline
    time.sleep(0.02)


def is_running(pid_file):
  status = pathlib.Path('/proc', pid_file.read_text().strip(), 'stat')
  return status.exists() and status.read_text().rpartition(')')[2].split()[0] != 'Z'


def test_every_line_says_who_printed_it():
  done = run('printf "one\\ntwo\\n"; echo oops >&2; printf "half"')
  assert done.returncode == 0
  expected = [f'[{i}] {text}' for i in range(3) for text in ('half', 'one', 'two')]
  assert sorted(done.stdout.splitlines()) == expected
  assert sorted(done.stderr.splitlines()) == [f'[{i}] oops' for i in range(3)]


def test_a_progress_bar_stays_one_line():
  done = subprocess.run(command('printf "\\r1/2\\r2/2\\n"', 1), capture_output=True)
  assert done.stdout == b'[0] \r[0] 1/2\r[0] 2/2\n'


@pytest.mark.parametrize(('death', 'code'), [('exit 7', 7), ('kill -9 $$', 137)])
def test_one_that_dies_ends_the_others_and_what_they_started(tmp_path, death, code):
  script = (
    'if [ $PROCESS = 1 ]; then '
    f'while ! [ -s {tmp_path}/0 ] || ! [ -s {tmp_path}/2 ]; do sleep 0.05; done; {death}; fi; '
    f'sleep 60 & echo $! > {tmp_path}/$PROCESS; wait'
  )
  start = time.time()
  done = run(script)
  assert done.returncode == code
  assert time.time() - start < 30
  assert f'process 1 ended with exit code {code}' in done.stderr
  assert len(list(tmp_path.iterdir())) == 2
  assert not any(is_running(path) for path in tmp_path.iterdir())


def test_a_launcher_that_is_killed_takes_all_with_it(tmp_path):
  """The processes, which hear of no signal but SIGKILL, and what they started."""
  script = (
    f'trap "" TERM INT HUP; (trap "" TERM INT HUP; while :; do sleep 0.05; done) & '
    f'echo $! > {tmp_path}/child$PROCESS; echo $$ > {tmp_path}/pid$PROCESS; echo up; '
    'while :; do sleep 0.05; done'
  )
  process = subprocess.Popen(
    command(script, 2), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
  )
  # Of whom it passes lines on, it has told those who end them after it.
  assert {process.stdout.readline() for _ in range(2)} == {'[0] up\n', '[1] up\n'}
  files = [tmp_path / f'{kind}{i}' for kind in ('child', 'pid') for i in range(2)]
  assert all(map(is_running, files))
  process.kill()
  process.wait()
  deadline = time.time() + 60
  while any(map(is_running, files)) and time.time() < deadline:
    time.sleep(0.05)
  assert not any(map(is_running, files))


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=['ctrl-c', 'sigterm']
)
def test_a_signal_lets_all_save(tmp_path, number, code):
  """While what they started, such as readers of data, still runs."""
  script = (
    f"trap 'kill -0 $! && touch {tmp_path}/saved$PROCESS; exit 75' TERM; sleep 60 & "
    f'touch {tmp_path}/up$PROCESS; wait'
  )
  process = subprocess.Popen(command(script, 3, '--max-restarts=5'), stderr=subprocess.PIPE)
  for i in range(3):
    wait_for(tmp_path / f'up{i}')
  process.send_signal(number)
  process.communicate(timeout=30)
  assert process.returncode == code
  assert len(list(tmp_path.glob('saved*'))) == 3


@pytest.mark.parametrize('flags', [['--grace=1'], []], ids=['grace over', 'second signal'])
def test_what_does_not_listen_is_killed(tmp_path, flags):
  script = f'trap "touch {tmp_path}/told" TERM; touch {tmp_path}/up; while :; do sleep 0.05; done'
  process = subprocess.Popen(command(script, 1, *flags), stderr=subprocess.PIPE)
  wait_for(tmp_path / 'up')
  process.send_signal(signal.SIGINT)
  if not flags:
    wait_for(tmp_path / 'told')
    process.send_signal(signal.SIGINT)
  process.communicate(timeout=30)
  assert process.returncode == 130


@pytest.mark.parametrize(
  ('codes', 'restarts', 'code', 'runs'),
  [
    ([9, 9, 0], 2, 0, 3),  # crashes, mended by starting again
    ([9, 9, 9], 2, 9, 3),  # as often as allowed
    ([9, 9], 0, 9, 1),
    ([1, 0], 2, 1, 1),  # an error that starting again would not mend
    ([75, 75, 0], 0, 0, 3),  # stopped and saved, which is no crash
  ],
)
def test_starts_again(tmp_path, codes, restarts, code, runs):
  script = (
    f'n=$(ls {tmp_path} | wc -l); touch {tmp_path}/$n; set -- {" ".join(map(str, codes))}; '
    'shift $n; exit $1'
  )
  assert run(script, 1, f'--max-restarts={restarts}').returncode == code
  assert len(list(tmp_path.iterdir())) == runs


def test_dry_run_prints_what_runs(tmp_path):
  """The lines it prints, given to a shell, do what it would have done."""
  script = f'echo "$JAX_PLATFORMS $JAX_NUM_CPU_DEVICES $*" > "{tmp_path}/a file$PROCESS"'
  done = run(script, 2, '--dry-run', '--port=4321')
  assert not list(tmp_path.iterdir())
  subprocess.run(['sh', '-c', done.stdout], check=True)
  printed = {path.name: path.read_text() for path in tmp_path.iterdir()}
  run(script, 2, '--port=4321')
  ran = {path.name: path.read_text() for path in tmp_path.iterdir()}
  assert printed == ran and len(ran) == 2
  assert ran['a file1'] == (
    'cpu 1 --coordinator=127.0.0.1:4321 --process_id=1 --num_processes=2 --devices_per_process=1\n'
  )


def test_every_process_gets_gpus_of_its_own():
  done = tiny_run.run([
    *tiny_run.LOCAL, '--processes=2', '--devices-per-process=2', '--platform=gpu', '--dry-run',
    '--', 'x',
  ])  # fmt: skip
  lines = done.stdout.splitlines()
  assert lines[0].startswith('JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=0,1 x ')
  assert lines[1].startswith('JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=2,3 x ')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--processes=2', '--', 'x'], 'required: --devices-per-process'),
    (['--processes=0', '--devices-per-process=1', '--', 'x'], "'0' is no whole number of at least"),
    (['--processes=2', '--devices-per-process=2'], 'there is no command; write it after --'),
    (['--processes=1', '--devices-per-process=1', '--', '/no/such'], "cannot run '/no/such'"),
    (['--processes=1', '--devices-per-process=1', '--grace=x', '--', 'x'], "'x' is no whole"),
    (['--processes=1', '--devices-per-process=1', '--name=A_b', '--', 'x'], "--name is 'A_b'"),
    (['--processes=1', '--devices-per-process=1', '--platform=tpu', '--', 'x'], "choice: 'tpu'"),
  ],
)
def test_bad_input_is_a_sentence(arguments, message):
  done = tiny_run.run([*tiny_run.LOCAL, *arguments])
  assert done.returncode == 1
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: ') and message in lines[0], done.stderr


def test_help_names_the_flags_of_every_launcher():
  for launcher in ('local', 'slurm', 'jobset', 'tpu_vm'):
    done = tiny_run.run([sys.executable, str(tiny_run.ROOT / 'launch' / f'{launcher}.py'), '-h'])
    assert done.returncode == 0
    for flag in ('--processes', '--devices-per-process', '--max-restarts', '--grace', '--dry-run'):
      assert flag in done.stdout


def test_a_job_starts_again_with_what_is_there(tmp_path, monkeypatch):
  """Of four devices one is lost with the crash; three processes, which know that they are three."""
  import local

  left = iter([4, 3])
  monkeypatch.setattr(local, '_devices', lambda platform: next(left))
  note = f'echo "$*" >> {tmp_path}/started; [ -e {tmp_path}/again ] || '
  crash = f'if [ $PROCESS = 1 ]; then sleep 0.5; touch {tmp_path}/again; exit 9; fi'
  script = f'{_SHELL}{note}{{ {crash}; sleep 60; }}'
  flags = ['--processes=6', '--devices-per-process=1', '--elastic=2', '--max-restarts=3']
  assert local.main([*flags, '--', 'sh', '-c', script, 'sh']) == 0
  lines = (tmp_path / 'started').read_text().splitlines()
  counts = [line.split('--num_processes=')[1].split()[0] for line in lines]
  assert sorted(counts) == ['3'] * 3 + ['4'] * 4


def test_too_few_devices_are_a_sentence(monkeypatch):
  import local

  monkeypatch.setattr(local, '_devices', lambda platform: 3)
  sizes = ['--processes=4', '--devices-per-process=2']
  with pytest.raises(local.common.UserError, match='there are 3 devices, too few for --elastic 2'):
    local.main([*sizes, '--elastic=2', '--', 'x'])
  with pytest.raises(local.common.UserError, match='elastic is 5; write at most --processes = 4'):
    local.main([*sizes, '--elastic=5', '--', 'x'])

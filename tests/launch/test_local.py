"""launch/local.py: processes live and die together, and its exit code says how."""

import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import pytest
import tiny_run

from armd_jax.errors import UserError

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


def gpus(processes, devices, *flags):
  """What CUDA_VISIBLE_DEVICES is for every process of a job on GPUs."""
  import called
  import local

  sizes = [f'--processes={processes}', f'--devices-per-process={devices}']
  printed = called.dry_run(local, *sizes, '--platform=gpu', *flags, '--', 'x')
  starts = re.findall(r'^JAX_PLATFORMS=cuda CUDA_VISIBLE_DEVICES=(\S+) x ', printed, re.MULTILINE)
  assert len(starts) == len(printed.splitlines()) - 1  # and the shell's wait
  return starts


def test_every_process_gets_gpus_of_its_own(monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  assert gpus(2, 2) == ['0,1', '2,3']


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ('4,5,6,7', ['4,5', '6,7']),
    (' 7, 1,3 ,5,0', ['7,1', '3,5']),
    ('GPU-ab,GPU-cd,MIG-ef,MIG-GPU-ef/1/0', ['GPU-ab,GPU-cd', 'MIG-ef,MIG-GPU-ef/1/0']),
  ],
)
def test_processes_share_the_gpus_that_the_user_names(monkeypatch, given, expected):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
  assert gpus(2, 2) == expected


@pytest.mark.parametrize(
  ('given', 'count'), [('', 0), ('-1', 0), ('4,5,6', 3), ('4,5,-1,6', 2), ('GPU-ab,,1,2', 1)]
)
def test_fewer_gpus_named_than_asked_for_are_a_sentence(monkeypatch, given, count):
  """As CUDA reads the list, which ends where it names none."""
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
  named = re.escape(f"there are {count} devices in CUDA_VISIBLE_DEVICES='{given}', too few for")
  with pytest.raises(UserError, match=f'^{named} --processes 2 with 2 each; name more of them'):
    gpus(2, 2)
  with pytest.raises(UserError, match=f'^{named} --processes 4 with 1 each; name more of them'):
    gpus(4, 1)


_LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb)
  MIG 3g.40gb     Device  0: (UUID: MIG-cccc)
  MIG 3g.40gb     Device  1: (UUID: MIG-dddd)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-eeee)
"""


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    (None, ['0', '1', '2']),
    ('2,1', ['2', '1']),
    ('5,2,1,7', ['2', '1']),  # two of them are lost
    ('GPU-eeee,GPU-lost,MIG-dddd', ['GPU-eeee', 'MIG-dddd']),
  ],
)
def test_an_elastic_job_takes_what_is_there_of_the_gpus_named(monkeypatch, given, expected):
  import local

  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if given is not None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', given)
  monkeypatch.setattr(local.common, 'call', lambda *_, **__: types.SimpleNamespace(stdout=_LISTED))
  assert gpus(8, 1, '--elastic=1') == expected
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  with pytest.raises(UserError, match=r"there are 0 devices in CUDA_VISIBLE_DEVICES='', too few"):
    gpus(8, 1, '--elastic=1')


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

  left = iter(['0123', '012'])
  monkeypatch.setattr(local, '_devices', lambda job: next(left))
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

  monkeypatch.setattr(local, '_devices', lambda job: '012')
  sizes = ['--processes=4', '--devices-per-process=2']
  with pytest.raises(local.common.UserError, match='there are 3 devices, too few for --elastic 2'):
    local.main([*sizes, '--elastic=2', '--', 'x'])
  with pytest.raises(local.common.UserError, match='elastic is 5; write at most --processes = 4'):
    local.main([*sizes, '--elastic=5', '--', 'x'])

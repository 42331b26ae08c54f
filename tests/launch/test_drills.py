"""Real jobs that are killed, stopped and queued again end with the bits of one that was not.

Marked `drill`. The Slurm drill wants a Slurm of at least two nodes, found through SLURM_CONF.
"""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_run
from finished import WITHOUT, assert_same_run, final, last_step

from armd_jax import training
from armd_jax.parallel import sharding
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures('compiled_alike')]
DRILL_ALSO = ('armd_jax/train.py', 'launch/*')
DRILL_WITHOUT = WITHOUT


def wait_until(condition, seconds=300):
  deadline = time.time() + seconds
  while not condition():
    assert time.time() < deadline
    time.sleep(0.1)


def kill_process_2(job, folder, step, count):
  """After `step`; returns once the launcher has seen its process 2 die for the count-th time."""
  ended = f'process 2 ended with exit code {128 + signal.SIGKILL}'
  wait_until(lambda: last_step(folder / 'run') >= step or job.poll() is not None)
  tiny_run.kill_child(job.pid, '--process_id=2', signal.SIGKILL)
  print('killed at step', last_step(folder / 'run'))
  wait_until(lambda: (folder / 'log').read_text().count(ended) == count)


@pytest.mark.parametrize('kills', [10])
def test_process_2_of_4_killed_again_and_again(tmp_path, kills):
  experiment = tiny_run.write_experiment(tmp_path)
  changes = [
    '--config.train.steps=300', '--config.train.checkpoint_every=10',
    '--config.train.eval_every=150',
  ]  # fmt: skip
  command = lambda name: tiny_run.train(experiment, tmp_path / name, *changes)
  straight = tiny_run.run(tiny_run.local(4, 2, command('straight')))
  assert straight.returncode == 0, straight.stderr
  rng = random.Random(0)
  targets = sorted(rng.sample(range(15, 290), kills))
  with (tmp_path / 'log').open('w') as log:
    job = subprocess.Popen(
      tiny_run.local(4, 2, command('run'), f'--max-restarts={kills}'), stdout=log, stderr=log
    )
    for count, target in enumerate(targets, start=1):
      kill_process_2(job, tmp_path, target, count)
    assert job.wait() == 0, (tmp_path / 'log').read_text()[-3000:]
  assert_same_run(tmp_path / 'run', tmp_path / 'straight')


MOMENTS = ('a step', 'a save', 'an evaluation')


def is_in(moment, workdir):
  """Whether a run, by its files, is in the midst of this just now."""
  if moment == 'a save':
    return any((workdir / 'checkpoints').glob('*.part*'))
  log = workdir / 'metrics.jsonl'
  record = json.loads((log.read_text().split('\n')[:-1] if log.exists() else ['{}'])[-1])
  evaluates = record.get('step', 0) % 10 == 0 and 'held_out' not in record
  return record.get('step', 0) > 12 and evaluates == (moment == 'an evaluation')


@pytest.mark.parametrize('moment', MOMENTS)
def test_sigterm_in_the_midst_of(moment, tmp_path):
  """To one of two processes, three times over: all is saved, with the exit code of that."""
  experiment = tiny_run.write_experiment(tmp_path)
  changes = ['--config.train.steps=120', '--config.train.eval_every=10']
  changes += ['--config.train.checkpoint_every=4', '--config.train.eval_windows=100']
  command = lambda name: tiny_run.train(experiment, tmp_path / name, *changes)
  straight = tiny_run.run(tiny_run.local(2, 2, command('straight')))
  assert straight.returncode == 0, straight.stderr
  workdir = tmp_path / 'run'
  for count in range(3):
    before = last_step(workdir)
    processes = tiny_run.start(2, 2, command('run'))
    wait_until(lambda before=before: last_step(workdir) > before + 5)
    deadline = time.time() + 300
    while not is_in(moment, workdir):
      assert time.time() < deadline
    processes[count % 2].send_signal(signal.SIGTERM)
    out = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], out
    saved = last_step(workdir)
    print('stopped after step', saved)
    assert f'step {saved} is saved' in out[0]
    assert int(final(workdir)[0].step) == saved
    assert not list((workdir / 'checkpoints').glob('*.part*'))
  finish = tiny_run.run(tiny_run.local(2, 2, command('run')))
  assert finish.returncode == 0, finish.stderr
  assert_same_run(workdir, tmp_path / 'straight')


LEGS = {
  'devices': [(1, 8, (2, 2, 2)), (1, 4, (1, 4, 1)), (1, 1, (1, 1, 1)), (1, 8, (1, 8, 1))],
  'processes': [(4, 2, (2, 2, 2)), (2, 2, (2, 2, 1)), (1, 1, (1, 1, 1))],
}


@pytest.mark.parametrize('legs', LEGS)
def test_restored_onto_other_meshes_and_processes(legs, tmp_path):
  """Three steps on each; the losses are those of one device, within 1e-5."""
  experiment = tiny_run.write_experiment(tmp_path)
  command = lambda name, *flags: tiny_run.train(
    experiment, tmp_path / name, '--config.model.vocab_multiple=128', *flags
  )
  steps = 3 * len(LEGS[legs])
  straight = tiny_run.run(command('straight', f'--config.train.steps={steps}'))
  assert straight.returncode == 0, straight.stderr
  for leg, (processes, devices, mesh) in enumerate(LEGS[legs], start=1):
    axes = zip(('data', 'fsdp', 'tensor'), mesh, strict=True)
    flags = [f'--config.mesh.{axis}={size}' for axis, size in axes]
    flags.append(f'--config.train.steps={3 * leg}')
    whole = command('run', *flags)
    done = tiny_run.run(
      whole if processes == 1 else tiny_run.local(processes, devices, whole), devices
    )
    assert done.returncode == 0, done.stderr
    assert leg == 1 or f'going on from step {3 * leg - 3} of {3 * leg}' in done.stdout
  losses, want = (tiny_run.losses(tmp_path / name) for name in ('run', 'straight'))
  assert list(losses) == list(want) == list(range(1, steps + 1))
  print({step: f'{losses[step] / want[step] - 1:.1e}' for step in want})
  np.testing.assert_allclose(list(losses.values()), list(want.values()), rtol=1e-5)


DAMAGES = {
  'cut short': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  'emptied': lambda path: path.write_bytes(b''),
  'deleted': lambda path: path.unlink(),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_every_file_of_the_newest_checkpoint_damaged(damage, tmp_path, capfd):
  """As two processes wrote it; read here file by file, and gone on from by the program once."""
  experiment = tiny_run.write_experiment(tmp_path)
  command = tiny_run.train(experiment, tmp_path / 'run')
  done = tiny_run.run(tiny_run.local(2, 2, command))
  assert done.returncode == 0, done.stderr
  newest = tmp_path / 'run' / 'checkpoints' / '12'
  config = workdir_lib.read_config(tmp_path / 'run')
  abstract = training.abstract_state(
    config, 257, sharding.make_mesh(config.mesh, jax.devices()[:1])
  )
  expected, _ = checkpoint.Checkpoints(tmp_path / 'run').restore(abstract, 6)
  files = sorted(path for path in newest.rglob('*') if path.is_file())
  print(len(files), 'files')
  assert any('ocdbt.process_1' in str(path) for path in files)
  for path in files:
    data = path.read_bytes()
    if not data:
      continue
    DAMAGES[damage](path)
    capfd.readouterr()
    state, next_index = final(tmp_path / 'run')
    assert next_index == 6 * 8
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    (warning,) = capfd.readouterr().err.splitlines()
    assert f'{newest} is damaged' in warning and path.name in warning
    path.write_bytes(data)
  state, _ = final(tmp_path / 'run')
  assert int(state.step) == 12
  DAMAGES[damage](next(path for path in files if 'process_1/d/' in str(path)))
  again = tiny_run.run(tiny_run.local(2, 2, command))
  assert again.returncode == 0 and 'going on from step 6 of 12' in again.stdout
  assert 'Traceback' not in again.stderr
  assert again.stderr.count('is passed over') == again.stderr.count('is replaced') == 1
  finished, _ = final(tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, finished, state)


@pytest.fixture
def small_disk(tmp_path):
  """A folder on a file system of its own, and what sets its size."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = lambda *options: subprocess.run(['mount', *options, folder], capture_output=True)
  if mount('-t', 'tmpfs', '-o', 'size=500k', 'tmpfs').returncode:
    pytest.skip('only root can mount a file system that is small')
  yield folder, lambda size: mount('-o', f'remount,size={size}')
  subprocess.run(['umount', folder], check=True)


def test_a_full_disk_is_a_sentence_and_loses_nothing(small_disk, tmp_path):
  """With space again, the same command goes on to what a run that never ran out ends with."""
  folder, resize = small_disk
  experiment = tiny_run.write_experiment(tmp_path)
  changes = ['--config.train.checkpoint_every=1', '--config.train.keep_last=100']
  straight = tiny_run.run(tiny_run.train(experiment, tmp_path / 'straight', *changes))
  assert straight.returncode == 0, straight.stderr
  command = tiny_run.train(experiment, folder / 'run', *changes)
  full = tiny_run.run(command)
  assert full.returncode == 1, full.stderr
  *before, sentence = full.stderr.strip().splitlines()
  print(sentence)
  assert sentence.startswith('error: cannot ') and 'No space left on device' in sentence
  assert 'Traceback' not in '\n'.join(before)
  saved = checkpoint.Checkpoints(folder / 'run').found()[-1]
  assert int(final(folder / 'run')[0].step) == saved > 0
  resize('100m')
  again = tiny_run.run(command)
  assert again.returncode == 0, again.stderr
  assert f'going on from step {saved} of 12' in again.stdout
  assert_same_run(folder / 'run', tmp_path / 'straight')


_HANGS_ONCE = """
import pathlib, runpy, sys, time
from armd_jax import training

make = training.train_step
flag = pathlib.Path(sys.argv.pop(1))

def hanging(*args):
  step_fn, count = make(*args), 0

  def step(state, text):
    nonlocal count
    count += 1
    if count == 9 and not flag.exists():
      flag.touch()
      time.sleep(10_000)
    return step_fn(state, text)

  return step

training.train_step = hanging
runpy.run_module('armd_jax.train', run_name='__main__', alter_sys=True)
"""


def test_a_step_that_hangs_is_ended_and_the_job_started_again(tmp_path):
  experiment = tiny_run.write_experiment(tmp_path)
  changes = ['--config.train.hang_seconds=60']
  straight = tiny_run.run(tiny_run.train(experiment, tmp_path / 'straight', *changes))
  assert straight.returncode == 0, straight.stderr
  flags = tiny_run.train(experiment, tmp_path / 'run', *changes)[3:]
  hangs = [sys.executable, '-c', _HANGS_ONCE, str(tmp_path / 'hung'), *flags]
  done = tiny_run.run(tiny_run.local(1, 1, hangs, '--max-restarts=1'))
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'hung').exists()
  assert 'hang_seconds = 60' in done.stderr and 'in step' in done.stderr
  assert 'process 0 ended with exit code 70' in done.stderr
  assert 'going on from step 6 of 12' in done.stdout
  assert_same_run(tmp_path / 'run', tmp_path / 'straight')


def slurm(*command):
  return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def two_nodes():
  try:
    nodes = slurm('sinfo', '--noheader', '--Node', '--states=idle', '--format=%N').split()
  except (FileNotFoundError, subprocess.CalledProcessError):
    nodes = []
  if len(set(nodes)) < 2:
    pytest.skip('no Slurm with two idle nodes answers sinfo; start one and set SLURM_CONF')
  return nodes


def test_slurm_job_is_requeued_and_resumes(two_nodes, tmp_path, monkeypatch):
  """Once by `scontrol requeue`, once by a SIGTERM to its processes, and then to the end."""
  monkeypatch.chdir(tmp_path)
  try:
    socket.gethostbyname(two_nodes[0])
  except socket.gaierror:  # nodes in name only, all on this machine
    monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', f'127.0.0.1:{tiny_run.free_port()}')
  experiment = tiny_run.write_experiment(tmp_path)
  changes = ['--config.train.steps=250', '--config.train.checkpoint_every=100000']
  changes += ['--config.train.eval_every=250']
  command = lambda name: tiny_run.train(experiment, tmp_path / name, *changes)
  straight = tiny_run.run(tiny_run.local(2, 2, command('straight')))
  assert straight.returncode == 0, straight.stderr
  launcher = [sys.executable, str(tiny_run.ROOT / 'launch' / 'slurm.py'), '--platform=cpu']
  sizes = ['--processes=2', '--nodes=2', '--devices-per-process=2', '--name=drill']
  job = slurm(*launcher, *sizes, '--', *command('run')).split()[-1]
  # srun cuts a progress bar's characters in half where it labels lines.
  log = lambda: (tmp_path / f'drill-{job}.log').read_text(errors='replace')
  field = lambda name: slurm('squeue', '--noheader', f'--jobs={job}', f'--Format={name}').strip()

  def restart_after(stop, step):
    wait_until(lambda: last_step(tmp_path / 'run') >= step)
    slurm(*stop, job)
    wait_until(lambda: field('State') == 'PENDING')
    # Slurm itself waits two minutes: in the same second it would refuse the old start's credential.
    time.sleep(3)
    slurm('scontrol', 'update', f'JobId={job}', 'StartTime=now')
    saved = re.findall(r'step (\d+) is saved', log())[-1]
    wait_until(lambda: f'going on from step {saved} of 250' in log())
    assert int(saved) >= step

  try:
    restart_after(['scontrol', 'requeue'], 40)
    restart_after(['scancel', '--signal=TERM'], 120)
    wait_until(lambda: 'JobState=COMPLETED' in slurm('scontrol', 'show', 'job', job))
  finally:
    subprocess.run(['scancel', job])
    print(log().replace('\r', '\n'))
  details = slurm('scontrol', 'show', 'job', job)
  assert 'Restarts=2' in details and 'ExitCode=0:0' in details
  rows = [line.split() for line in log().splitlines() if ' 2 x cpu ' in line]
  assert {row[2] for row in rows} == set(two_nodes[:2])
  assert_same_run(tmp_path / 'run', tmp_path / 'straight')

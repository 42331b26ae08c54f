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

from armd_jax import checkpoint, sharding, training

pytestmark = pytest.mark.drill
DRILL_SOURCES = (
  'launch/*.py',
  'armd_jax/checkpoint.py',
  'armd_jax/data/pipeline.py',
  'armd_jax/data/workers.py',
  'armd_jax/distributed.py',
  'armd_jax/errors.py',
  'armd_jax/sharding.py',
  'armd_jax/train.py',
  'armd_jax/training.py',
)


@pytest.fixture(autouse=True)
def compiled_alike(monkeypatch):
  """Every run of a drill, by whichever launcher, with the same compiler settings."""
  for name, value in tiny_run.VARIABLES.items():
    monkeypatch.setenv(name, value)


def final(workdir):
  config = checkpoint.read_config(workdir)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  return checkpoint.Checkpoints(workdir).restore(training.abstract_state(config, 257, mesh))


def assert_same_run(workdir, expected):
  """The same final state, and at every step that was done, or done again, the same loss."""
  (state, index), (want, want_index) = final(workdir), final(expected)
  assert index == want_index
  jax.tree.map(np.testing.assert_array_equal, state, want)
  want_losses = tiny_run.losses(expected)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  steps = {line['step'] for line in lines if 'loss' in line}
  assert steps == want_losses.keys()
  for line in lines:
    assert line.get('loss', want_losses[line['step']]) == want_losses[line['step']], line


def last_step(workdir):
  """Newest step in the log, whose last line may be half written."""
  log = workdir / 'metrics.jsonl'
  lines = log.read_text().split('\n')[:-1] if log.exists() else []
  return max((json.loads(line)['step'] for line in lines), default=0)


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

"""Runs in a bucket that are killed, damaged, stopped, or left alone by their store: an emulator.

Marked `drill`; a case of each is in tests/training/test_buckets.py.
"""

import os
import random
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny_run
from finished import WITHOUT, assert_same_run, final, last_step
from signalled import CHANGES, HANG_SECONDS, LAST, begun, is_told, stands_still
from training.test_buckets import DAMAGES

from armd_jax.training import checkpoint

pytestmark = [pytest.mark.drill, pytest.mark.usefixtures('compiled_alike')]
DRILL_ALSO = ('armd_jax/train.py', 'launch/*')
DRILL_WITHOUT = WITHOUT


def straight(folder, processes, *changes):
  """A run on a disk that nothing happens to."""
  command = tiny_run.train(folder / 'experiment.py', folder / 'straight', *CHANGES, *changes)
  done = tiny_run.run(tiny_run.local(processes, 2, command))
  assert done.returncode == 0, done.stderr
  return folder / 'straight'


def wait_until(condition, process, seconds=300):
  deadline = time.time() + seconds
  while not condition():
    assert time.time() < deadline and process.poll() is None
    time.sleep(0.2)


def start(command):
  variables = os.environ | {'JAX_NUM_CPU_DEVICES': '2'}
  return subprocess.Popen(
    command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )


@pytest.mark.parametrize('kills', [4])
def test_killed_again_and_again(kills, bucket, tmp_path):
  """With -9, whatever it is writing."""
  where, changes = bucket.folder('drill-killed'), ['--config.train.steps=120']
  experiment = tiny_run.write_experiment(tmp_path)
  command = tiny_run.train(experiment, where, *CHANGES, *changes)
  rng = random.Random(0)
  for target in sorted(rng.sample(range(7, 110), kills)):
    process = start(command)
    wait_until(lambda target=target: last_step(where) >= target, process)
    time.sleep(rng.random())
    process.kill()
    process.communicate()
    print('killed at step', last_step(where))
  done = tiny_run.run(command, 2)
  assert done.returncode == 0, done.stderr
  assert_same_run(where, straight(tmp_path, 1, *changes))


@pytest.mark.parametrize('damage', DAMAGES)
def test_every_object_of_the_newest_checkpoint_damaged(damage, bucket, tmp_path, capfd):
  """As two processes wrote it; of each the one before is restored, with a warning."""
  where = bucket.folder(f'drill-{damage}'.replace(' ', '-'))
  experiment = tiny_run.write_experiment(tmp_path)
  done = tiny_run.run(tiny_run.local(2, 2, tiny_run.train(experiment, where)))
  assert done.returncode == 0, done.stderr
  expected, _ = final(where, 6)
  newest = f'{where}/checkpoints/12'
  names = [name for name in bucket.names(newest) if bucket.read(f'{newest}/{name}')]
  print(len(names), 'objects')
  for name in names:
    if name == checkpoint._SEAL and damage == 'gone':  # without it, it is none
      continue
    data = bucket.read(f'{newest}/{name}')
    DAMAGES[damage](bucket, f'{newest}/{name}')
    capfd.readouterr()
    state, next_index = final(where)
    assert next_index == 6 * 8, (name, len(data))
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    (warning,) = capfd.readouterr().err.splitlines()
    assert f'{newest} is damaged' in warning and name in warning
    bucket.write(f'{newest}/{name}', data)
  assert int(final(where)[0].step) == 12


def test_one_of_2_stands_still_in_a_save(bucket, tmp_path):
  where = bucket.folder('drill-stopped')
  command = begun(tmp_path, where, 2, f'--config.train.hang_seconds={HANG_SECONDS}')
  stands_still(command, 'a save', 1, 2, tmp_path / 'flag')
  again = tiny_run.run(tiny_run.local(2, 2, command))
  assert again.returncode == 0, again.stderr
  assert_same_run(where, straight(tmp_path, 2))


def test_one_of_2_is_told_to_stop_in_the_last_save(bucket, tmp_path):
  where = bucket.folder('drill-told')
  command = begun(tmp_path, where, 2)
  assert is_told(command, 'the last save', 1, tmp_path / 'flag', where) == LAST
  again = tiny_run.run(tiny_run.local(2, 2, command))
  assert again.returncode == 0, again.stderr
  assert_same_run(where, straight(tmp_path, 2))


MOST_SECONDS = {'busy': 180, 'silent': 420}  # from then on to the end of the program


@pytest.mark.parametrize('store', MOST_SECONDS)
def test_a_store_that_stays(store, bucket, tmp_path):
  """Answers nothing but 503, or nothing at all: a sentence ends the run, and it goes on later."""
  where, changes = bucket.folder(f'drill-{store}'), ['--config.train.steps=600']
  experiment = tiny_run.write_experiment(tmp_path)
  command = tiny_run.train(experiment, where, *CHANGES, *changes)
  process = start(command)
  wait_until(lambda: len(checkpoint.Checkpoints(where).found()) > 0, process)
  stop = bucket.be_unavailable if store == 'busy' else bucket.be_silent
  stop(10**9)
  since = time.time()
  try:
    _, errors = process.communicate(timeout=600)
  finally:
    stop(0)
  seconds = time.time() - since
  print(f'{seconds:.0f} s', errors)
  assert process.returncode == 1 and seconds < MOST_SECONDS[store]
  (line,) = (line for line in errors.splitlines() if line.startswith('error: '))
  assert 'gs://' in line and 'Traceback' not in errors
  again = tiny_run.run(command, 2)
  assert again.returncode == 0 and 'going on from step ' in again.stdout, again.stderr
  assert_same_run(where, straight(tmp_path, 1, *changes))

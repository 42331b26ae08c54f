"""What runs beside the steps: when, and what a hang looks like."""

import json
import subprocess
import sys
import time

import pytest
import tiny_run

from armd_jax import config as config_lib
from armd_jax.training import hooks, loop


@pytest.mark.parametrize(('every', 'steps'), [(0, []), (2, [2, 4, 5]), (5, [5]), (7, [5])])
def test_hooks_are_due_every_so_many_steps_and_at_the_end(every, steps):
  hook = hooks.Hook('nothing', every, dict)
  assert [step for step in range(1, 6) if hook.is_due(step, 5)] == steps


def test_samples_and_profiles_are_part_of_training(tmp_path, capsys):
  raw = tiny_run.config(tmp_path)
  raw.train.update(steps=5, eval_every=5, sample_every=2, profile_steps=(2, 3))
  raw.order.update(ar_steps=0, perm_steps=0, strided_start=3, strided_streams=(2, 4))
  config = config_lib.parse(raw)
  loop.train(config, tmp_path / 'run')
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  texts = {r['step']: r['sample'] for r in map(json.loads, lines) if 'sample' in r}
  assert list(texts) == [2, 4, 5] and all(texts.values())
  assert f'step 4/5\nsample: {texts[4]}' in capsys.readouterr().out
  (trace,) = (tmp_path / 'run' / 'profile').rglob('*.xplane.pb')
  assert trace.stat().st_size > 1000


_HANGS = """
import threading, time
from armd_jax.training.hooks import Watchdog

def stuck_elsewhere():
  time.sleep(100)

def stuck_here():
  time.sleep(100)

threading.Thread(target=stuck_elsewhere, daemon=True).start()
Watchdog(1, 'what is over').close()
watchdog = Watchdog(2, 'the text')
for _ in range(12):  # longer than they wait
  time.sleep(0.25)
  watchdog.progress('a step')
print('still there', flush=True)
stuck_here()
"""


def test_a_hang_ends_the_process_with_every_stack_and_nothing_else_does():
  """Neither slow progress nor a watchdog that is closed."""
  start = time.time()
  done = subprocess.run([sys.executable, '-c', _HANGS], capture_output=True, text=True)
  assert done.returncode == 70 and time.time() - start < 90
  assert done.stdout == 'still there\n'
  assert 'stuck_here' in done.stderr and 'stuck_elsewhere' in done.stderr
  (sentence,) = (line for line in done.stderr.splitlines() if line.startswith('error: '))
  assert 'process 0 waited for a step longer than config.train.hang_seconds = 2' in sentence
  assert 'start the job again' in sentence


@pytest.mark.parametrize('reason', ['HttpError: busy, 503', ''])
def test_a_store_that_does_not_answer_is_told_where_nothing_progresses(reason):
  """And one that does is no reason to end."""
  script = f"""
import time
from armd_jax.files import buckets
from armd_jax.training import hooks
hooks._SECONDS_BEFORE_ASKING = 1.0
asked = []
buckets.why_not = lambda store: asked.append(store) or {reason!r}
watchdog = hooks.Watchdog(0, 'the text', 'gs://b/run')
for _ in range(8):
  time.sleep(0.25)
  watchdog.progress('a save')
print(asked, flush=True)
time.sleep(3)
print(set(asked), flush=True)
"""
  done = tiny_run.run([sys.executable, '-c', script])
  if reason:
    assert done.returncode == 1 and done.stdout == '[]\n'
    told = (
      'waited for a save, and the bucket of gs://b/run does not answer (HttpError: busy, 503); s'
    )
    assert told in done.stderr and len(done.stderr.splitlines()) == 1
  else:
    assert done.returncode == 0 and done.stdout == "[]\n{'gs://b/run'}\n" and not done.stderr


@pytest.mark.parametrize(
  ('module', 'name', 'waits_for'),
  [
    ('armd_jax.data.corpus', 'load', 'the text to be read'),
    ('armd_jax.training', 'new_state', 'the state to start from'),
    ('armd_jax.training.loop', 'training_batches', 'the first batch'),
  ],
)
def test_training_is_watched_from_its_start(tmp_path, module, name, waits_for):
  """Whatever part of it never returns; the step, which comes later, is in a drill."""
  script = f"""
import sys, time
sys.path.insert(0, {str(tiny_run.ROOT / 'tests')!r})
import gc, importlib, pathlib, tiny_run
from armd_jax import config
from armd_jax.training import hooks, loop
raw = tiny_run.config(pathlib.Path({str(tmp_path)!r}))
raw.train.hang_seconds = 1000

def stuck(*args, **more):
  (watchdog,) = (found for found in gc.get_objects() if type(found) is hooks.Watchdog)
  watchdog._seconds = 1  # not before, when this machine may be slow
  time.sleep(1000)

setattr(importlib.import_module({module!r}), {name!r}, stuck)
loop.train(config.parse(raw), {str(tmp_path / 'run')!r})
"""
  done = tiny_run.run([sys.executable, '-c', script])
  assert done.returncode == 70
  (sentence,) = (line for line in done.stderr.splitlines() if line.startswith('error: '))
  assert f'process 0 waited for {waits_for}' in sentence and 'hang_seconds = ' in sentence

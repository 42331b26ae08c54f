"""Runs that go on from another one, of several corpora, and what a run tells of its time."""

import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.errors import UserError
from armd_jax.hardware import starts
from armd_jax.parallel import sharding
from armd_jax.show import goodput, history
from armd_jax.training import checkpoint, loop


def config(folder, **changes):
  """Of a tiny run; fields by `section__field`."""
  raw = tiny_run.config(folder).to_dict()
  for name, value in changes.items():
    section, _, field = name.rpartition('__')
    (raw[section] if section else raw)[field] = value
  return config_lib.parse(raw)


def logged(workdir, name):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return {line['step']: line[name] for line in lines if name in line}


@pytest.fixture(scope='module')
def stable(tmp_path_factory):
  """A run of 12 steps at a constant rate, with a checkpoint at step 6."""
  folder = tmp_path_factory.mktemp('stable')
  loop.train(config(folder), folder / 'run')
  return folder / 'run'


def test_a_run_that_diverges_ends_as_any_other(tmp_path, capsys):
  """Its held-out losses are null, a warning says so, and it keeps checkpoints."""
  often = dict(train__steps=4, train__eval_every=2, train__sample_every=2)
  changes = often | dict(train__checkpoint_every=2, optimizer__learning_rate=1e18)
  loop.train(config(tmp_path, **changes), tmp_path / 'run')
  assert logged(tmp_path / 'run', 'held_out') == {2: None, 4: None}
  assert checkpoint.Checkpoints(tmp_path / 'run').found() == [2, 4]
  printed = capsys.readouterr()
  assert printed.err.count('warning: held_out of step 2 is not finite, and null in metrics') == 1
  assert 'step 4/4  held-out not finite' in printed.out


def test_a_decay_begins_at_any_checkpoint(stable, tmp_path, capsys):
  """From step 6 on, with a warm-up of its own, down to nothing at step 14."""
  anew = dict(
    init_from=str(stable), init_step=6, optimizer__schedule='linear', optimizer__warmup_steps=2,
    optimizer__schedule_restarts=True, optimizer__schedule_steps=8, train__steps=14,
  )  # fmt: skip
  loop.train(config(tmp_path, **anew), tmp_path / 'run')
  rates = logged(tmp_path / 'run', 'learning_rate')
  expected = {7: 0.5, 8: 1, 9: 1, 10: 5 / 6, 11: 4 / 6, 12: 3 / 6, 13: 2 / 6, 14: 1 / 6}
  assert rates == pytest.approx({step: 1e-2 * share for step, share in expected.items()})
  assert logged(tmp_path / 'run', 'examples')[7] == [48, 55]  # the data go on
  printed = capsys.readouterr().out
  assert f'start     step 6 of {stable}: its optimizer goes on; the learning rate begins' in printed
  assert 'anew: a warm-up of 2 steps, and a linear decay to step 8' in printed


def test_a_schedule_of_both_runs_is_that_of_one(stable, tmp_path, capsys):
  """Warm-up, stable and decay in two runs, bit for bit as in a single one."""
  schedule = dict(
    optimizer__schedule='warmup_stable_decay', optimizer__decay_steps=6, train__steps=18
  )
  whole = loop.train(config(tmp_path, **schedule), tmp_path / 'whole')
  found = loop.train(config(tmp_path, init_from=str(stable), **schedule), tmp_path / 'decay')
  jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
  rates = logged(tmp_path / 'decay', 'learning_rate')
  of_whole = logged(tmp_path / 'whole', 'learning_rate')
  assert rates == {step: rate for step, rate in of_whole.items() if step > 12}
  assert rates[13] == pytest.approx(1e-2) and rates[18] == pytest.approx(1e-2 / 6)
  told = 'at step 12 of a warm-up of 2 steps, and a decay from step 12 to 18'
  assert f'its optimizer goes on, and the learning rate {told}' in capsys.readouterr().out


def test_another_optimizer_begins_where_a_run_goes_on(stable, tmp_path, capsys):
  muon = config(tmp_path, init_from=str(stable), optimizer__kind='muon', train__steps=14)
  state = loop.train(muon, tmp_path / 'run')
  mesh = sharding.make_mesh(muon.mesh, jax.devices()[:1])
  abstract = training.abstract_state(muon, 257, mesh)
  again, _ = checkpoint.Checkpoints(tmp_path / 'run').restore(abstract)
  jax.tree.map(np.testing.assert_array_equal, again, state)
  told = 'muon begins, since it was trained with adamw, and the learning rate at step 12'
  assert told in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_a_sentence(stable, tmp_path):
  with pytest.raises(UserError, match=r'init_step is 7, but .* of the steps 6, 12; write one of'):
    loop.train(config(tmp_path, init_from=str(stable), init_step=7), tmp_path / 'run')
  with pytest.raises(UserError, match=r"^config.init_from is 's3://b/run'"):
    loop.train(config(tmp_path, init_from='s3://b/run'), tmp_path / 'run')
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_a_mixture_has_a_loss_of_each_corpus_and_goes_on(tmp_path, capsys):
  words = config(tmp_path).data.source
  digits = tmp_path / 'digits.txt'
  digits.write_text('\n\n'.join(' '.join(str(i * j) for j in range(40)) for i in range(40)))
  mixed = dict(
    data__mixture=(words, str(digits)), data__weights=(3.0, 1.0), train__eval_every=6
  )  # fmt: skip
  loop.train(config(tmp_path, **mixed), tmp_path / 'run')
  printed = capsys.readouterr().out
  assert 'mixture   75.0% text_txt, ' in printed and 'mixture   25.0% digits_txt, ' in printed
  of = lambda name: logged(tmp_path / 'run', name)
  assert of('held_out').keys() == {6, 12}
  for step, mean in of('held_out').items():
    each = of('held_out_text_txt')[step], of('held_out_digits_txt')[step]
    assert mean == pytest.approx(0.75 * each[0] + 0.25 * each[1]) and each[0] != each[1]
  moved = tmp_path / 'moved.txt'
  digits.rename(moved)
  mixed['data__mixture'] = (words, str(moved))
  loop.train(config(tmp_path, **mixed, train__steps=13), tmp_path / 'run')
  assert of('examples')[13] == [96, 103]
  mixed['data__weights'] = (1.0, 1.0)
  with pytest.raises(UserError, match=r'started with config.data.weights = '):
    loop.train(config(tmp_path, **mixed, train__steps=14), tmp_path / 'run')


def test_a_run_tells_where_its_time_went(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(starts, '_of_program', None)
  often = dict(train__eval_every=2, train__checkpoint_every=2)
  loop.train(config(tmp_path, train__steps=4, **often), tmp_path / 'run')
  starts.program_begins()
  loop.train(config(tmp_path, train__steps=6, **often), tmp_path / 'run')
  lines = list(history.lines(tmp_path / 'run' / 'metrics.jsonl'))
  first, second = (line for line in lines if 'start_seconds' in line)
  assert (first['step'], second['step']) == (1, 5)
  names = {f'start_{name}_seconds' for name in ('data', 'restore', 'compile')}
  assert names < first.keys() and 'start_import_seconds' not in first
  assert second['start_import_seconds'] > 0.1
  parts = [value for name, value in second.items() if name.startswith('start_')]
  assert sum(parts) == pytest.approx(2 * second['start_seconds'])
  found = goodput.of(lines)
  assert found.starts == 2 and 0 < found.trained < found.total
  assert found.parts['evaluation'] > 0 and found.parts['saves'] > 0 and found.parts['compile'] > 0
  printed = capsys.readouterr().out
  assert printed.count('goodput   ') == 2 and 'in 2 starts trained; start ' in printed
  assert 'step 5/6  first step ' in printed and ' s after the start: import ' in printed


def test_a_run_that_logged_no_step_ends_without_a_table(tmp_path, monkeypatch, capsys):
  """Stopped at a step before the first that is logged, and then told to end there."""
  wanted = config(tmp_path, train__log_every=100)
  save = checkpoint.Checkpoints.save

  def save_and_signal(self, step, *rest):
    save(self, step, *rest)
    if step == 6:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    patch.setattr(checkpoint.Checkpoints, 'save', save_and_signal)
    loop.train(wanted, tmp_path / 'run')
  steps = max(checkpoint.Checkpoints(tmp_path / 'run').found())
  assert steps < 12 and not logged(tmp_path / 'run', 'loss')
  assert history.overview(history.read(tmp_path / 'run' / 'metrics.jsonl')) == []
  capsys.readouterr()
  ended = config(tmp_path, train__log_every=100, train__steps=steps)
  assert int(loop.train(ended, tmp_path / 'run').step) == steps
  last = capsys.readouterr().out.splitlines()[-1]
  told = 'no table and no picture, since no loss was logged so far: config.train.log_every is 100'
  assert last == told
  assert not (tmp_path / 'run' / 'training.png').exists()
  assert int(loop.train(wanted, tmp_path / 'run').step) == 12
  assert (tmp_path / 'run' / 'training.png').exists()


# ----- told to stop

# In the midst of something that Python cannot interrupt, as a compiler is not.
_BUSY = """
import hashlib, importlib, sys
from armd_jax import cli, train

def busy(*_, **__):
  print('up', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)  # minutes

setattr(importlib.import_module('armd_jax.training'), sys.argv.pop(1), busy)
cli.run(train.main, train.Options)
"""


@pytest.mark.parametrize(
  ('busy', 'in_background'), [('new_state', True), ('loss_and_gradients', False)]
)
def test_sigterm_ends_a_run_at_once_before_its_first_step(tmp_path, busy, in_background):
  """While it makes its state, and while its step is compiled."""
  experiment = tiny_run.write_experiment(tmp_path)
  command = tiny_run.train(experiment, tmp_path / 'run')[3:]
  # As a shell does to what runs in the background.
  ignoring = ['sh', '-c', 'trap "" INT; exec "$@"', 'sh'] if in_background else []
  process = subprocess.Popen(
    [*ignoring, sys.executable, '-c', _BUSY, busy, *command],
    env=os.environ | tiny_run.VARIABLES,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert 'up\n' in iter(process.stdout.readline, '')
  process.terminate()
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 75
  assert errors.splitlines()[-1].startswith(
    'stopped by SIGTERM at once, as there is nothing to sav'
  )


def test_sigterm_in_the_last_save_is_heard(tmp_path, monkeypatch, capsys):
  """All is saved, with the exit code of that; the same command draws the picture."""
  wanted = config(tmp_path)
  save = checkpoint.Checkpoints.save

  def save_and_signal(self, step, *rest):
    save(self, step, *rest)
    if step == 12:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
    patch.setattr(checkpoint.Checkpoints, 'save', save_and_signal)
    loop.train(wanted, tmp_path / 'run')
  assert stopped.value.code == 75
  told = r'stopped by SIGTERM; step 12 is saved, and .* goes on from there \(\d+.\d s after the sig'
  assert re.search(told, capsys.readouterr().out)
  assert not (tmp_path / 'run' / 'training.png').exists()
  assert int(loop.train(wanted, tmp_path / 'run').step) == 12
  assert (tmp_path / 'run' / 'training.png').exists()

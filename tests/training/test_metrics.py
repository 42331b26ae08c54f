"""What is logged: averages, kinds of orders, time, and every place it goes to."""

import contextlib
import dataclasses
import json
import re
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny
from tensorboardX.proto import event_pb2
from tiny import VOCAB

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.errors import UserError
from armd_jax.hardware import device
from armd_jax.hardware.chips import CHIPS
from armd_jax.models.flops import training_flops
from armd_jax.parallel import sharding
from armd_jax.show import history
from armd_jax.training import metrics
from armd_jax.training import workdir as workdir_lib

BATCH, SLOTS = 8, 16  # of tiny.train_config


def step_metrics(loss, kinds=((0, 1.0, 0, 0, 0), (0, 8, 0, 0, 0)), **changes):
  values = {'gradient_norm': 2.0, 'learning_rate': 1e-3, 'shuffled': 4.0, 'skipped': 0.0}
  values |= {'finite': np.float32(np.isfinite(loss))} | changes
  return {'loss': np.float32(loss), 'kinds_2xK': np.array(kinds, np.float32)} | values


class Clock:
  """Time that passes only when told."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    fake = types.SimpleNamespace(perf_counter=lambda: self.now, time=lambda: self.now)
    monkeypatch.setattr(metrics, 'time', fake)


def log(workdir, first_step=0, ideal_seconds=None, **train):
  fields = {'steps': 8, 'log_every': 2, 'max_not_finite': 3} | train
  config = tiny.train_config(**{f'train__{name}': value for name, value in fields.items()})
  made = metrics.Log(workdir, config, first_step, ideal_seconds or {})
  return contextlib.closing(made)


def records(workdir):
  """What is logged of steps; of a start there is a record of its own."""

  def refuse(name):
    raise AssertionError(f'{name} is no JSON')

  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  found = [json.loads(line, parse_constant=refuse) for line in lines]
  return [record for record in found if 'start_seconds' not in record]


def feed(log, steps, losses):
  for step, loss in zip(steps, losses, strict=True):
    log.step(step, step_metrics(loss), 0.0, (0, 0))


def test_a_record_is_the_average_since_the_last(tmp_path, monkeypatch):
  """The first step, which compiles, and pauses take none of the time."""
  clock = Clock(monkeypatch)
  with log(tmp_path, ideal_seconds={'mfu': 0.1, 'mfu_6nd': 0.05}) as made:
    kinds = [[(0, 1, 4, 0, 0), (0, 1, 2, 0, 0)], [(3, 1, 0, 0, 0), (1, 1, 0, 0, 0)]]
    for step in range(1, 5):
      changes = {'gradient_norm': float(step), 'shuffled': float(step)}
      examples = (BATCH * step - BATCH, BATCH * step - 1)
      values = step_metrics(step, kinds[step % 2], **changes)
      made.step(step, values, 0.01 * step, examples)
      clock.now += 50 if step == 1 else 0.5
    with made.paused(4), made.beside('evaluation'):
      clock.now += 1000
    made.step(5, step_metrics(5), 0.0, (0, 0))
    clock.now += 0.25
    made.step(6, step_metrics(6), 0.0, (0, 0))
    clock.now += 0.75
    with made.paused(6):
      pass
  first, second, third = [record for record in records(tmp_path) if 'loss' in record]
  assert first.pop('time') > 0 and first == {
    'step': 2,
    'loss': 1.5,
    'gradient_norm': 1.5,
    'loss_left_to_right': 3.0,
    'share_left_to_right': 0.2,
    'loss_shuffled': 1.0,
    'share_shuffled': 0.4,
    'loss_uniform': 2.0,
    'share_uniform': 0.4,
    'learning_rate': 1e-3,
    'shuffled': 2.0,
    'skipped': 0.0,
    'input_seconds': pytest.approx(0.015),
    'examples': [0, 2 * BATCH - 1],
    'step_seconds': 0.5,
    'timed_steps': 1,
    'tokens_per_second': BATCH * SLOTS / 0.5,
    'mfu': 0.2,
    'mfu_6nd': 0.1,
  }
  assert second['loss'] == 3.5 and second['examples'] == [2 * BATCH, 4 * BATCH - 1]
  assert second['step_seconds'] == 0.5
  assert third['step_seconds'] == pytest.approx((0.25 + 0.75) / 2)


def test_steps_that_are_not_finite_are_left_out_of_averages(tmp_path):
  with log(tmp_path) as made:
    feed(made, range(1, 6), [np.nan, 3.0, np.inf, np.nan, 1.0])
  first, second = records(tmp_path)
  assert first['loss'] == 3.0 and first['loss_shuffled'] == 1 / 8
  assert second['loss'] is None and second['gradient_norm'] is None
  assert 'loss_shuffled' not in second


@pytest.mark.parametrize('bad', [{'loss': np.nan}, {'loss': 1.0, 'finite': 0.0}])
def test_too_many_in_a_row_end_the_run(tmp_path, bad):
  with log(tmp_path) as made:
    feed(made, range(1, 5), [np.nan, np.nan, 1.0, np.nan])  # never three in a row
    for step in (5, 6):
      made.step(step, step_metrics(**bad), 0.0, (0, 0))
    message = r'in 3 steps in a row, up to step 6; .* lower config.optimizer.learning_rate'
    with pytest.raises(UserError, match=message):
      made.step(7, step_metrics(1.0), 0.0, (0, 0))


@pytest.mark.parametrize('bad', [np.nan, -np.inf, np.float64(np.inf)])
def test_a_measured_number_that_is_not_finite_is_null_and_one_warning(tmp_path, capsys, bad):
  """Such as held-out losses of a run that diverges: it goes on, and all that reads the log can."""
  measured = {'held_out': bad, 'held_out_s2': bad, 'sample': 'a text'}
  with log(tmp_path) as made:
    feed(made, range(1, 3), [1.0, 2.0])
    made.record(1, {'held_out': 1.25})
    made.record(2, measured)
    made.step(3, step_metrics(1.0), 0.0, (0, 0))
  printed = capsys.readouterr()
  assert printed.err.count('\n') == printed.err.count('warning: ') == 1
  assert 'warning: held_out, held_out_s2 of step 2 are not finite, and null in' in printed.err
  assert 'step 2/8  held-out not finite  S=2 not finite\nsample: a text' in printed.out
  assert {'step': 2, 'held_out': None, 'held_out_s2': None, 'sample': 'a text'} in records(tmp_path)
  assert np.isnan(measured['held_out']) or np.isinf(measured['held_out'])  # as it was given
  (row,) = history.overview(history.read(tmp_path / 'metrics.jsonl'))
  assert (row['loss'], row['held out']) == (1.5, 1.25)


def test_a_line_cut_off_is_dropped_by_the_next_start(tmp_path):
  with log(tmp_path) as made:
    feed(made, range(1, 6), [1.0] * 5)
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_bytes()
  path.write_bytes(whole[:-7])
  with log(tmp_path, first_step=2) as made:
    feed(made, range(3, 6), [1.0] * 3)
  assert [record['step'] for record in records(tmp_path)] == [2, 4]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
  (tmp_path / 'tensorboard').write_text('')
  with pytest.raises(UserError, match=r'cannot write to .*File exists.*; free space or make it'):
    log(tmp_path)


def events(folder):
  """Of all TensorBoard files, parsed from their framing: length, its CRC, data, its CRC."""
  found = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
      data = data[16 + length :]
  return found


def test_tensorboard_shows_numbers_and_texts_and_each_step_once(tmp_path):
  with log(tmp_path, first_step=4) as made:
    feed(made, range(5, 8), [1.0, 2.0, 3.0])
    made.record(6, {'held_out': 1.25, 'sample': 'a text'})
  _, start, train, held_out, sample = (
    next(e for e in events(tmp_path / 'tensorboard') if matches(e))
    for matches in (
      lambda e: e.file_version == 'brain.Event:2',
      lambda e: e.session_log.status == e.session_log.START,
      lambda e: [v.tag for v in e.summary.value] == ['loss'],
      lambda e: [v.tag for v in e.summary.value] == ['held_out'],
      lambda e: [v.tag for v in e.summary.value] == ['sample/text_summary'],
    )
  )
  assert start.step == 5  # what was logged of later steps before is not shown
  assert (train.step, train.summary.value[0].simple_value) == (6, 1.5)
  assert (held_out.step, held_out.summary.value[0].simple_value) == (6, 1.25)
  assert sample.summary.value[0].tensor.string_val == [b'a text']


def test_training_imports_no_tensorflow():
  script = 'import sys, armd_jax.train; print("tensorflow" in sys.modules)'
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert done.stdout == 'False\n', done.stderr


@pytest.fixture
def wandb(monkeypatch):
  """What a wandb that is not there would be asked: options of its starts, and records."""
  calls = []
  run = types.SimpleNamespace(
    log=lambda record, step: calls.append((step, record)), finish=lambda: calls.append('finish')
  )

  def init(**options):
    calls.append(options)
    return run

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  return calls


def test_wandb_is_asked_for_by_name_and_gets_every_record(tmp_path, wandb):
  with log(tmp_path, wandb='armd') as made:
    feed(made, range(1, 4), [1.0, 2.0, 3.0])
  options, (first_step, start), (step, record), last = wandb
  assert first_step == 1 and start['start_seconds'] >= start['start_compile_seconds'] > 0
  assert options['project'] == 'armd' and options['config']['train']['steps'] == 8
  assert options['resume'] == 'allow' and options['dir'] == str(tmp_path)
  assert options['name'] == tmp_path.name
  assert step == 2 and record['loss'] == 1.5 and 'examples' not in record
  assert last == 'finish'
  with log(tmp_path):
    pass
  assert len(wandb) == 4


def test_a_run_of_wandb_is_that_of_the_run_and_not_of_its_folder(tmp_path, wandb):
  """It goes on where the run does, also in a folder that was moved; another one begins in the same
  folder of another machine, and where --overwrite begins one."""

  def run_id(workdir):
    with log(workdir, wandb='armd'):
      pass
    assert wandb.pop() == 'finish'
    return wandb.pop()['id']

  folder, config = tmp_path / 'run', config_lib.Config()
  workdir_lib.write_config(folder, config)
  first = run_id(folder)
  assert run_id(folder) == first and len(first) >= 16
  folder = folder.rename(tmp_path / 'moved')
  assert run_id(folder) == first
  (tmp_path / 'run').mkdir()
  assert run_id(tmp_path / 'run') != first
  with pytest.raises(UserError), workdir_lib.begun(folder, config, overwrite=True):
    assert run_id(folder) != first
    raise UserError('x')
  assert run_id(folder) == first  # of the run that is put back
  with workdir_lib.begun(folder, config, overwrite=True):
    second = run_id(folder)
  assert second != first and run_id(folder) == second
  (folder / workdir_lib.WANDB).write_text('{"id": 3}')
  with pytest.raises(UserError, match=r'wandb_run.json is damaged .*; delete it, for a new run'):
    run_id(folder)


@pytest.mark.parametrize(
  'error',
  [
    RuntimeError('api_key not configured (no-tty). call wandb.login(key=[your_api_key])\nmore'),
    ValueError('invalid project name: a/b'),
    OSError(101, 'Network is unreachable'),
    TypeError(),
  ],
  ids=lambda error: type(error).__name__,
)
def test_wandb_that_starts_no_run_is_a_sentence(tmp_path, monkeypatch, error):
  def init(**_):
    raise error

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  reason = re.escape((str(error) or 'TypeError').splitlines()[0])
  told = rf"^config.train.wandb is 'a/b' but .* starts no run \({reason}\); log in by wandb login"
  with pytest.raises(UserError, match=told) as raised:
    log(tmp_path, wandb='a/b')
  assert '\n' not in str(raised.value)


def test_wandb_that_is_not_installed_is_a_sentence(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(UserError, match="'armd' but wandb is not installed; pip install wandb"):
    log(tmp_path, wandb='armd')


def test_a_run_in_few_rows(tmp_path):
  """What was logged again after a crash counts once; steps that were not finite are in no mean."""
  log = metrics.JsonLines(tmp_path / 'metrics.jsonl')
  for step in (*range(1, 7), *range(5, 10)):
    loss = None if step == 8 else float(step if step < 7 else 2 * step)
    log.write(
      step, {'loss': loss, 'learning_rate': step / 10, 'shuffled': 2.0, 'step_seconds': 0.5}
    )
    if step % 3 == 0:
      log.write(step, {'held_out': 7.0 + step})
  log.close()
  records = history.read(tmp_path / 'metrics.jsonl')
  assert list(records) == list(range(1, 10))
  assert records[6]['loss'] == 6 and records[6]['held_out'] == 13
  rows = history.overview(records, 3)
  column = lambda name: [row[name] for row in rows]
  assert column('step') == [3, 6, 9]
  assert column('loss') == pytest.approx([2, 5, (14 + 18) / 2])
  assert column('held out') == [10, 13, 16]
  assert column('learning rate') == pytest.approx([0.3, 0.6, 0.9])
  assert column('step ms') == [500] * 3 and column('input ms') == column('tokens/s') == [None] * 3
  assert [row['step'] for row in history.overview(records)] == list(records)


def test_memory_is_that_of_the_fullest_device():
  give = lambda stats: types.SimpleNamespace(memory_stats=lambda: stats)
  full = {'peak_bytes_in_use': 3 * 2**30, 'bytes_limit': 16 * 2**30, 'other': 1}
  empty = {'peak_bytes_in_use': 2**30, 'bytes_limit': 16 * 2**30}
  assert metrics.memory([give(empty), give(full)]) == {'memory_gib': 3, 'memory_limit_gib': 16}
  assert metrics.memory([give(None)]) == {}


def test_ideal_seconds_are_the_models_products_at_the_peak(monkeypatch):
  """On devices of a known peak, shared by all of them."""
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  params = training.abstract_state(config, VOCAB, mesh).params
  assert metrics.ideal_seconds(config, VOCAB, params, mesh) == {}  # no peak is known of a CPU
  two_devices = dataclasses.replace(CHIPS['7x'], flops=2e9)  # each with half of the peak
  monkeypatch.setitem(CHIPS, device.current().chip, two_devices)
  found = metrics.ideal_seconds(config, VOCAB, params, mesh)
  num_parameters = sum(x.size for x in jax.tree.leaves(params))
  assert found['mfu_6nd'] == 6 * num_parameters * BATCH * SLOTS / 1e9
  assert found['mfu'] == BATCH * training_flops(config.model, VOCAB) / 1e9
  four = types.SimpleNamespace(size=4)
  quarter = metrics.ideal_seconds(config, VOCAB, params, four)
  assert quarter == {name: seconds / 4 for name, seconds in found.items()}


@pytest.mark.parametrize('chip', ['H100', 'v5e'])
def test_ideal_seconds_of_chips_that_are_not_here(chip):
  config = tiny.train_config()
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  params = training.abstract_state(config, VOCAB, mesh).params
  with device.compiling_for(chip):
    found = metrics.ideal_seconds(config, VOCAB, params, mesh)
  assert found['mfu'] == BATCH * training_flops(config.model, VOCAB) / CHIPS[chip].flops

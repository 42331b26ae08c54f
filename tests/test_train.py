"""Training goes on as if never stopped, overwrites nothing, and says what is wrong."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from armd_jax import config as config_lib
from armd_jax import evaluate, flags, sample, training
from armd_jax import train as program
from armd_jax.artifacts import weights
from armd_jax.config import UserError
from armd_jax.data import corpus
from armd_jax.files import lock
from armd_jax.hardware import device
from armd_jax.hardware.chips import CHIPS
from armd_jax.parallel import sharding
from armd_jax.show import history
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import check_batch, train

ROOT = pathlib.Path(__file__).parents[1]


def tiny_config(text, **train_fields):
  raw = {
    'model': dict(
      length=32, num_layers=2, embed_dim=16, num_heads=2, dtype='float32', dropout=0.1,
      position_dim=4,
    ),
    'order': dict(ar_steps=5, perm_steps=10, max_shuffled=4, strided_start=30),
    'optimizer': dict(warmup_steps=5, learning_rate=1e-2),
    'data': dict(source=str(text), held_out=0.2),
    'train': dict(
      steps=40, batch_size=4, loss_chunk=32, log_every=1, eval_every=20, eval_windows=4,
      checkpoint_every=20,
    ) | train_fields,
  }  # fmt: skip
  return config_lib.parse(raw)


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  rng = np.random.RandomState(0)
  words = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta']
  path.write_text('\n\n'.join(' '.join(rng.choice(words, 30)) for _ in range(40)))
  return path


@pytest.fixture(scope='module')
def finished(text, tmp_path_factory):
  """A run of 40 steps straight."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  train(tiny_config(text), workdir)
  return workdir


def final(workdir, step=None):
  config = workdir_lib.read_config(workdir)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  abstract = training.abstract_state(config, 257, mesh)
  return checkpoint.Checkpoints(workdir).restore(abstract, step)


def copy(run, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(run, workdir)
  return workdir


def command(text, workdir):
  experiment = workdir.parent / 'experiment.py'
  raw = json.dumps(config_lib.to_dict(tiny_config(text)))
  experiment.write_text(
    'import json\nfrom armd_jax.config import default_config\n'
    f'def get_config():\n  config = default_config()\n  raw = json.loads({raw!r})\n'
    '  raw["order"]["strided_streams"] = tuple(raw["order"]["strided_streams"])\n'
    '  config.update(raw)\n  return config\n'
  )
  return [sys.executable, '-m', 'armd_jax.train', f'--config={experiment}', f'--workdir={workdir}']


def call(text, workdir, *arguments):
  """The same program with more flags, in this process."""
  *_, config, workdir = command(text, workdir)
  program.main(flags.parse(program.Options, ['train', config, workdir, *arguments]))


def test_killed_and_started_again_is_as_if_never_stopped(text, finished, tmp_path):
  """40 steps straight equal 20, kill -9, and the rest by the same command, bit for bit."""
  workdir = tmp_path / 'run'
  process = subprocess.Popen(
    command(text, workdir), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
  )
  deadline = time.time() + 300
  while not (workdir / 'checkpoints' / '20').exists():
    assert process.poll() is None and time.time() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not (workdir / 'checkpoints' / '40').exists()
  done = subprocess.run(command(text, workdir), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'going on from step 20' in done.stdout
  # One header, and lines alone where no terminal is.
  header = (
    'devices   1 x cpu',
    'attention XLA\n',
    'precision float32',
    'text ',
    'windows ',
    'epoch ',
  )
  assert all(f'\n{line}' in f'\n{done.stdout}' for line in (*header, 'model ', 'workdir '))
  assert 'compiling ...\ncompiled in ' in done.stdout and 'at peak' not in done.stdout
  assert '\r' not in done.stdout + done.stderr and done.stderr == ''
  (state, position), (expected, expected_position) = final(workdir), final(finished)
  assert position == expected_position == 40 * 4
  assert int(state.step) == 40
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_starts_on_a_chip_whose_peak_is_known(text, tmp_path, monkeypatch, capsys):
  """As on any TPU or H100: a CPU has no known peak, and what depends on one never ran on it."""
  monkeypatch.setitem(CHIPS, device.current().chip, CHIPS['v5e'])
  train(tiny_config(text, steps=3), tmp_path / 'run')
  assert 'at peak   a step would take: mfu' in capsys.readouterr().out
  records = history.read(tmp_path / 'run' / 'metrics.jsonl')
  assert all(0 < records[step][name] < 1 for step in (2, 3) for name in ('mfu', 'mfu_6nd'))


def test_a_run_goes_on_with_a_text_that_moved(text, finished, tmp_path):
  """Its name and folder are others, its bytes the same: so are all steps."""
  moved = shutil.copy(text, tmp_path / 'elsewhere.txt')
  workdir = copy(finished, tmp_path)
  shutil.rmtree(workdir / 'checkpoints' / '40')
  call(moved, workdir)
  jax.tree.map(np.testing.assert_array_equal, final(workdir)[0], final(finished)[0])
  assert workdir_lib.read_config(workdir).data.source == str(moved)
  with pytest.raises(UserError, match='text'):
    call(shutil.copy(__file__, tmp_path / 'another.txt'), workdir, '--config.train.steps=60')


@pytest.mark.parametrize('seed', ['-1', '2147483648', '18446744073709551616', '1.5', 'True', ''])
def test_a_seed_out_of_range_leaves_nothing_behind(text, tmp_path, seed):
  with pytest.raises(UserError, match='seed'):
    call(text, tmp_path / 'run', f'--config.seed={seed}')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('seed', [-1, 2**32, 2**70, True])
def test_programs_refuse_seeds_out_of_range_and_leave_nothing(finished, seed):
  before = sorted(finished.iterdir())
  for called in (sample, evaluate):
    with pytest.raises(UserError, match=r'seed is .*; write a whole number from 0 to 4294967295'):
      called.main(called.Options(workdir=str(finished), seed=seed))
  assert sorted(finished.iterdir()) == before


def test_a_finished_run_is_left_alone(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  train(tiny_config(text), workdir)
  assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before


def test_another_config_is_refused_unless_told_to_overwrite(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  other = tiny_config(text, batch_size=2)
  with pytest.raises(UserError, match=r'config.train.batch_size = 4, not 2.*--overwrite'):
    train(other, workdir)
  assert int(final(workdir)[0].step) == 40
  train(tiny_config(text, batch_size=2, steps=2), workdir, overwrite=True)
  assert checkpoint.Checkpoints(workdir).found() == [2]


@pytest.mark.parametrize(
  'changes',
  [
    dict(init_from='NOWHERE'),
    dict(train=dict(wandb='project')),
    dict(data=dict(source='NOWHERE')),
    dict(mesh=dict(data=3)),
  ],
  ids=lambda changes: next(iter(changes)),
)
def test_overwrite_deletes_nothing_before_the_new_run_has_saved(text, finished, tmp_path, changes):
  workdir = copy(finished, tmp_path)
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  raw = config_lib.to_dict(tiny_config(text, batch_size=2, steps=2))
  for name, value in changes.items():
    raw[name] = raw[name] | value if isinstance(value, dict) else value
  with pytest.raises(UserError):
    train(config_lib.parse(raw), workdir, overwrite=True)
  assert {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()} == before


def test_a_run_replaces_the_one_it_continues_from(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  config = tiny_config(text, steps=42, batch_size=2)
  train(dataclasses.replace(config, init_from=str(workdir)), workdir, overwrite=True)
  assert checkpoint.Checkpoints(workdir).found() == [42]
  assert not (workdir / workdir_lib.REPLACED).exists()


def test_no_step_left_to_train_is_told(text, finished, tmp_path):
  config = dataclasses.replace(tiny_config(text, steps=20), init_from=str(finished))
  with pytest.raises(UserError, match=r'is at step 40, and config.train.steps is 20, .*write more'):
    train(config, tmp_path / 'new')
  assert not (tmp_path / 'new' / 'config.json').exists()


def test_the_second_in_a_work_directory_is_told_who_is_there(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  with lock.held(workdir / lock.FOLDER_LOCK, 'it'):
    for overwrite in (False, True):
      with pytest.raises(UserError, match=rf'^--workdir {workdir} is in use by .* \(process '):
        train(tiny_config(text, steps=41), workdir, overwrite=overwrite)
  assert int(train(tiny_config(text, steps=41), workdir).step) == 41


def test_another_text_is_refused_and_the_same_one_goes_on_elsewhere(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  (tmp_path / 'other.txt').write_text(text.read_text().replace('alpha', 'aleph'))
  (tmp_path / 'same.txt').write_text(text.read_text())
  with pytest.raises(UserError, match=r'the run in .* is of another text .*other.txt'):
    train(tiny_config(tmp_path / 'other.txt', steps=41), workdir)
  assert int(final(workdir)[0].step) == 40
  assert int(train(tiny_config(tmp_path / 'same.txt', steps=41), workdir).step) == 41
  assert workdir_lib.read_config(workdir).data.source == str(tmp_path / 'same.txt')


def test_longer_training_goes_on(text, finished, tmp_path):
  workdir = copy(finished, tmp_path)
  assert int(train(tiny_config(text, steps=41), workdir).step) == 41


def test_init_from_continues_optimizer_average_and_data(text, finished, tmp_path):
  """A new run from another one's checkpoint equals that one trained further."""
  further = copy(finished, tmp_path)
  a = train(tiny_config(text, steps=42), further)
  config = dataclasses.replace(tiny_config(text, steps=42), init_from=str(finished))
  b = train(config, tmp_path / 'new')
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_prompts_and_answers_are_trained_on_and_measured(tmp_path):
  """The answers alone: `evaluate` finds on the held-out ones what training has logged."""
  rng = np.random.RandomState(0)
  names = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta']
  pairs = [(rng.choice(names), rng.randint(10)) for _ in range(60)]
  rows = [{'asked': f'{n} {i}: ', 'said': f'{i} {n[:3]}'} for n, i in pairs]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  config = tiny_config(tmp_path / 'rows.jsonl', eval_windows=1000, eval_streams=(2,))
  data = dataclasses.replace(config.data, packing='documents', prompt='asked')
  train(dataclasses.replace(config, data=data), tmp_path / 'run')
  logged = history.read(tmp_path / 'run' / 'metrics.jsonl')[40]
  arguments = [f'--workdir={tmp_path / "run"}', f'--json={tmp_path / "scores"}', '--streams=2']
  evaluate.main(flags.parse(evaluate.Options, ['evaluate', *arguments]))
  first, *others = json.loads((tmp_path / 'scores').read_text())['scores']
  assert first['nats_per_token'] == pytest.approx(logged['held_out'], rel=1e-5)
  assert others[0]['name'] == 'strided S=2, parallel' and len(others) > 3
  assert others[0]['nats_per_token'] == pytest.approx(logged['held_out_s2'], rel=1e-5)
  held = corpus.load(data, 32).held_out_WxN
  assert first['tokens'] == (held >= 0).sum() < held.size / 3
  assert 0 < first['standard_error'] < first['nats_per_token']


def test_keeps_the_last_the_best_and_every_so_many_for_good(text, tmp_path):
  config = tiny_config(
    text, steps=24, eval_every=4, checkpoint_every=4, keep_last=2, keep_every=12, keep_best=1
  )
  train(config, tmp_path)
  lines = [json.loads(x) for x in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  held_out = {x['step']: x['held_out'] for x in lines if 'held_out' in x}
  best = min(held_out, key=held_out.get)
  assert checkpoint.Checkpoints(tmp_path).found() == sorted({best, 12, 20, 24})


def test_metrics_are_one_line_per_step(finished):
  lines = [json.loads(x) for x in (finished / 'metrics.jsonl').read_text().splitlines()]
  train_lines = [x for x in lines if 'loss' in x]
  assert [x['step'] for x in train_lines] == list(range(1, 41))
  assert [x['shuffled'] for x in train_lines[:12]] == [0] * 5 + [1, 1, 2, 2, 3, 4, 4]
  assert train_lines[-1]['shuffled'] == 0  # strided by then
  assert {x['step'] for x in lines if 'held_out' in x} == {20, 40}
  assert train_lines[-1]['loss'] < train_lines[0]['loss'] - 1


def test_a_run_ends_with_a_table_and_a_picture(text, tmp_path, capsys):
  train(tiny_config(text, steps=3, eval_every=3), tmp_path)
  assert (tmp_path / 'training.png').read_bytes().startswith(b'\x89PNG')
  title, *rows = capsys.readouterr().out.splitlines()[-4:]
  assert title.split()[:4] == ['step', 'loss', 'held', 'out']
  assert [row.split()[0] for row in rows] == ['1', '2', '3']
  assert rows[0].split()[2] == '-' != rows[2].split()[2]


def test_a_picture_that_cannot_be_drawn_is_a_warning(text, tmp_path, capsys):
  (tmp_path / 'training.png').mkdir()
  state = train(tiny_config(text, steps=1), tmp_path)
  assert int(state.step) == 1
  told = capsys.readouterr().err
  assert 'warning: the picture is not drawn' in told and 'training.png (Is a directory)' in told


def test_a_config_that_was_changed_afterwards_is_refused(finished, tmp_path):
  workdir = copy(finished, tmp_path)
  raw = json.loads((workdir / 'config.json').read_text())
  raw['model']['position_rows'] = 'learned'
  (workdir / 'config.json').write_text(json.dumps(raw))
  with pytest.raises(
    UserError, match=r"model.position_rows = 'learned', but .* was saved with 'sin"
  ):
    weights.load_ema(workdir)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'embed_dim': 32}, r'is \(\d.*16.*\) in checkpoint .* but \(\d.*32.*\) in the model'),
    ({'num_layers': 4}, r"lacks 'ema/two_stream/"),
    ({'position_rows': 'learned'}, "lacks 'params/pe'|lacks 'ema/pe'|lacks '.*pe'"),
  ],
)
def test_a_checkpoint_of_another_shape_is_refused_by_name(
  text, finished, tmp_path, fields, message
):
  raw = config_lib.to_dict(tiny_config(text)) | {'init_from': str(finished)}
  raw['model'] |= fields | {'num_two_stream_layers': -1, 'mlp_dim': -1}
  with pytest.raises(UserError, match=message):
    train(config_lib.parse(raw), tmp_path / 'new')


def test_an_extra_parameter_is_refused_by_name(finished):
  config = workdir_lib.read_config(finished)
  abstract = training.abstract_state(
    config, 257, sharding.make_mesh(config.mesh, jax.devices()[:1])
  )
  less = {k: v for k, v in abstract.ema.items() if k != 'final_norm'}
  with pytest.raises(UserError, match="holds 'ema/final_norm/scale', which the model lacks"):
    checkpoint.Checkpoints(finished).restore(abstract.replace(ema=less))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(text, finished, tmp_path, capfd):
  """Trained again from step 20, to the same end, with the damaged one replaced."""
  workdir = copy(finished, tmp_path)
  (workdir / 'checkpoints' / '40' / '_METADATA').write_text('')
  state = train(tiny_config(text), workdir)
  out, err = capfd.readouterr()
  assert 'going on from step 20 of 40' in out
  assert re.search(r'warning: .*40 is damaged \(_METADATA has 0 of \d+ bytes\) and is passed', err)
  jax.tree.map(np.testing.assert_array_equal, state, final(finished)[0])
  jax.tree.map(np.testing.assert_array_equal, state, final(workdir)[0])


def test_losses_that_stay_not_finite_end_the_run_with_good_parameters(text, tmp_path):
  """A rate so large that one update overflows whatever comes after it."""
  config = tiny_config(text, checkpoint_every=1, max_not_finite=4)
  wild = dataclasses.replace(config.optimizer, learning_rate=1e30)
  config = dataclasses.replace(config, optimizer=wild)
  with pytest.raises(UserError, match=r'not finite.* in 4 steps in a row.*last good parameters'):
    train(config, tmp_path)
  state, _ = final(tmp_path)
  assert int(state.skipped) > 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


# One sentence, nothing left behind; every kind of bad input once.
BAD_INPUT = [
  (['--config.model.nun_layers=3'], 'no field \'nun_layers\' (Did you mean "num_layers"'),
  (['--config.model.nonsense=3'], "no field 'nonsense'; armd_jax/config.py"),
  (['--config.data.source=/nowhere/*.txt'], "no file matches the text '/nowhere/*.txt'"),
  (
    ['--config.order.strided_streams=(1,33)'],
    'S = 33, but of 32 tokens there are 1 to 32 streams',
  ),
  (
    ['--config.model.length=1000000', '--config.order.max_shuffled=1'],
    'fewer than one window of 1000000',
  ),
]


@pytest.mark.parametrize(('arguments', 'message'), BAD_INPUT)
def test_bad_input(text, tmp_path, arguments, message):
  workdir = tmp_path / 'run'
  with pytest.raises(UserError) as caught:
    call(text, workdir, *arguments)
  assert message in str(caught.value) and '\n' not in str(caught.value)
  assert not workdir.exists()


def test_bad_input_ends_the_program(text, tmp_path):
  workdir, (arguments, message) = tmp_path / 'run', BAD_INPUT[0]
  done = subprocess.run(command(text, workdir) + arguments, capture_output=True, text=True)
  assert done.returncode == 1
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: ') and message in lines[0], done.stderr
  assert not workdir.exists()


def test_a_batch_that_devices_cannot_share_is_refused(text):
  config = tiny_config(text, batch_size=24, accumulation=2)
  mesh = lambda *sizes: jax.sharding.AbstractMesh(sizes, ('data', 'fsdp', 'tensor'))
  check_batch(config, mesh(2, 6, 4))
  message = 'accumulation is 12, which 8 data-parallel devices cannot share; write a multiple of 8'
  with pytest.raises(UserError, match=message):
    check_batch(config, mesh(2, 4, 1))


def test_programs_refuse_with_a_sentence(finished):
  workdir = str(finished)
  with pytest.raises(UserError, match='the prompt has 32 tokens but the model takes 32'):
    sample.main(sample.Options(workdir=workdir, prompt='x' * 32))
  with pytest.raises(UserError, match='S = 33, but of 32 tokens there are 1 to 32'):
    evaluate.main(evaluate.Options(workdir=workdir, streams=(33,)))


def test_unwritable_workdir_is_a_sentence(text, tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  with pytest.raises(UserError, match='choose another place'):
    train(tiny_config(text), file / 'run')
  if os.geteuid():  # root may write anywhere
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match='use another --workdir'):
      train(tiny_config(text), tmp_path / 'run')


def test_a_kernel_that_cannot_run_here_is_a_sentence(text, tmp_path):
  message = "^attention backend 'pallas_tpu' cannot run: the platform is 'cpu', not a TPU"
  with pytest.raises(UserError, match=message):
    call(text, tmp_path / 'run', '--config.model.attention=pallas_tpu')

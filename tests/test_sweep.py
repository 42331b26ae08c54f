"""A sweep's runs, in turn or as jobs of a launcher."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from armd_jax import config, sweep
from armd_jax.errors import UserError

STANDARD = 'experiments/sweeps/standard.py'


@pytest.mark.parametrize('name', ['learning_rate', 'seeds', 'max_shuffled'])
def test_standard_sweeps_are_valid_overrides(name):
  runs = sweep.overrides_of(f'{STANDARD}:{name}')
  for overrides in runs:
    raw = config.default_config()
    raw.update_from_flattened_dict(overrides)
    config.parse(raw)  # or raises
  assert len({sweep.run_name(run) for run in runs}) == len(runs) >= 3


def test_commands_here_and_by_a_launcher():
  runs = [
    {'optimizer.learning_rate': 3e-4, 'order.max_shuffled': 8},
    {'order.strided_streams': (1, 2)},
  ]
  here = sweep.commands(runs, 'experiments/a.py:runlocal', 'work/s')
  assert here[0] == [
    sys.executable, '-m', 'armd_jax.train', '--config=experiments/a.py:runlocal',
    '--workdir=work/s/learning_rate=0.0003,max_shuffled=8',
    '--config.optimizer.learning_rate=0.0003', '--config.order.max_shuffled=8',
  ]  # fmt: skip
  assert here[1][-2:] == [
    '--workdir=work/s/strided_streams=1_2',
    '--config.order.strided_streams=(1, 2)',
  ]
  job = sweep.commands(runs, 'experiments/a.py', 'work/s', 'python launch/slurm.py --nodes=2')[0]
  assert job[:7] == shlex.split('python launch/slurm.py --nodes=2 -- python -m armd_jax.train')


def run(tmp_path, text, *more):
  (tmp_path / 's.py').write_text(text)
  command = [
    sys.executable, '-m', 'armd_jax.sweep', f'--sweep={tmp_path / "s.py"}:runs',
    '--config=experiments/quickstart.py', f'--workdir={tmp_path / "work"}', *more,
  ]  # fmt: skip
  return subprocess.run(command, capture_output=True, text=True)


def test_dry_run_prints_what_would_run(tmp_path):
  done = run(tmp_path, 'runs = lambda: [{"seed": 0}, {"seed": 1}]', '--dry_run')
  assert done.returncode == 0, done.stderr
  assert [line.split()[-1] for line in done.stdout.splitlines()] == [
    '--config.seed=0', '--config.seed=1',
  ]  # fmt: skip
  assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('s.py', '', 'write FILE:FUNCTION'),
    ('none.py:runs', '', 'write FILE:FUNCTION'),
    ('s.py:runs', '1 / 0', 'cannot be run (ZeroDivisionError: division by zero); mend it'),
    ('s.py:runs', 'run = list', "has no function 'runs'"),
    ('s.py:runs', 'runs = dict', 'return a list of dicts'),
    ('s.py:runs', 'runs = lambda: [{}, {}]', 'the same overrides twice'),
    (
      's.py:runs',
      'runs = lambda: 1 / 0',
      'cannot be run (ZeroDivisionError: division by zero); mend it',
    ),
    ('s.py:runs', 'import sys; runs = lambda: sys.exit(3)', 'cannot be run (SystemExit: 3); mend'),
    ('s.py:runs', 'raise SystemExit(3)', 'cannot be run (SystemExit: 3); mend it'),
    ('s.py:runs', 'runs = lambda x: []', "missing 1 required positional argument: 'x'); mend it"),
    ('s.py:runs', 'runs = lambda: [{1: 2}]', 'return a list of dicts'),
  ],
)
def test_refusals(tmp_path, name, text, message):
  (tmp_path / 's.py').write_text(text)
  with pytest.raises(UserError) as caught:
    sweep.overrides_of(str(pathlib.Path(tmp_path) / name))
  assert message in str(caught.value)


def test_a_run_that_fails_ends_the_sweep(tmp_path, monkeypatch, capsys):
  (tmp_path / 's.py').write_text('runs = lambda: [{"seed": 0}, {"seed": 1}]')
  monkeypatch.setattr(sweep.ends, 'run', lambda command: 3)
  options = sweep.Options(
    sweep=f'{tmp_path}/s.py:runs',
    config='experiments/quickstart.py',
    workdir=str(tmp_path / 'work'),
  )
  with pytest.raises(
    UserError, match=r'config.seed=0.* ended with code 3; .* give the same command'
  ):
    sweep.main(options)
  assert capsys.readouterr().out.count('\n') == 1  # the second one was not begun


@pytest.mark.parametrize('dry_run', [True, False])
@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ('"seed": [1]', 'seed'),
    ('"seed": float("nan")', 'seed'),
    ('"optimizer.learning_rate": -1.0', r'config.optimizer.learning_rate is -1.0'),
    ('"model.no_such": 1', "the config has no field 'no_such'"),
  ],
)
def test_overrides_that_are_none_begin_no_run(tmp_path, capsys, overrides, message, dry_run):
  (tmp_path / 's.py').write_text(f'runs = lambda: [{{"seed": 0}}, {{{overrides}}}]')
  options = sweep.Options(
    sweep=f'{tmp_path}/s.py:runs',
    config='experiments/quickstart.py',
    workdir=str(tmp_path / 'work'),
    dry_run=dry_run,
  )
  with pytest.raises(UserError, match=message):
    sweep.main(options)
  assert not capsys.readouterr().out


def test_a_file_of_any_name(tmp_path):
  text = 'def runs():\n  return [{"seed": seed} for seed in SEEDS]\n\nSEEDS = 1, 2\n'
  (tmp_path / 'seeds').write_text(text)
  assert sweep.overrides_of(f'{tmp_path}/seeds:runs') == [{'seed': 1}, {'seed': 2}]


@pytest.mark.parametrize('value', ['x' * 300, 'a\0b', '\ud800'])
def test_what_no_folder_is_named_is_refused(value):
  with pytest.raises(UserError, match='which no file system takes; write another name'):
    sweep.commands([{'data.source': value}], 'a.py', 'work')


def test_launchers_that_are_none(tmp_path):
  with pytest.raises(UserError, match=r'\(No closing quotation\); write a command line'):
    sweep.commands([{'seed': 1}], 'a.py', 'work', "python 'launch/slurm.py")
  (tmp_path / 's.py').write_text('runs = lambda: [{"seed": 1}]')
  options = sweep.Options(
    sweep=f'{tmp_path}/s.py:runs',
    config='experiments/quickstart.py',
    workdir=str(tmp_path),
    launcher='/no/such more',
  )
  with pytest.raises(UserError, match=r"'/no/such' cannot be started \(No such file"):
    sweep.main(options)

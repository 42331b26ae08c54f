"""An installed wheel does, from anywhere, what a clone does."""

import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from the files that git knows, without a network."""
  folder = tmp_path_factory.mktemp('wheel')
  listed = subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True)
  for name in filter(None, listed.split('\0')):
    if name.startswith(('armd_jax/', 'experiments/')) or '/' not in name:
      copy = folder / 'source' / name
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes((ROOT / name).read_bytes())
  pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
  subprocess.run([*pip, f'--wheel-dir={folder}', str(folder / 'source')], check=True)
  (path,) = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """Runs a command line of Python in an environment that has the wheel, and no clone beside it."""
  folder = tmp_path_factory.mktemp('environment')
  venv.create(folder, with_pip=False)
  python = folder / 'bin' / 'python'
  pip = [sys.executable, '-m', 'pip', '--python', str(python)]
  subprocess.run([*pip, 'install', '--quiet', '--no-deps', '--no-index', str(wheel)], check=True)
  (site,) = folder.glob('lib/python*/site-packages')
  # All else comes from here, but for what is installed by a .pth file, as the clone is.
  others = [path for path in sys.path if path.endswith('-packages')]
  (site / 'others.pth').write_text('\n'.join(others) + '\n')
  variables = {name: x for name, x in os.environ.items() if not name.startswith('PYTHON')}
  place = tmp_path_factory.mktemp('anywhere')

  def run(*words):
    command = [str(python), *words]
    return subprocess.run(command, cwd=place, env=variables, capture_output=True, text=True)

  return run


def test_the_wheel_holds_every_file_of_the_package_and_the_experiments(wheel):
  with zipfile.ZipFile(wheel) as archive:
    held = {name for name in archive.namelist() if '.dist-info/' not in name}
  listed = subprocess.check_output(['git', 'ls-files', 'armd_jax'], cwd=ROOT, text=True).split()
  own = [path.relative_to(ROOT) for path in (ROOT / 'experiments').rglob('*.py')]
  assert held == {*listed, *(f'armd_jax/{path}' for path in own)} and own


def test_tables_that_are_tuned_later_would_be_in_it():
  """They are written beside the kernels' code, see `bench.attention.tune`."""
  from armd_jax.attention import hopper_blocks, tpu_blocks

  for table in (hopper_blocks.TABLE, tpu_blocks.TABLE):
    assert table.suffix == '.json' and table.parent.name == 'attention'
  assert "'armd_jax.attention': ['*.json']" in (ROOT / 'setup.py').read_text('utf-8')


def test_armd_is_a_program_that_starts_the_others(installed):
  armd = ['-c', 'import os, sys; os.execv(os.path.join(sys.prefix, "bin", "armd"), sys.argv)']
  done = installed(*armd, 'sweep', '--help')
  assert done.returncode == 0 and '--dry_run' in done.stdout, done.stderr
  done = installed(*armd, 'train', '--steps=3')
  assert done.returncode == 1 and 'write --config.train.steps' in done.stderr
  done = installed(*armd, 'tarin')
  assert done.returncode == 1 and "no program 'tarin'; write train" in done.stderr


def test_programs_find_their_files_from_anywhere(installed):
  where = installed('-c', 'import armd_jax; print(armd_jax.__file__)').stdout
  assert 'environment' in where and str(ROOT) not in where
  # What it refuses comes after the experiment file is read, whose steps it quotes.
  done = installed('-m', 'armd_jax.quickstart', '--workdir=q', '--config.order.strided_start=0')
  assert done.returncode == 1 and 'between 0 and train.steps = 1050' in done.stderr
  done = installed('-m', 'armd_jax.reproduce', '--workdir=r', '--list')
  assert done.returncode == 0 and 'train     rate' in done.stdout, done.stderr[-2000:]
  sweep = [
    '--sweep=experiments/sweeps/standard.py:seeds', '--config=experiments/text8.py', '--workdir=s',
  ]  # fmt: skip
  done = installed('-m', 'armd_jax.sweep', *sweep, '--dry_run')
  assert done.returncode == 0 and '--config.seed=1' in done.stdout, done.stderr[-2000:]
  train = ['--config=experiments/text8.py:family=mdlm', '--workdir=t', '--config.data.source=no']
  done = installed('-m', 'armd_jax.train', *train)
  assert done.returncode == 1 and "no file matches the text 'no'" in done.stderr

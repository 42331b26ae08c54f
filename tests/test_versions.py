"""Between the oldest jax and the newest: the version that a GPU machine of this year has."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DRILL_ALSO = ('Makefile', 'setup.py', 'armd_jax/train.py', 'armd_jax/aot.py')
# Its compilers for Hopper come with it and need no GPU.
MIDDLE = (
  'jax==0.11.2 jaxlib==0.11.2 jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2 '
  'nvidia-cuda-nvcc==13.0.* nvidia-nvvm==13.0.* nvidia-cuda-crt==13.0.*'
)


def python():
  """A Python that this jax runs on, or None."""
  versions = pathlib.Path(os.environ.get('PYENV_ROOT', pathlib.Path.home() / '.pyenv')) / 'versions'
  found = [shutil.which(name) for name in ('python3.12', 'python3.13')]
  found += map(str, sorted(versions.glob('3.1[23].*/bin/python')))
  works = lambda path: subprocess.run([path, '-c', ''], capture_output=True).returncode == 0
  return next((path for path in found if path and works(path)), None)


@pytest.mark.drill
def test_the_smoke_tests_pass_on_the_middle_version(tmp_path):
  path = python()
  if path is None:
    pytest.skip('there is no Python 3.12 or 3.13 here')
  command = ['make', 'smoke', f'PYTHON={path}', f'VENV={tmp_path / "venv"}', f'PACKAGES={MIDDLE}']
  variables = {key: os.environ[key] for key in os.environ if not key.startswith('PYTEST_')}
  done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  version = [str(tmp_path / 'venv' / 'bin' / 'python'), '-c', 'import jax; print(jax.__version__)']
  assert subprocess.run(version, capture_output=True, text=True).stdout.strip() == '0.11.2'

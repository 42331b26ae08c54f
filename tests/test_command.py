"""`armd` names every program, prints its help without importing it, and completes words."""

import importlib.metadata
import os
import subprocess
import sys

import pytest
import tiny_run

import armd_jax
from armd_jax import command

# No library of these is needed to read a help text.
HEAVY = ('jax', 'flax', 'numpy', 'absl', 'ml_collections', 'matplotlib')
PROGRAM = f"""
import sys
from armd_jax import command
try:
  command.main()
finally:
  print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def armd(*words):
  return subprocess.run([sys.executable, '-c', PROGRAM, *words], capture_output=True, text=True)


def test_help_imports_no_program():
  done = armd('--help')
  assert done.returncode == 0 and done.stderr.strip() == '[]'
  for name in ('train', 'evaluate', 'sample', 'report', 'export', 'prepare', 'reproduce'):
    assert f'  armd {name} ' in done.stdout
  assert '  armd train --config=experiments/quickstart.py' in done.stdout
  done = armd('sample', '--help')
  assert done.returncode == 0 and done.stderr.strip() == '[]'
  assert all(f'  --{name}\n' in done.stdout for name in ('workdir', 'json', 'mesh', 'cluster'))
  modules = tiny_run.run([sys.executable, '-X', 'importtime', '-m', 'armd_jax.train', '--help'])
  assert modules.returncode == 0 and modules.stdout == command.help_of('armd_jax.train')
  assert not any(f' {name}\n' in modules.stderr for name in HEAVY)


def test_help_version_and_a_room_of_programs_are_words_too():
  assert armd('help').stdout == armd('--help').stdout == command.overview()
  assert armd('help', 'train').stdout == command.help_of('armd_jax.train')
  assert armd('--version').stdout == f'armd_jax {importlib.metadata.version("armd_jax")}\n'
  done = armd('bench')
  assert done.returncode == 1 and 'bench.decode or ' in done.stderr


def test_a_notebook_completes_what_is_imported_late():
  assert {'orders', 'register', 'load', '__version__'} <= set(dir(armd_jax))
  assert armd_jax.__version__ == importlib.metadata.version('armd_jax')


@pytest.mark.parametrize('words', ['--help', 'train --help', '--completion'])
def test_a_full_disk_under_the_help_is_a_sentence(tmp_path, words):
  script = tmp_path / 'armd'
  script.write_text('from armd_jax import command\ncommand.main()\n')
  done = subprocess.run(
    f'{sys.executable} {script} {words} > /dev/full', shell=True, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert done.stderr == (
    'error: this cannot be printed (No space left on device); send it elsewhere\n'
  )


@pytest.mark.parametrize('name', command.programs())
def test_every_help_names_an_example(name):
  text = command.help_of(command.programs()[name])
  about = text.partition('\nFlags:\n')[0]
  assert 'armd ' in about or 'python -m armd_jax' in about or 'make ' in about


def test_words_are_completed(tmp_path):
  assert command.complete('armd tr') == ['train']
  assert command.complete('armd sample --prom') == ['--prompt']
  assert command.complete('armd train --config') == ['--config.', '--config=']
  assert command.complete('armd train --no') == ['--nooverwrite']
  assert command.complete('armd nothing --x') == []
  assert command.complete('armd  sample  --prom') == ['--prompt']
  assert command.complete('armd  tr') == ['train']
  assert command.complete('armd') == command.complete('') == []
  script = tmp_path / 'armd'
  script.write_text(f'#!{sys.executable}\nfrom armd_jax import command\ncommand.main()\n')
  script.chmod(0o755)
  typed = """eval "$(armd --completion)"
    COMP_LINE='armd evaluate --str' COMP_POINT=19
    _armd 2>/dev/null; echo "${COMPREPLY[@]}" """
  path = f'{tmp_path}:{os.environ["PATH"]}'
  done = subprocess.run(
    ['bash', '-c', typed], env=os.environ | {'PATH': path}, capture_output=True, text=True
  )
  assert done.stdout.strip() == '--streams', done.stderr

"""`sample` and `evaluate` say the same on one device and on two processes with two devices each."""

import json
import re

import numpy as np
import pytest
import tiny_run

from armd_jax import cli
from armd_jax.config import MeshConfig
from armd_jax.errors import UserError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A short run of one process."""
  folder = tmp_path_factory.mktemp('run')
  command = tiny_run.train(
    tiny_run.write_experiment(folder), folder / 'run', '--config.train.steps=2'
  )
  done = tiny_run.run(command)
  assert done.returncode == 0, done.stderr
  return folder / 'run'


@pytest.mark.parametrize(
  ('program', 'flags'),
  [
    ('sample', ['--num_samples=3', '--streams=4', '--prompt=al']),
    ('evaluate', ['--streams=4', '--windows=6']),
  ],
)
def test_two_processes_say_what_one_device_says(run, tmp_path, program, flags):
  def command(name, *more):
    program_flags = [f'--workdir={run}', f'--json={tmp_path / name}', *flags, *more]
    return [*tiny_run.PYTHON, '-m', f'armd_jax.{program}', *program_flags]

  one = tiny_run.run(command('one'))
  assert one.returncode == 0, one.stderr
  two = tiny_run.run(tiny_run.local(2, 2, command('two', '--mesh=fsdp=2,tensor=2')))
  assert two.returncode == 0, two.stderr
  # Gloo's own lines, which the processes may cut in pieces for each other: a piece may be a number
  # or nothing.
  gloo = re.compile(r'Gloo|peer ranks|^(\[\d\] )?[\s\d]*$')
  said = [line for line in two.stdout.split('\n') if not gloo.search(line)]
  assert any(line.startswith('[0] ') for line in said), two.stdout
  assert not any(line.startswith('[1] ') for line in said), two.stdout
  one, two = (json.loads((tmp_path / name).read_text()) for name in ('one', 'two'))
  if program == 'sample':
    assert two['texts'] == one['texts'], f'the closest decision: {one["margin"]} nats'
    assert two['steps'] == one['steps']
    np.testing.assert_allclose(two['margin'], one['margin'], rtol=0.1)
  else:
    nats = [[score['nats_per_token'] for score in numbers['scores']] for numbers in (one, two)]
    np.testing.assert_allclose(*nats, rtol=1e-5)


def test_meshes_of_the_command_line():
  assert cli.mesh_of('') is None
  assert cli.mesh_of('tensor=2') == MeshConfig(data=-1, tensor=2)
  assert cli.mesh_of('data=2,fsdp=-1') == MeshConfig(data=2, fsdp=-1)
  assert cli.mesh_of('fsdp=-1') == MeshConfig(data=1, fsdp=-1)
  for text in ('data', 'data=0', 'heads=2', 'data=1,data=2', 'tensor=x'):
    with pytest.raises(UserError, match=f'--mesh={text} is no mesh; write sizes'):
      cli.mesh_of(text)

"""shellcheck over every line of shell that the launchers write."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import local
import pytest
import skypilot
import slurm
import tiny_run
import tpu_vm
import yaml
from called import dry_run

COMMAND = ['--', 'python', '-m', 'armd_jax.train', '--workdir=/runs/a b']
SIZES = ['--processes=4', '--devices-per-process=2']


def printed(launcher, *flags):
  return dry_run(launcher, *SIZES, *flags, *COMMAND)


def remote_lines():
  """What launch/tpu_vm.py has the workers' shells run."""
  words = shlex.split(printed(tpu_vm, '--zone=us-east5-a', '--setup').replace('\n', ' ; '))
  lines = [w.removeprefix('--command=') for w in words if w.startswith('--command=')]
  assert len(lines) == 2
  return lines


def docker_lines():
  text = (tiny_run.ROOT / 'launch' / 'Dockerfile').read_text()
  lines = re.findall(r'^RUN (.*)$', text.replace('\\\n', ' '), re.M)
  assert lines
  return [f'JAX=tpu\n{line}' for line in lines]


def sky_scripts():
  """What launch/skypilot.py prints, and what nodes run before and in its job."""
  text = printed(skypilot, '--accelerator=H100')
  found = yaml.safe_load('\n'.join(text.splitlines()[1:-2]))
  known = 'export SKYPILOT_NODE_RANK SKYPILOT_NODE_IPS\n'
  return [text, found['setup'], known + found['run']]


SCRIPTS = {
  'skypilot': sky_scripts,
  'local': lambda: [printed(local)],
  'slurm': lambda: ['\n'.join(printed(slurm).splitlines()[1:-1])],
  'tpu_vm': remote_lines,
  'Dockerfile': docker_lines,
}


@pytest.mark.parametrize('name', SCRIPTS)
def test_shellcheck(name):
  here = pathlib.Path(sys.executable).parent
  shellcheck = shutil.which('shellcheck', path=f'{here}:/usr/bin')
  assert shellcheck, 'shellcheck comes with the test requirements; run make test'
  for script in SCRIPTS[name]():
    done = subprocess.run(
      [shellcheck, '--shell=bash', '--severity=style', '-'],
      input=script.rstrip('\n') + '\n', capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout

"""launch/tpu_vm.py: gcloud accepts its commands, and they do on a worker what they should."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile

import pytest
import tiny_run
import tpu_vm
from called import dry_run

from armd_jax.errors import UserError

TPU_VM = [sys.executable, str(tiny_run.ROOT / 'launch' / 'tpu_vm.py')]
FLAGS = ['--processes=2', '--devices-per-process=4', '--name=mine', '--zone=us-east5-a']


def commands(*flags, command=('python', '-m', 'armd_jax.train', '--workdir=/runs/a b')):
  printed = dry_run(tpu_vm, *FLAGS, *flags, '--', *command)
  return [shlex.split(line) for line in printed.splitlines()]


def test_a_slice_is_not_elastic():
  with pytest.raises(UserError, match='a TPU VM has all of its processes or none; leave it out'):
    dry_run(tpu_vm, *FLAGS, '--elastic=1', '--', 'x')


def fake(folder, name, body):
  (folder / name).write_text(f'#!/bin/bash\n{body}\n')
  (folder / name).chmod(0o755)


@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud, whose own check this is, is absent')
def test_gcloud_accepts_the_commands():
  _, scp, _, ssh = commands('--setup', '--project=lab')
  for command in (scp, ssh):
    line = shlex.join(a if 'command=' not in a else '--command=ls' for a in command)
    check = ['gcloud', 'meta', 'lint-gcloud-commands', f'--command-string={line}']
    found = json.loads(subprocess.run(check, capture_output=True, text=True).stdout)
    assert found[0]['success'], found[0]['error_message']


def test_every_command_is_for_all_workers_of_the_tpu():
  for flags, project in ((['--project=lab'], ['--project=lab']), ([], [])):
    _, *rest = commands('--setup', *flags)
    assert len(rest) == 3
    for command in rest:
      assert command[:4] == ['gcloud', 'compute', 'tpus', 'tpu-vm']
      assert {'--zone=us-east5-a', '--worker=all', *project} <= set(command)
      assert ('mine' if command[4] == 'ssh' else 'mine:') in command
  assert commands() == rest[-1:]


def test_a_worker_runs_the_command(tmp_path):
  """The line for ssh, run by a shell in a home folder."""
  (tmp_path / 'armd_jax').mkdir()
  script = f'echo "$JAX_PLATFORMS $*" > "{tmp_path}/ran"'
  ((*_, last),) = commands(command=('sh', '-c', script, 'sh', 'a b'))
  line = last.removeprefix('--command=')
  subprocess.run(['bash', '-c', line], cwd=tmp_path, check=True)
  ran = (tmp_path / 'ran').read_text()
  assert ran == 'tpu a b --cluster=tpu --num_processes=2 --devices_per_process=4\n'


def test_setup_brings_the_package(tmp_path):
  """Its commands, with a gcloud that copies and runs here, and a python that only notes."""
  home = tmp_path / 'home'
  home.mkdir()
  fake(
    tmp_path,
    'gcloud',
    f'for a; do case $a in --command=*) cd {home} && exec bash -c "${{a#--command=}}";; '
    f'*.tar.gz) cp "$a" {home};; esac; done',
  )
  fake(tmp_path, 'python3', f'echo "$*" >> {tmp_path}/python.txt')
  variables = os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
  done = subprocess.run(
    [*TPU_VM, *FLAGS, '--setup', '--', 'true'], cwd=tmp_path, env=variables, capture_output=True
  )
  assert done.returncode == 0, done.stderr
  assert tarfile.is_tarfile(home / 'armd_jax.tar.gz')
  assert (home / 'armd_jax' / 'setup.py').exists()
  assert '-e armd_jax jax[tpu]' in (tmp_path / 'python.txt').read_text()


@pytest.mark.parametrize(
  ('codes', 'runs', 'code'), [([75, 137, 0], 3, 0), ([137, 137, 0], 2, 137), ([1, 0], 1, 1)]
)
def test_starts_again(tmp_path, codes, runs, code):
  fake(
    tmp_path,
    'gcloud',
    f'echo >> {tmp_path}/ran; set -- {" ".join(map(str, codes))}; '
    f'shift $(($(wc -l < {tmp_path}/ran) - 1)); exit $1',
  )
  path = {'PATH': f'{tmp_path}:/usr/bin:/bin'}
  done = subprocess.run([*TPU_VM, *FLAGS, '--max-restarts=1', '--', 'x'], env=path)
  assert done.returncode == code
  assert len((tmp_path / 'ran').read_text()) == runs


def test_bad_input_is_a_sentence(tmp_path):
  done = subprocess.run(
    [*TPU_VM, *FLAGS, '--', 'x'], capture_output=True, text=True, env={'PATH': str(tmp_path)}
  )
  assert done.returncode == 1 and done.stderr.startswith('error: there is no gcloud here')

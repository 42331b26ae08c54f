"""launch/skypilot.py: what it launches is a task of SkyPilot, and its nodes run our processes."""

import copy
import subprocess

import jsonschema
import pytest
import schemas
import skypilot
import yaml
from called import dry_run

from armd_jax.errors import UserError

SIZES = ['--processes=3', '--devices-per-process=8', '--max-restarts=5']
GPU = [*SIZES, '--accelerator=H100', '--spot', '--infra=gcp/us-central1', '--mount=/runs=gs://b/r']
CPU = [*SIZES, '--platform=cpu']
COMMAND = ['--', 'python', '-m', 'armd_jax.train', '--workdir=/runs/a b']


def task(*flags, command=COMMAND):
  head, *lines, end, launch = dry_run(skypilot, *flags, *command).splitlines()
  assert (head, end) == ("cat > armd.sky.yaml <<'END'", 'END')
  assert launch == 'sky jobs launch --yes armd.sky.yaml'
  return yaml.safe_load('\n'.join(lines))


@pytest.mark.parametrize('flags', [GPU, CPU], ids=['gpu', 'cpu'])
def test_meets_the_schema(flags):
  jsonschema.validate(task(*flags), schemas.SKYPILOT)


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    (['resources', 'accelerators'], {'H100': '8'}),
    (['resources', 'job_recovery', 'restarts'], 3),
    (['file_mounts', '/runs', 'mode'], 'mount'),
    (['nodes'], 3),
  ],
)
def test_the_schema_refuses(path, value):
  broken = node = copy.deepcopy(task(*GPU))
  for key in path[:-1]:
    node = node[key]
  node[path[-1]] = value
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(broken, schemas.SKYPILOT)


def test_gpus_spot_and_restarts():
  found = task(*GPU)
  assert found['num_nodes'] == 3 and found['envs'] == {'JAX_PLATFORMS': 'cuda'}
  resources = found['resources']
  assert resources['accelerators'] == {'H100': 8} and resources['use_spot'] is True
  # SIGTERM, after which a run is saved, counts as no error.
  recovery = {'max_restarts_on_errors': 5, 'recover_on_exit_codes': [75, 143]}
  assert resources['job_recovery'] == recovery
  assert found['file_mounts'] == {'/runs': {'source': 'gs://b/r', 'mode': 'MOUNT_CACHED'}}
  assert 'accelerators' not in task(*CPU)['resources'] and 'file_mounts' not in task(*CPU)


def test_every_node_runs_its_process(tmp_path):
  """The lines of a node, with SkyPilot's variables and a program that notes what it is given."""
  (tmp_path / '.venv/bin').mkdir(parents=True)
  note = tmp_path / '.venv/bin/note'
  note.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
  note.chmod(0o755)
  run = task(*GPU, command=['--', 'note', 'a b', '$HOME'])['run']
  variables = {
    'PATH': '/usr/bin:/bin', 'SKYPILOT_NODE_RANK': '2',
    'SKYPILOT_NODE_IPS': '10.0.0.7\n10.0.0.9\n10.0.0.8',
  }  # fmt: skip
  done = subprocess.run(
    ['bash', '-c', run], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
  )
  assert done.stdout.splitlines() == [
    'a b', '$HOME', '--coordinator=10.0.0.7:8476', '--process_id=2', '--num_processes=3',
    '--devices_per_process=8',
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([*SIZES], "--accelerator is ''; write the kind of GPU for gpu"),
    ([*CPU, '--accelerator=H100'], "--accelerator is 'H100'"),
    ([*SIZES, '--accelerator=H100:8'], 'write the kind of GPU for gpu, without their number'),
    ([*CPU, '--mount=/r=gs://a', '--mount=/r=gs://b'], 'two buckets in one place; give each its'),
    ([*CPU, '--mount=/=gs://a'], 'write PATH=URL'),
    ([*CPU, '--mount=runs=gs://b'], 'write PATH=URL'),
    ([*CPU, '--mount=/runs=b'], 'write PATH=URL'),
    ([*CPU, '--elastic=2'], 'a job of SkyPilot has all of its processes or none'),
  ],
)
def test_flags_that_cannot_be_are_sentences(flags, message):
  with pytest.raises(UserError, match=message):
    dry_run(skypilot, *flags, *COMMAND)


def test_a_machine_without_sky_is_a_sentence(monkeypatch):
  monkeypatch.setenv('PATH', '/nowhere')
  with pytest.raises(UserError, match='there is no sky here; pip install skypilot'):
    skypilot.main([*CPU, *COMMAND])

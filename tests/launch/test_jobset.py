"""launch/jobset.py: what it applies is a JobSet, runs our processes, and knows their exit codes."""

import copy
import re
import subprocess
import sys

import jobset
import jsonschema
import kubernetes_validate
import pytest
import schemas
import tiny_run
import yaml
from called import dry_run

from armd_jax.errors import UserError

JOBSET = [sys.executable, str(tiny_run.ROOT / 'launch' / 'jobset.py')]
PLATFORMS = {
  'tpu': ['--accelerator=tpu-v5p-slice', '--topology=2x2x4'],
  'gpu': ['--platform=gpu', '--accelerator=nvidia-h100-80gb'],
  'cpu': ['--platform=cpu'],
}


def flags(platform, *more):
  sizes = ['--processes=4', '--devices-per-process=4', '--image=IMAGE', '--max-restarts=9']
  command = ['--', 'python', '-m', 'armd_jax.train', '--workdir=/runs/a b']
  return [*sizes, *PLATFORMS[platform], '--volume=runs:/runs', *more, *command]


def manifest(platform, *more):
  head, *lines, end = dry_run(jobset, *flags(platform, *more)).splitlines()
  assert (head, end) == ("kubectl apply --filename=- <<'END'", 'END')
  return yaml.safe_load('\n'.join(lines))


def container(jobset_):
  pod = jobset_['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
  return pod, pod['containers'][0]


@pytest.mark.parametrize('platform', PLATFORMS)
def test_meets_the_schemas(platform):
  schemas.check_jobset(manifest(platform))


@pytest.mark.parametrize(
  ('path', 'value'),
  [
    (['spec', 'failurePolicy', 'rules', 0, 'action'], 'Fail'),
    (['spec', 'failurePolicy', 'restarts'], 3),
    (['spec', 'replicatedJobs', 0, 'template', 'spec', 'completionMode'], 7),
    (['spec', 'replicatedJobs', 0, 'template', 'spec', 'template', 'spec', 'volume'], []),
  ],
)
def test_the_schemas_refuse(path, value):
  """The check is one: a wrong value and an unknown field, outside and inside the Job."""
  broken = copy.deepcopy(manifest('tpu'))
  *parents, last = path
  node = broken
  for key in parents:
    node = node[key]
  node[last] = value
  with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
    schemas.check_jobset(broken)


def test_a_jobset_is_not_elastic():
  with pytest.raises(UserError, match='a JobSet has all of its processes or none; leave it out'):
    dry_run(jobset, *flags('cpu', '--elastic=2'))


def test_tpu_slice():
  spec = manifest('tpu')
  pod, train = container(spec)
  assert train['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5p-slice',
    'cloud.google.com/gke-tpu-topology': '2x2x4',
  }
  assert train['command'] == [
    'python', '-m', 'armd_jax.train', '--workdir=/runs/a b', '--cluster=gke', '--num_processes=4',
    '--devices_per_process=4',
  ]  # fmt: skip
  assert {'name': 'JAX_PLATFORMS', 'value': 'tpu'} in train['env']


@pytest.mark.parametrize(
  ('platform', 'resource'), [('gpu', {'nvidia.com/gpu': 4}), ('cpu', {'cpu': 4})]
)
def test_processes_find_the_first(platform, resource):
  """Its host name as JobSet makes it: JOBSET-REPLICATEDJOB-JOB-POD.SUBDOMAIN."""
  spec = manifest(platform, '--name=mine')
  replicated = spec['spec']['replicatedJobs'][0]
  _, train = container(spec)
  host = f'mine-{replicated["name"]}-0-0.{spec["spec"]["network"]["subdomain"]}'
  port = train['ports'][0]['containerPort']
  assert f'--coordinator={host}:{port}' in train['command']
  assert '--process_id=$(JOB_COMPLETION_INDEX)' in train['command']
  job = replicated['template']['spec']
  assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism'] == 4
  assert train['resources']['limits'] == resource


def test_user_errors_end_it_and_all_else_restarts_all_pods():
  spec = manifest('tpu')
  job = spec['spec']['replicatedJobs'][0]['template']['spec']
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [1]
  assert rule['onExitCodes']['containerName'] == container(spec)[1]['name']
  (policy,) = spec['spec']['failurePolicy']['rules']
  assert policy['onJobFailureReasons'] == ['PodFailurePolicy'] and policy['action'] == 'FailJobSet'
  assert spec['spec']['failurePolicy']['maxRestarts'] == 9
  assert job['backoffLimit'] == 0
  pod, _ = container(manifest('tpu', '--grace=77'))
  assert pod['terminationGracePeriodSeconds'] == 77 and pod['restartPolicy'] == 'Never'


def test_xpk_knows_it():
  metadata = manifest('tpu', '--name=mine', '--queue=mine-too', '--namespace=lab')['metadata']
  assert metadata['namespace'] == 'lab'
  assert metadata['labels'] == {
    'xpk.google.com/workload': 'mine',
    'kueue.x-k8s.io/queue-name': 'mine-too',
  }


def test_applies_what_it_prints(tmp_path):
  """A kubectl that keeps what it is given."""
  kubectl = tmp_path / 'kubectl'
  kubectl.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/flags; cat > {tmp_path}/given; exit 3\n')
  kubectl.chmod(0o755)
  path = {'PATH': f'{tmp_path}:/usr/bin:/bin'}
  done = subprocess.run([*JOBSET, *flags('tpu')], env=path)
  assert done.returncode == 3
  assert (tmp_path / 'flags').read_text() == 'apply --filename=-\n'
  assert yaml.safe_load((tmp_path / 'given').read_text()) == manifest('tpu')


@pytest.mark.parametrize(
  ('platform', 'more', 'message'),
  [
    ('tpu', ['--topology=4x4x4'], '4x4x4 has 64 chips, but 4 processes of 4 devices need 16'),
    ('tpu', ['--topology=large'], 'write AxB or AxBxC'),
    ('tpu', ['--topology='], 'write one for tpu'),
    ('gpu', ['--topology=4x4'], 'none for gpu and cpu'),
    ('gpu', ['--accelerator='], 'write the kind of node'),
    ('cpu', ['--accelerator=x'], 'none for cpu'),
    ('cpu', ['--volume=runs'], 'write CLAIM:PATH'),
  ],
)
def test_bad_input_is_a_sentence(platform, more, message):
  with pytest.raises(UserError, match=re.escape(message)):
    dry_run(jobset, *flags(platform, *more))


def test_bad_input_ends_the_program():
  done = tiny_run.run([*JOBSET, '--dry-run', *flags('cpu', '--volume=runs')])
  assert done.returncode == 1 and not done.stdout
  assert done.stderr == "error: --volume is 'runs'; write CLAIM:PATH, like runs:/runs\n"


def test_dockerfile_copies_what_is_there():
  """Every source it copies exists, and what setup.py reads is among them."""
  text = (tiny_run.ROOT / 'launch' / 'Dockerfile').read_text()
  copied = [name for line in re.findall(r'^COPY (.*) \S+$', text, re.M) for name in line.split()]
  assert all((tiny_run.ROOT / name).exists() for name in copied)
  assert {'setup.py', 'pyproject.toml', 'README.md', 'armd_jax'} <= set(copied)

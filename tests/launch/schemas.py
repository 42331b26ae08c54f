"""What Kubernetes and its JobSet extension accept, as far as they publish it.

The Job inside a JobSet is checked against Kubernetes' own schema; around it, the fields of
jobset.x-k8s.io/v1alpha2 as its reference describes them, no others allowed.
"""

from __future__ import annotations

import jsonschema
import kubernetes_validate

_NAME = {'type': 'string', 'pattern': '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', 'maxLength': 63}
_STRINGS = {'type': 'object', 'additionalProperties': {'type': 'string'}}
_COUNT = {'type': 'integer', 'minimum': 0}


def _object(required, **properties):
  return {
    'type': 'object',
    'properties': properties,
    'required': required,
    'additionalProperties': False,
  }


_RULE = _object(
  ['name', 'action'],
  name={'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
  action={'enum': ['FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts']},
  onJobFailureReasons={
    'type': 'array',
    'items': {
      'enum': [
        'BackoffLimitExceeded',
        'DeadlineExceeded',
        'FailedIndexes',
        'MaxFailedIndexesExceeded',
        'PodFailurePolicy',
      ]
    },
  },
  targetReplicatedJobs={'type': 'array', 'items': _NAME},
)

JOBSET = _object(
  ['apiVersion', 'kind', 'metadata', 'spec'],
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=_object(['name'], name=_NAME, namespace=_NAME, labels=_STRINGS, annotations=_STRINGS),
  spec=_object(
    ['replicatedJobs'],
    network=_object(
      [],
      enableDNSHostnames={'type': 'boolean'},
      publishNotReadyAddresses={'type': 'boolean'},
      subdomain=_NAME,
    ),
    failurePolicy=_object(
      [],
      maxRestarts=_COUNT,
      restartStrategy={'enum': ['Recreate', 'BlockingRecreate']},
      rules={'type': 'array', 'items': _RULE},
    ),
    replicatedJobs={
      'type': 'array',
      'minItems': 1,
      'items': _object(
        ['name', 'template'],
        name=_NAME,
        replicas=_COUNT,
        template=_object(['spec'], metadata={'type': 'object'}, spec={'type': 'object'}),
      ),
    },
    suspend={'type': 'boolean'},
    ttlSecondsAfterFinished=_COUNT,
  ),
)


# Of SkyPilot's task YAML, as far as its reference (docs.skypilot.co, "SkyPilot YAML") describes the
# fields that the launcher writes, no others allowed.
_SCRIPT = {'type': 'string', 'minLength': 1}
SKYPILOT = _object(
  ['run'],
  name={'type': 'string', 'pattern': '^[a-zA-Z0-9]+(?:[._-]{1,2}[a-zA-Z0-9]+)*$'},
  num_nodes={'type': 'integer', 'minimum': 1},
  workdir=_SCRIPT,
  resources=_object(
    [],
    infra={'type': 'string', 'pattern': '^(\\*|[a-z0-9]+)(/[^/]+){0,2}$'},
    accelerators={
      'type': 'object', 'maxProperties': 1, 'additionalProperties': {'type': 'number'},
    },
    use_spot={'type': 'boolean'},
    job_recovery=_object(
      [],
      strategy={'type': 'string'},
      max_restarts_on_errors=_COUNT,
      recover_on_exit_codes={
        'type': 'array', 'uniqueItems': True,
        'items': {'type': 'integer', 'minimum': 0, 'maximum': 255},
      },
    ),
  ),
  envs={'type': 'object', 'patternProperties': {'^[a-zA-Z_][a-zA-Z0-9_]*$': {'type': 'string'}},
        'additionalProperties': False},
  file_mounts={
    'type': 'object',
    'additionalProperties': _object(
      ['source', 'mode'],
      source=_SCRIPT,
      mode={'enum': ['MOUNT', 'COPY', 'MOUNT_CACHED']},
    ),
  },
  setup=_SCRIPT,
  run=_SCRIPT,
)  # fmt: skip


def check_jobset(manifest: dict) -> None:
  """Raises a ValidationError that names the field."""
  jsonschema.validate(manifest, JOBSET)
  for replicated in manifest['spec']['replicatedJobs']:
    name = f'{manifest["metadata"]["name"]}-{replicated["name"]}-0'
    job = {
      'apiVersion': 'batch/v1',
      'kind': 'Job',
      'metadata': {'name': name},
      'spec': replicated['template']['spec'],
    }
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)

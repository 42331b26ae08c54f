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

"""Applies a job to Kubernetes as a JobSet, one pod a process:

  python launch/jobset.py --processes 4 --devices-per-process 4 --image IMAGE \\
    --accelerator tpu-v5p-slice --topology 2x2x4 --volume runs:/runs -- \\
    python -m armd_jax.train --config=experiments/owt_small.py --workdir=/runs/owt

IMAGE is built from launch/Dockerfile. XPK lists, queues and deletes the job like its own.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import common
import yaml

_REPLICATED_JOB = 'slice-job'  # as XPK names it
_PORT = 8476
_RESOURCE = {'tpu': 'google.com/tpu', 'gpu': 'nvidia.com/gpu', 'cpu': 'cpu'}
_ACCELERATOR_LABEL = {
  'tpu': 'cloud.google.com/gke-tpu-accelerator',
  'gpu': 'cloud.google.com/gke-accelerator',
}


def main(arguments: Sequence[str]) -> int:
  """Applies the JobSet; returns kubectl's exit code."""
  parser = common.parser(__doc__.splitlines()[0], ['tpu', 'gpu', 'cpu'])
  add = parser.add_argument
  add('--image', required=True, help='container image that holds this repository')
  add('--accelerator', default='', help='kind of node, like tpu-v5p-slice or nvidia-h100-80gb')
  add('--topology', default='', help='of a TPU slice, like 2x2x4')
  add('--volume', default='', help='CLAIM:PATH, where a persistent volume is mounted')
  add('--namespace', default='default', help='where the job lives')
  add('--queue', default='multislice-queue', help="Kueue's local queue; XPK's by default")
  parsed = parser.parse_args(arguments)
  try:
    '\n'.join([*parsed.command, *map(str, vars(parsed).values())]).encode()
  except UnicodeEncodeError:
    raise common.UserError(
      'a flag or the command has bytes that are no UTF-8, which YAML cannot hold; give the files '
      'other names'
    ) from None
  text = yaml.safe_dump(
    manifest(
      common.job(parsed),
      image=parsed.image,
      accelerator=parsed.accelerator,
      topology=parsed.topology,
      volume=parsed.volume,
      namespace=parsed.namespace,
      queue=parsed.queue,
    ),
    sort_keys=False,
    width=100,
  )
  if parsed.dry_run:
    common.show(common.here_document('kubectl apply --filename=-', text))
    return common.DONE
  return common.call(['kubectl', 'apply', '--filename=-'], input=text, text=True).returncode


def manifest(
  job: common.Job,
  *,
  image: str,
  accelerator: str,
  topology: str,
  volume: str,
  namespace: str,
  queue: str,
) -> dict[str, Any]:
  """The JobSet.

  Args:
    job: what to run.
    image: of the container.
    accelerator: kind of node; '' for CPU.
    topology: chips of the TPU slice along each axis, AxB or AxBxC; '' for other platforms.
    volume: 'CLAIM:PATH', or ''.
    namespace: of the JobSet.
    queue: Kueue's local queue.
  Raises:
    UserError: a flag is missing, does not fit the platform, or the topology is of another size.
  """
  _check_nodes(job, accelerator, topology)
  common.check_fixed(job, 'a JobSet')
  selector = {_ACCELERATOR_LABEL[job.platform]: accelerator} if accelerator else {}
  if topology:
    selector['cloud.google.com/gke-tpu-topology'] = topology
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace,
    'containers': [_container(job, image)],
  }
  if selector:
    # Hosts of accelerators run one pod each, and their own network is the fast one.
    pod |= {'nodeSelector': selector, 'hostNetwork': True, 'dnsPolicy': 'ClusterFirstWithHostNet'}
  if job.platform == 'gpu':
    pod['tolerations'] = [{'key': 'nvidia.com/gpu', 'operator': 'Exists'}]
  if volume:
    _mount(pod, volume)
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': _metadata(job, namespace, queue),
    'spec': {
      'network': {'enableDNSHostnames': True, 'subdomain': job.name},
      'failurePolicy': {
        'maxRestarts': job.max_restarts,
        # Any other failure restarts all pods.
        'rules': [
          {
            'name': 'userError',
            'action': 'FailJobSet',
            'onJobFailureReasons': ['PodFailurePolicy'],
          }
        ],
      },
      'replicatedJobs': [
        {
          'name': _REPLICATED_JOB,
          'replicas': 1,
          'template': {'spec': _job_spec(job, pod)},
        }
      ],
    },
  }


def _check_nodes(job: common.Job, accelerator: str, topology: str) -> None:
  if bool(accelerator) != (job.platform != 'cpu'):
    raise common.UserError(
      f'--accelerator is {accelerator!r}; write the kind of node for tpu and gpu, none for cpu'
    )
  if bool(topology) != (job.platform == 'tpu'):
    raise common.UserError(f'--topology is {topology!r}; write one for tpu, none for gpu and cpu')
  if not topology:
    return
  if not re.fullmatch(r'[1-9]\d*(x[1-9]\d*){1,2}', topology):
    raise common.UserError(f'--topology is {topology!r}; write AxB or AxBxC, like 2x2x4')
  chips = math.prod(map(int, topology.split('x')))
  if chips != job.processes * job.devices_per_process:
    raise common.UserError(
      f'--topology {topology} has {chips} chips, but {job.processes} processes of '
      f'{job.devices_per_process} devices need {job.processes * job.devices_per_process}; change '
      'one of them'
    )


def _container(job: common.Job, image: str) -> dict[str, Any]:
  # Kubernetes itself would fill in $(NAME), and take $$ for one dollar.
  literal = dataclasses.replace(job, command=tuple(w.replace('$', '$$') for w in job.command))
  if job.platform == 'tpu':
    command = common.on_cluster(literal, 'gke')
  else:
    first = f'{job.name}-{_REPLICATED_JOB}-0-0.{job.name}:{_PORT}'
    # Kubernetes gives the pods of an indexed job this variable, and fills it in.
    command = common.explicit(literal, first, '$(JOB_COMPLETION_INDEX)')
  variables = [{'name': k, 'value': v} for k, v in common.environment(job).items()]
  amount = {_RESOURCE[job.platform]: job.devices_per_process}
  return {
    'name': 'train',
    'image': image,
    'command': command,
    'env': variables,
    'ports': [{'containerPort': _PORT}],
    'resources': {'limits': amount},  # requests are the same by default
  }


def _mount(pod: dict[str, Any], volume: str) -> None:
  claim, _, path = volume.partition(':')
  if not (claim and path.startswith('/')):
    raise common.UserError(f'--volume is {volume!r}; write CLAIM:PATH, like runs:/runs')
  pod['volumes'] = [{'name': 'runs', 'persistentVolumeClaim': {'claimName': claim}}]
  pod['containers'][0]['volumeMounts'] = [{'name': 'runs', 'mountPath': path}]


def _metadata(job: common.Job, namespace: str, queue: str) -> dict[str, Any]:
  result = {
    'name': job.name,
    'namespace': namespace,
    'labels': {'kueue.x-k8s.io/queue-name': queue, 'xpk.google.com/workload': job.name},
  }
  if job.platform == 'tpu':
    topology = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
    result['annotations'] = topology  # one slice, all of it
  return result


def _job_spec(job: common.Job, pod: dict[str, Any]) -> dict[str, Any]:
  on_user_error = {
    'action': 'FailJob',
    'onExitCodes': {'containerName': 'train', 'operator': 'In', 'values': [common.USER_ERROR]},
  }
  return {
    'parallelism': job.processes,
    'completions': job.processes,
    'completionMode': 'Indexed',
    'backoffLimit': 0,  # the JobSet restarts all pods together; one alone could not join the rest
    'podFailurePolicy': {'rules': [on_user_error]},
    'template': {
      'metadata': {'labels': {'xpk.google.com/workload': job.name}},
      'spec': pod,
    },
  }


if __name__ == '__main__':
  common.run(main)

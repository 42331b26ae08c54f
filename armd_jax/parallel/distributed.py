"""Several processes as one job: how they find each other, agree, and stop.

A program that calls `start` before it touches a device (see `cli.OnCluster`) runs alone, or as one
of the processes that Slurm, a Cloud TPU slice, a GKE slice or explicit flags name. `launch/` starts
such processes.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.errors import CRASHED, UserError, sentence

# What each --cluster is called in jax, whose own detection reads the environment.
_JAX_NAMES = {'slurm': 'slurm', 'tpu': 'gcetpu', 'gke': 'gketpu'}
CLUSTERS = ('auto', 'none', *_JAX_NAMES)  # that --cluster names
_SLURM_VARIABLES = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_LOCALID')
_SHUTDOWN_SECONDS = 60
_SECONDS_TO_TELL = 3

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where the processes of a job run, and what each should find there.

  Attributes:
    kind: 'none', 'explicit', 'slurm', 'tpu' (Cloud TPU VMs) or 'gke' (TPU slices on GKE).
    coordinator: HOST:PORT of process 0, if explicit.
    num_processes: processes of the job; 0: as many as the cluster says.
    process_id: this one, if explicit.
    devices_per_process: devices that every process must see; 0: any number.
  """

  kind: str = 'none'
  coordinator: str = ''
  num_processes: int = 0
  process_id: int = -1
  devices_per_process: int = 0


def resolve(given: Cluster, environment: Mapping[str, str]) -> Cluster:
  """Settles the kind of cluster.

  Args:
    given: what the flags say; kind may be 'auto'.
    environment: the process's variables.
  Raises:
    UserError: the flags contradict each other or the environment.
  """
  if given.coordinator or given.process_id >= 0:
    host, _, port = given.coordinator.rpartition(':')
    if not (host and port.isdigit() and 0 <= given.process_id < given.num_processes):
      raise UserError(
        f'--coordinator={given.coordinator} --num_processes={given.num_processes} '
        f'--process_id={given.process_id} name no process; write --coordinator=HOST:PORT and a '
        '--process_id from 0 to --num_processes - 1'
      )
    if given.kind not in ('auto', 'none'):
      raise UserError(
        f'--coordinator and --cluster={given.kind} both say where the processes are; drop one'
      )
    return dataclasses.replace(given, kind='explicit')
  kind = given.kind
  if kind == 'auto':
    if all(name in environment for name in _SLURM_VARIABLES):
      kind = 'slurm' if int(environment['SLURM_NTASKS']) > 1 else 'none'
    else:
      kind = 'gke' if ',' in environment.get('TPU_WORKER_HOSTNAMES', '') else 'none'
  missing = [name for name in _SLURM_VARIABLES if name not in environment]
  if kind == 'slurm' and missing:
    raise UserError(
      f'--cluster=slurm, but {missing[0]} is not set, so this is no step of a Slurm job; start it '
      'with srun or launch/slurm.py'
    )
  if kind == 'none' and given.num_processes > 1:
    raise UserError(
      f'--num_processes is {given.num_processes} but nothing says where they are; write '
      '--coordinator=HOST:PORT and --process_id, or --cluster'
    )
  return dataclasses.replace(given, kind=kind)


def start(cluster: Cluster, timeout: int = 300) -> None:
  """Joins the other processes, checks what each of them sees, and prints it once.

  Call it before anything touches a device.

  Args:
    cluster: from `resolve`.
    timeout: seconds to wait for the others.
  Raises:
    UserError: on the first process at fault; the others exit with code 1. Where some never come,
      all exit with code 70.
  """
  if cluster.kind != 'none':
    _join(cluster, timeout)
  if reason := why_no_devices():
    raise UserError(f'{_here(cluster)}: {reason}')
  devices = jax.devices()
  processes = jax.process_count()
  if cluster.num_processes not in (0, processes):
    _refuse(
      0,
      f'{processes} processes were started, but --num_processes is {cluster.num_processes}; start '
      f'{cluster.num_processes}, or drop the flag',
    )
  # Only now, when all are there: a process that sees too few devices would make others wait.
  counts = np.bincount([d.process_index for d in devices], minlength=processes)
  expected = cluster.devices_per_process or counts[0]
  for process, count in enumerate(counts):
    if count != expected:
      _refuse(
        process,
        f'process {process} on {_host()} sees {count} {devices[0].platform} devices, '
        f'not {expected}; check JAX_PLATFORMS, the driver and what the scheduler grants, or '
        'change --devices_per_process',
      )
  if processes > 1:
    hosts = gather_text(_host())
    if is_first():
      print(table(hosts, devices), flush=True)


def why_no_devices() -> str | None:
  """What keeps jax from its devices, and the fix; None where it has them. Starts them."""
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    # What an assertion means, jax does not tell: a plugin that found no device.
    reason = sentence(error) if str(error) else 'none was found'
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    wanted = f'the devices of JAX_PLATFORMS={platforms}' if platforms else 'its devices'
    return (
      f'jax cannot use {wanted} ({reason}); check the driver and that jax is installed for them, '
      'or set JAX_PLATFORMS=cpu'
    )
  return None


def _join(cluster: Cluster, timeout: int) -> None:
  explicit = cluster.kind == 'explicit'
  local_devices = None
  if cluster.kind == 'slurm' and cluster.devices_per_process:
    # jax gives a Slurm task one GPU; here it takes its share of those that the node shows.
    first = int(os.environ['SLURM_LOCALID']) * cluster.devices_per_process
    local_devices = list(range(first, first + cluster.devices_per_process))
  jax.config.update('jax_enable_preemption_service', False)  # see StopNotice
  # At its own time limit jax aborts the process, so this one ends first, with a sentence.
  limit = threading.Timer(timeout, _give_up, (cluster, timeout))
  limit.daemon = True
  limit.start()
  try:
    jax.distributed.initialize(
      coordinator_address=cluster.coordinator if explicit else None,
      num_processes=cluster.num_processes if explicit else None,
      process_id=cluster.process_id if explicit else None,
      local_device_ids=local_devices,
      cluster_detection_method='deactivate' if explicit else _JAX_NAMES[cluster.kind],
      initialization_timeout=timeout + 60,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
    raise UserError(
      f'{_here(cluster)} cannot join the others: {sentence(error)}; check --cluster and the '
      'flags beside it'
    ) from error
  finally:
    limit.cancel()


def _give_up(cluster: Cluster, timeout: int) -> None:
  print(
    f'error: {_here(cluster)} waited {timeout} s for the other processes; check that all of them '
    'were started and can reach process 0',
    file=sys.stderr,
    flush=True,
  )
  os._exit(CRASHED)


def _here(cluster: Cluster) -> str:
  name = f'process {cluster.process_id}' if cluster.kind == 'explicit' else 'the process'
  return f'{name} on {_host()}'


def _host() -> str:
  return os.environ.get('SLURMD_NODENAME') or socket.gethostname()


def _refuse(process: int, reason: str) -> None:
  """Ends all processes, each of which knows the reason; the one at fault tells it."""
  if jax.process_index() == process:
    raise UserError(reason)
  _leave_after_another()


def table(hosts: list[str], devices: list[jax.Device]) -> str:
  """One line a process: its host and its devices.

  Args:
    hosts: name of every process's host.
    devices: of all processes.
  """
  rows = [('process', 'host', 'devices', 'ids')]
  for process, host in enumerate(hosts):
    own = [d for d in devices if d.process_index == process]
    ids = ','.join(str(d.id) for d in own)
    rows.append((str(process), host, f'{len(own)} x {own[0].device_kind}', ids))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join('  '.join(map(str.ljust, row, widths)).rstrip() for row in rows)


def is_first() -> bool:
  """Whether this process writes logs, pictures and config.json: one of a job does."""
  return jax.process_index() == 0


def gather_text(text: str) -> list[str]:
  """One short text (up to 100 bytes of UTF-8) of every process, by process; all must call it."""
  # Arrays of one shape, the only thing that processes can gather.
  bytes_100 = np.zeros(100, np.uint8)
  encoded = text.encode()[:100]
  bytes_100[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  rows = np.atleast_2d(multihost_utils.process_allgather(bytes_100))
  return [row.tobytes().rstrip(b'\0').decode(errors='replace') for row in rows]


def together(work: Callable[[], T]) -> T:
  """Runs `work` on every process; where it fails on one, all end, and none waits for ever.

  Raises:
    UserError: `work` did, on this process; only the first such process tells, the others exit
      with code 1.
  """
  result = error = None
  try:
    result = work()
  except UserError as raised:
    error = raised
  if jax.process_count() > 1:
    # Every process comes here, whatever happened to it: if one raised at once, the others would
    # wait for it in their next collective.
    failed_P = multihost_utils.process_allgather(np.array(error is not None))
    if failed_P.any() and jax.process_index() != np.argmax(failed_P):
      _leave_after_another()
  if error is not None:
    raise error
  return result  # type: ignore[return-value]


def _leave_after_another() -> None:
  # The end of process 0 is that of all, so the one at fault gets the time to say what is wrong.
  time.sleep(_SECONDS_TO_TELL)
  leave(1)


def leave(code: int) -> None:
  """Exits with `code`; of several processes, without waiting for the others as jax would."""
  if jax.distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  sys.exit(code)


class StopNotice:
  """SIGTERM, which schedulers send before they take a machine away.

  One process that gets it is enough: all of them learn of it, and stop after the same step.

  Args:
    mesh: of the devices of all processes.
  """

  def __init__(self, mesh: Mesh):
    self._noticed = False
    self._previous = signal.signal(signal.SIGTERM, self._notice)
    # Not jax's own preemption service: it counts steps, and while orbax finishes a save in the
    # background it tells the service of an older one, after which a notice can be missed.
    self._devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._asked = np.False_

  def _notice(self, *_: Any) -> None:
    self._noticed = True

  def reached(self) -> bool:
    """Whether to save and stop; to be asked once a step, by every process.

    Of several processes it is what they agreed on at the step before, as the loop reads its
    metrics, so that the devices never wait for the host.
    """
    if jax.process_count() == 1:
      return self._noticed
    local = np.full(len(self._devices.mesh.local_devices), self._noticed)
    asked = jax.make_array_from_process_local_data(self._devices, local)
    agreed, self._asked = bool(self._asked), self._any(asked)
    return agreed

  def close(self) -> None:
    """Gives SIGTERM back its former meaning."""
    signal.signal(signal.SIGTERM, self._previous)

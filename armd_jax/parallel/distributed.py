"""Several processes as one job: how they find each other, agree, and stop.

A program that calls `start` before it touches a device (see `cli.OnCluster`) runs alone, or as one
of the processes that Slurm, a Cloud TPU slice, a GKE slice or explicit flags name. `launch/` starts
such processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import clusters
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.errors import CRASHED, USER_ERROR, MetByAll, UserError, sentence
from armd_jax.parallel import ends, others

# What each --cluster is called in jax, whose own detection reads the environment.
_JAX_NAMES = {'slurm': 'slurm', 'tpu': 'gcetpu', 'gke': 'gketpu'}
CLUSTERS = ('auto', 'none', *_JAX_NAMES)  # that --cluster names
_SLURM_VARIABLES = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_LOCALID')
_SHUTDOWN_SECONDS = 60
_SECONDS_TO_TELL = 10
# Flags that differ between processes, or that the first one alone reads; --config is compared by
# what it holds, where it is used.
_OWN_FLAGS = ('cluster', 'coordinator', 'process_id', 'json')
_PACKAGE = pathlib.Path(__file__).parents[1]

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where the processes of a job run, and what each should find there.

  Attributes:
    kind: 'none', 'explicit', 'slurm', 'tpu' (Cloud TPU VMs) or 'gke' (TPU slices on GKE).
    coordinator: HOST:PORT of process 0, if explicit.
    num_processes: processes of the job; 0: as many as the cluster has.
    process_id: this one, if explicit.
    devices_per_process: devices that every process must see; 0: any number.
    flags: names and values of the program's flags, which all processes must share.
  """

  kind: str = 'none'
  coordinator: str = ''
  num_processes: int = 0
  process_id: int = -1
  devices_per_process: int = 0
  flags: tuple[tuple[str, str], ...] = ()


def shared_flags(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
  """Of all flags of a program, those that its processes must share, as `Cluster.flags`."""
  own = lambda name: name in _OWN_FLAGS or name.partition('.')[0] == 'config'
  return tuple((f'--{name}', str(value)) for name, value in sorted(values.items()) if not own(name))


def resolve(given: Cluster, environment: Mapping[str, str]) -> Cluster:
  """Settles the kind of cluster.

  Args:
    given: what the flags hold; kind may be 'auto'.
    environment: the process's variables.
  Raises:
    UserError: the flags contradict each other or the environment.
  """
  if given.coordinator or given.process_id >= 0:
    is_address = re.fullmatch('.+:([0-9]{1,5})', given.coordinator)
    is_port = is_address and 0 < int(is_address[1]) < 2**16
    if not (is_port and 0 <= given.process_id < given.num_processes):
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
  """Joins the other processes, checks what each of them is and sees, and prints it once.

  Call it before anything touches a device.

  Args:
    cluster: from `resolve`.
    timeout: seconds to wait for the others and for the devices.
  Raises:
    UserError: on the first process at fault; the others exit with code 1. Where the processes are
      not those of one job, on all. Where some never come, all exit with code 70.
  """
  waits = _Waits(cluster, timeout)
  try:
    if cluster.kind != 'none':
      _join(cluster, timeout, waits)
    if reason := why_no_devices():
      raise UserError(f'{_here(cluster)}: {reason}')
    devices = jax.devices()
    _check_counts(cluster, devices)
    if jax.process_count() > 1:  # which takes equal counts
      agree('the code of armd_jax', {'sha256 of the package': package_sha256()})
      agree('flags', dict(cluster.flags))
  finally:
    waits.close()
  if jax.process_count() > 1:
    hosts = gather_text(_host())
    if is_first():
      print(table(hosts, devices), flush=True)


def _check_counts(cluster: Cluster, devices: list[jax.Device]) -> None:
  """Ends all processes where their number, or what one of them sees, is not as it should be."""
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


class _Waits:
  """Ends the process where it waits too long for the others or for its devices.

  At their own time limits jax and its plugins abort the process, or have none.
  """

  def __init__(self, cluster: Cluster, seconds: int):
    self._cluster, self._seconds = cluster, seconds
    self.meeting: others.Meeting | None = None
    self._timer = threading.Timer(seconds, self._give_up)
    self._timer.daemon = True
    self._timer.start()

  def close(self) -> None:
    self._timer.cancel()

  def _give_up(self) -> None:
    waited = f'error: {_here(self._cluster)} waited {self._seconds} s for'
    if self._cluster.kind == 'none':
      ends.leave(
        CRASHED, f'{waited} the devices; end the program that has them, or check the driver'
      )
    missing = self.meeting.missing() if self.meeting else []
    absent = f'{", ".join(map(str, missing))} did not come' if missing else others.missing()
    who = f' ({absent})' if absent else ''
    ends.leave(
      CRASHED,
      f'{waited} the other processes{who}; check that all of them were started and can reach '
      'process 0',
    )


def why_no_devices() -> str | None:
  """What keeps jax from its devices, and the fix; None where it has them. Starts them."""
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    # An assertion without a text of jax means a plugin that found no device.
    reason = sentence(error) if str(error) else 'none was found'
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    wanted = f'the devices of JAX_PLATFORMS={platforms}' if platforms else 'its devices'
    return (
      f'jax cannot use {wanted} ({reason}); check the driver and that jax is installed for them, '
      'or set JAX_PLATFORMS=cpu'
    )
  return None


def _join(cluster: Cluster, timeout: int, waits: _Waits) -> None:
  local_devices = None
  if cluster.kind == 'slurm' and cluster.devices_per_process:
    # jax gives a Slurm task one GPU; here it takes its share of those that the node shows.
    first = int(os.environ['SLURM_LOCALID']) * cluster.devices_per_process
    local_devices = list(range(first, first + cluster.devices_per_process))
  jax.config.update('jax_enable_preemption_service', False)  # see StopNotice
  try:
    if cluster.kind == 'explicit':
      found: Any = (cluster.coordinator, cluster.num_processes, cluster.process_id, local_devices)
    else:
      # As jax would, but before it connects them.
      given = os.environ.get('JAX_COORDINATOR_ADDRESS'), None, None, local_devices
      found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        *given, _JAX_NAMES[cluster.kind], timeout
      )
    address, processes, process, local_devices = found
    if None in (address, processes, process):
      raise ValueError(f'jax finds no {cluster.kind} cluster here')
    waits.meeting = others.Meeting(address, processes, process, _host())
    waits.meeting.hold()
    jax.distributed.initialize(
      coordinator_address=address,
      num_processes=processes,
      process_id=process,
      local_device_ids=local_devices,
      cluster_detection_method='deactivate',
      initialization_timeout=timeout + 60,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except UserError:
    raise
  except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
    raise UserError(
      f'{_here(cluster)} cannot join the others: {sentence(error)}; check --cluster and the '
      'flags beside it'
    ) from error
  others.keep_in_touch(_host())


def _here(cluster: Cluster) -> str:
  name = f'process {cluster.process_id}' if cluster.kind == 'explicit' else 'the process'
  return f'{name} on {_host()}'


def _host() -> str:
  return os.environ.get('SLURMD_NODENAME') or socket.gethostname()


def _refuse(process: int, reason: str) -> None:
  """Ends all processes, each of which knows the reason; the one at fault prints it."""
  if jax.process_index() == process:
    raise UserError(reason)
  leave_after_another()


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


def own_number() -> int:
  """This process's number, which asks no device."""
  return jax_distributed.global_state.process_id


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


def agree(what: str, facts: Mapping[str, Any]) -> None:
  """Compares what must be the same on all processes, each of which must call it.

  Args:
    what: they are, for people.
    facts: values by name, or such mappings of them, that have a text.
  Raises:
    MetByAll: processes differ; the first difference is named, with both values.
  """
  if jax.process_count() == 1:
    return
  encoded = json.dumps(_flat(facts)).encode()
  digests = gather_text(hashlib.sha256(encoded).hexdigest())
  other = next((p for p, digest in enumerate(digests) if digest != digests[0]), None)
  if other is None:
    return
  lengths_P = multihost_utils.process_allgather(np.array(len(encoded)))
  padded = np.zeros(lengths_P.max(), np.uint8)
  padded[: len(encoded)] = np.frombuffer(encoded, np.uint8)
  rows = multihost_utils.process_allgather(padded)
  first, second = (json.loads(rows[p, : lengths_P[p]].tobytes()) for p in (0, other))
  name = next(name for name in [*first, *second] if first.get(name) != second.get(name))
  values = (
    f'{name} is {facts.get(name, "absent")} on process {p}'
    for p, facts in ((0, first), (other, second))
  )
  raise MetByAll(
    f'the processes differ in {what}: {" and ".join(values)}; start all of them with the same'
  )


def _flat(facts: Mapping[str, Any], prefix: str = '') -> dict[str, str]:
  flat: dict[str, str] = {}
  for name, value in facts.items():
    inner = isinstance(value, Mapping)
    flat |= _flat(value, f'{prefix}{name}.') if inner else {f'{prefix}{name}': str(value)}
  return flat


def package_sha256() -> str:
  """Of the source files of this package, hex."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob('*.py')):
    digest.update(f'{path.relative_to(_PACKAGE)}\0'.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()


def together(work: Callable[[], T]) -> T:
  """Runs `work` on every process; where it fails on one, all end, and none waits for ever.

  Raises:
    UserError: `work` did, on this process; only the first such process prints it, the others
      exit with code 1.
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
      leave_after_another()
  if error is not None:
    raise error
  return result  # type: ignore[return-value]


def leave_after_another() -> NoReturn:
  """Ends a process that has nothing to print, as soon as the one at fault has printed it."""
  ends.expect(USER_ERROR)
  time.sleep(_SECONDS_TO_TELL)  # before which `others.Touch` ends it
  ends.leave(USER_ERROR)


class StopNotice:
  """SIGTERM, which schedulers send before they take a machine away, and Ctrl-C.

  One process that gets it is enough: all of them learn of it, and stop after the same step. A
  second Ctrl-C is a KeyboardInterrupt; of a program of ours the end, see `ends`.

  Until it is first asked, both signals keep their meaning.

  Args:
    mesh: of the devices of all processes.
  """

  def __init__(self, mesh: Mesh):
    self._noticed: dict[int, float] = {}  # when they came, on the monotonic clock
    self._previous: dict[int, Any] = {}
    # Not jax's own preemption service: it counts steps, and while orbax finishes a save in the
    # background it gives the service an older one, after which a notice can be missed.
    self._devices = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
    self._asked = np.False_

  def _hear(self) -> None:
    if not self._previous:
      self._previous = {
        number: signal.signal(number, self._notice)
        for number in (signal.SIGTERM, signal.SIGINT)
        # A command in the background does not get the terminal's Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN
      }

  def _notice(self, number: int, _: Any) -> None:
    if number == signal.SIGINT in self._noticed:
      raise KeyboardInterrupt
    self._noticed.setdefault(number, time.monotonic())

  @property
  def cause(self) -> str:
    """What to call the reason to stop, for people."""
    return 'Ctrl-C' if signal.SIGINT in self._noticed else 'SIGTERM'

  def reached(self) -> bool:
    """Whether to save and stop; to be asked once a step, by every process.

    Of several processes it is what they agreed on at the step before, as the loop reads its
    metrics, so that the devices never wait for the host.
    """
    self._hear()
    if jax.process_count() == 1:
      return bool(self._noticed)
    local = np.full(len(self._devices.mesh.local_devices), bool(self._noticed))
    asked = jax.make_array_from_process_local_data(self._devices, local)
    agreed, self._asked = bool(self._asked), self._any(asked)
    return agreed

  def came(self) -> float | None:
    """When the first signal came to any of the processes, each of which must call this, on this
    one's monotonic clock; None if none did."""
    now = time.monotonic()
    since = now - min(self._noticed.values()) if self._noticed else -1.0
    longest = float(np.max(multihost_utils.process_allgather(np.array(since, np.float32))))
    return now - longest if longest >= 0 else None

  def close(self) -> None:
    """Gives both signals back their former meaning."""
    for number, handler in self._previous.items():
      signal.signal(number, handler)

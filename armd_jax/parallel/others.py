"""The other processes of a job: this one meets them before jax starts, informs them when it fails,
and learns when one of them fails or no longer answers.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import threading
import time
from typing import Any

from jax._src import distributed as jax_distributed

from armd_jax.errors import STOPPED, USER_ERROR, UserError
from armd_jax.parallel import ends

_SECONDS_TO_GREET = 2
_SECONDS_FOR_LATE_ONES = 10  # to learn, too, that the job was refused
_SECONDS_TO_PART = 5
_SECONDS_TO_EXIT = 0.2  # from the last thing that a process does to its end
_SECONDS_BETWEEN_LOOKS = 0.5  # at what others have sent
_SECONDS_TO_HEAR = 4 * _SECONDS_BETWEEN_LOOKS  # of the end of another one
_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_OF_SILENCE = 5.0  # after which a process does not answer
# Keys of what is sent to all, and of what process 0 alone reads.
_TOLD, _BEATS = 'armd_jax/told', 'armd_jax/beats'
_ENDED, _SILENT, _FIRST = f'{_TOLD}/ended', f'{_TOLD}/silent', f'{_TOLD}/host of process 0'
_AGAIN = 'start all of them again to go on from the last checkpoint'
_MAX_BYTES = 2**16


class Meeting:
  """All processes of a job, before jax connects them.

  jax ends with a signal and a stack dump where its port is in use, and where a process comes twice
  or for a job of another size one of them aborts and the others wait for ever. So process 0 first
  listens on that port itself, and the others send it their numbers.

  Args:
    address: HOST:PORT of process 0.
    processes: of the job.
    process: this one.
    host: its machine, for people.
  """

  def __init__(self, address: str, processes: int, process: int, host: str):
    name, _, port = address.rpartition(':')
    self._address = name.strip('[]'), int(port)
    self._processes, self._process, self._host = processes, process, host
    self._met: dict[int, tuple[socket.socket, str]] = {}  # connection and host, by process

  def missing(self) -> list[int]:
    """Who has not come, as process 0 knows it."""
    return sorted({*range(1, self._processes)} - {*self._met}) if self._process == 0 else []

  def hold(self) -> None:
    """Returns once all are there; waits for them without end.

    Raises:
      UserError: on all processes, if there are two of a number, or they disagree about how many
        there are; on process 0, if its port is in use.
    """
    if self._process == 0:
      self._receive()
    else:
      self._greet()

  def _receive(self) -> None:
    port = self._address[1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
      listener = socket.create_server(
        ('', port), family=family, backlog=self._processes, dualstack_ipv6=both
      )
    except OSError as error:
      raise UserError(
        f'process 0 on {self._host} cannot listen on port {port} '
        f'({os.strerror(error.errno)}); '  # type: ignore[arg-type]
        'end what does, or give all processes another port'
      ) from error
    with listener:
      while len(self._met) < self._processes - 1:  # of those that have not died meanwhile
        if reason := self._accept(listener):
          self._refuse(listener, reason)
        self._met = {p: caller for p, caller in self._met.items() if _is_open(caller[0])}
      for connection, _ in self._met.values():
        _send(connection, {'refused': ''})
        connection.close()

  def _accept(self, listener: socket.socket) -> str:
    """Hears who calls; returns why the job cannot be, if so."""
    connection, _ = listener.accept()
    hello = _receive_line(connection, _SECONDS_TO_GREET)
    if not hello.keys() >= {'process', 'processes', 'host'}:  # a stranger
      connection.close()
      return ''
    process, processes, host = hello['process'], hello['processes'], hello['host']
    earlier = self._met.get(process)
    reason = ''
    if processes != self._processes:
      reason = (
        f'process {process} on {host} was started with --num_processes={processes}, process 0 on '
        f'{self._host} with {self._processes}; give all the same'
      )
    elif earlier and _is_open(earlier[0]):
      reason = (
        f'two processes were started with --process_id={process}, on {earlier[1]} and on {host}; '
        'give each one of its own'
      )
    # By the number of connections, so that a second one of a number learns of its refusal, too.
    self._met[len(self._met) + self._processes if reason else process] = connection, host
    return reason

  def _refuse(self, listener: socket.socket, reason: str) -> None:
    deadline = time.monotonic() + _SECONDS_FOR_LATE_ONES
    told: set[int] = set()
    while True:
      for key, (connection, _) in self._met.items():
        if key not in told:
          _send(connection, {'refused': reason})
      told |= self._met.keys()
      listener.settimeout(max(deadline - time.monotonic(), 0.01))
      if len(told) >= self._processes - 1:
        break
      try:
        self._accept(listener)
      except TimeoutError:
        break
    raise UserError(reason)

  def _greet(self) -> None:
    hello: dict[str, str | int] = {
      'process': self._process,
      'processes': self._processes,
      'host': self._host,
    }
    while True:
      try:
        with socket.create_connection(self._address, timeout=_SECONDS_TO_GREET) as connection:
          _send(connection, hello)
          answer = _receive_line(connection, None)
      except OSError:  # process 0 is not there yet; `distributed.start` limits how long to wait
        answer = {}
      if answer.get('refused'):
        raise UserError(answer['refused'])
      if 'refused' in answer:
        return
      time.sleep(0.2)


def _send(connection: socket.socket, message: dict[str, str | int]) -> None:
  try:
    connection.sendall(json.dumps(message).encode() + b'\n')
  except OSError:  # it has ended; jax waits for it, and `distributed.start` limits that
    return


def _receive_line(connection: socket.socket, seconds: float | None) -> dict[str, Any]:
  """A message; {} of one who speaks another language, or not at all."""
  connection.settimeout(seconds)
  try:
    with connection.makefile('rb') as file:
      message = json.loads(file.readline(_MAX_BYTES))
  except (OSError, ValueError):
    return {}
  return message if isinstance(message, dict) else {}


def _is_open(connection: socket.socket) -> bool:
  connection.settimeout(0)
  try:
    return connection.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False


class Touch:
  """Has the end of one process be that of all, each with its own sentence or none, and notices
  those that do not answer.

  To be made once jax has connected them. Every process beats, that is, counts under its own name in
  jax's store of keys, which process 0 serves. Process 0 informs all others whose count does not
  change.

  Args:
    host: this process's, for people.
  """

  def __init__(self, host: str):
    state = jax_distributed.global_state
    self._client, self._process = state.client, state.process_id  # type: Any, int
    self._processes, self._host = state.num_processes, host
    self._count = 0
    now = time.monotonic()
    self._answered = now  # process 0, to this one
    self._first_host = ''
    # The latest count of each that process 0 has read, and since when; and who stopped counting.
    self._beats = {process: ('', now) for process in range(self._processes)}
    self._silent: set[int] = set()
    self._missing = ''
    self._closed = threading.Event()
    self._listener = threading.Thread(target=self._listen, daemon=True)
    ends.before_leaving(self._part)
    ends.leave_if_aborted(self._lost)
    # Before jax takes leave of the others, which is the end of its client.
    atexit.register(self._close)
    self._listener.start()

  def missing(self) -> str:
    """Who does not answer, as 'process 2 on n2 does not answer'; '' where all do."""
    if self._first_is_silent():
      return _does_not_answer([_named(0, self._first_host)])
    return self._missing

  def _first_is_silent(self) -> bool:
    return self._process > 0 and time.monotonic() - self._answered > _SECONDS_OF_SILENCE

  def _lost(self) -> str:
    here = _named(self._process, self._host)
    if missing := self.missing():
      return f'error: {here} lost another one: {missing}; {_AGAIN}'
    return f'error: {here} lost another one; see what the first to end says, and {_AGAIN}'

  def _listen(self) -> None:
    next_beat = 0.0
    while not self._closed.wait(_SECONDS_BETWEEN_LOOKS):
      try:
        if (now := time.monotonic()) >= next_beat:
          self._beat(now)
          next_beat = now + _SECONDS_BETWEEN_BEATS
        told = dict(self._client.key_value_dir_get(_TOLD))
      except RuntimeError:  # process 0 is gone, which jax's own thread notices and ends this one
        continue
      self._answered = time.monotonic()
      self._missing, self._first_host = told.pop(_SILENT, ''), told.pop(_FIRST, '')
      for key, value in told.items():
        process = int(key.rpartition('/')[2])
        if process != self._process:
          code, _, host = value.partition(' ')
          ends.leave(int(code), self._ended(_named(process, host), int(code)))

  def _ended(self, who: str, code: int) -> str:
    if code in (USER_ERROR, STOPPED):  # of which it has printed a sentence
      return ''
    if missing := self.missing():
      return f'error: {who} ended with exit code {code}, since {missing}; {_AGAIN}'
    return f'error: {who} ended with exit code {code}; see what it says, and {_AGAIN}'

  def _beat(self, now: float) -> None:
    self._count += 1
    self._client.key_value_set(f'{_BEATS}/{self._process}', f'{self._count} {self._host}', True)
    if self._process > 0:
      return
    self._client.key_value_set(_FIRST, self._host, True)
    for key, value in self._client.key_value_dir_get(_BEATS):
      process = int(key.rpartition('/')[2])
      if self._beats[process][0] != value:
        self._beats[process] = value, now
    silent = {p for p, (_, since) in self._beats.items() if now - since > _SECONDS_OF_SILENCE}
    if silent != self._silent:
      self._silent = silent
      hosts = {process: self._beats[process][0].partition(' ')[2] for process in sorted(silent)}
      text = _does_not_answer([_named(*who) for who in hosts.items()]) if hosts else ''
      self._client.key_value_set(_SILENT, text, True)

  def _part(self, code: int) -> None:
    if self._first_is_silent():  # who else would pass it on
      return
    # In a thread, since process 0 may have been stopped just now and never answer.
    telling = threading.Thread(target=self._tell, args=(code,), daemon=True)
    telling.start()
    telling.join(_SECONDS_TO_PART)

  def _tell(self, code: int) -> None:
    deadline = time.monotonic() + _SECONDS_TO_PART
    try:
      self._client.key_value_set(f'{_ENDED}/{self._process}', f'{code} {self._host}', True)
      # With process 0 ends what jax's clients are connected to, so it is the last to go.
      after = {*range(1, self._processes)} - self._silent if self._process == 0 else ()
      for other in after:
        left = max(deadline - time.monotonic(), 0.001)
        self._client.blocking_key_value_get(f'{_ENDED}/{other}', int(1000 * left))
      if self._process == 0:
        time.sleep(_SECONDS_TO_EXIT)
    except RuntimeError:  # one of them is lost, or too busy; there is nothing left to wait for
      return

  def _close(self) -> None:
    self._closed.set()
    self._listener.join(_SECONDS_TO_PART)  # it may wait for process 0, which was stopped


_touch: Touch | None = None


def keep_in_touch(host: str) -> None:
  """Makes the `Touch` of this process."""
  global _touch
  _touch = Touch(host)


def missing() -> str:
  """Who of this process's job does not answer, see `Touch.missing`; '' of a process alone."""
  return _touch.missing() if _touch else ''


def hear() -> None:
  """Returns after a moment, in which the end of another process, if there was one, ends this one.

  To be called with an error in hand: that another one has ended, in whatever way, breaks what all
  compute together at once, and its sentence comes only then.
  """
  if _touch:
    time.sleep(_SECONDS_TO_HEAR)


def _named(process: int, host: str) -> str:
  return f'process {process} on {host}' if host else f'process {process}'


def _does_not_answer(who: list[str]) -> str:
  return f'{" and ".join(who)} {"does" if len(who) == 1 else "do"} not answer'

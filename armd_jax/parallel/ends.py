"""How a process ends: within seconds, whatever its threads still wait for.

Python would first join every thread that is no daemon, and jax would wait for the other processes:
orbax's threads wait five minutes for a folder that could not be made, and a process that has failed
keeps all others from their barrier.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from armd_jax.errors import CRASHED, INTERRUPTED, STOPPED, UserError

# From Ctrl-C to the end of a process whose main thread does not come out of its call, or whose
# `finally` clauses wait.
_SECONDS_TO_UNWIND = 5
_BY_CTRL_C = 'stopped by Ctrl-C; the same command starts again, or goes on from what is saved'

# Whoever holds it ends the process; it is never released. A signal's handler may take it twice.
_ending = threading.RLock()
_code: int | None = None
_partings: list[Callable[[int], None]] = []
_listening = threading.Event()
_abort_handlers = []  # type: list[Any]  # which C calls, and Python must not collect


def before_leaving(part: Callable[[int], None]) -> None:
  """Has `leave` call this with the exit code, last of all; it must return within seconds."""
  _partings.append(part)


def leave(code: int, sentence: str = '') -> NoReturn:
  """Ends the process now, from any thread; of several calls the first counts.

  Args:
    code: the exit code.
    sentence: printed to stderr.
  """
  global _code
  _ending.acquire()
  _code = code
  try:
    if sentence:
      print(sentence, file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in multiprocessing.active_children():
      child.kill()
    for part in _partings:
      part(code)
  finally:  # a closed pipe or a second Ctrl-C changes nothing: this is the end
    os._exit(code)


def leave_if_aborted(tell: Callable[[], str]) -> None:
  """From now on an abort by a library, which would be a signal and a dump, is an end of ours.

  jax's coordination client aborts the process, from a thread of its own, as soon as it learns that
  another process is lost, and offers Python no other way to notice it.

  Args:
    tell: gives a sentence, which is printed to stderr unless the process is being ended already, or
      expects to be.
  """

  @ctypes.CFUNCTYPE(None, ctypes.c_int)
  def handler(_: int) -> None:
    if _code is None:
      print(tell(), file=sys.stderr, flush=True)
    os._exit(CRASHED if _code is None else _code)

  _abort_handlers.append(handler)
  # Python's own `signal` would only note the signal, after whose handler abort() ends the process.
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal(int(signal.SIGABRT), handler)


def expect(code: int) -> None:
  """From now on the end of another process is the end of this one, with this code and no sentence:
  that one has printed a sentence, or will. It may be gone before this one has left by itself."""
  global _code
  _code = code


# ----- signals


class _AtOnce:
  """A signal's handler that ends the process, whatever its main thread computes or waits for."""

  def __init__(self, sentence: str):
    self._sentence = sentence

  def __call__(self, *_: Any) -> None:
    if not _listening.is_set():
      raise SystemExit(STOPPED)
    self.leave()

  def leave(self) -> NoReturn:
    leave(STOPPED, self._sentence)


@contextlib.contextmanager
def stopping_at_once(sentence: str) -> Iterator[None]:
  """While the block runs, SIGTERM ends the process with `STOPPED`, unless another handler is set.

  In a program that does not listen (see `limit_interrupts`) the signal is a SystemExit, as soon as
  the main thread notices it.

  Args:
    sentence: printed to stderr.
  """
  previous = signal.getsignal(signal.SIGTERM)
  if previous is not signal.SIG_IGN:
    signal.signal(signal.SIGTERM, _AtOnce(sentence))
  try:
    yield
  finally:
    if previous is not signal.SIG_IGN:
      signal.signal(signal.SIGTERM, previous)


def interrupted() -> NoReturn:
  """Ends a process that Ctrl-C stopped, with its sentence."""
  leave(INTERRUPTED, _BY_CTRL_C)


def leave_on_interrupt() -> None:
  """Has Ctrl-C end the process at once, as long as there is nothing to tidy up."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: interrupted())


def limit_interrupts() -> None:
  """Ctrl-C is a KeyboardInterrupt again, which has seconds to unwind; a second one ends at once.

  A main thread that computes or compiles notices neither, nor a SIGTERM that
  stops it at once, so a thread of its own listens.
  """
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of a command in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
  _listening.set()
  read, write = os.pipe()
  os.set_blocking(write, False)
  signal.set_wakeup_fd(write, warn_on_full_buffer=False)
  threading.Thread(target=_listen, args=(read,), daemon=True).start()


def _listen(read: int) -> None:
  interrupts = 0
  while numbers := os.read(read, 64):
    for handler in map(signal.getsignal, set(numbers)):
      if isinstance(handler, _AtOnce):
        handler.leave()
    interrupts += numbers.count(signal.SIGINT)
    if interrupts > 1:
      interrupted()
    # Where another handler is in place, the first one is its own: training saves.
    if interrupts and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
      late = threading.Timer(_SECONDS_TO_UNWIND, interrupted)
      late.daemon = True
      late.start()


def run(command: Sequence[str]) -> int:
  """Runs a command to its end and returns its exit code; a signal that asks for the end of this
  process is passed on once, and has effect here as soon as the command has saved and ended.

  Raises:
    KeyboardInterrupt: it was stopped by Ctrl-C.
    SystemExit: by another signal.
    UserError: it cannot be started.
  """
  child: subprocess.Popen[bytes] | None = None
  noticed: list[int] = []
  to_pass_on: list[int] = []

  def pass_on() -> None:
    while child is not None and to_pass_on:
      child.send_signal(to_pass_on.pop())

  def notice(number: int, _: Any) -> None:
    noticed.append(number)
    to_pass_on.append(number)
    pass_on()

  def kill(_: int) -> None:
    if child is not None and child.poll() is None:
      os.killpg(child.pid, signal.SIGKILL)

  numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
  heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
  # Before the command starts: a signal between the two would end this process alone.
  previous = {number: signal.signal(number, notice) for number in heard}
  _partings.append(kill)
  try:
    # In a group of its own: a terminal's Ctrl-C would otherwise come to it a second time.
    try:
      child = subprocess.Popen(command, process_group=0)
    except OSError as error:
      reason = f'{command[0]!r} cannot be started ({error.strerror})'
      raise UserError(f'{reason}; give another command') from error
    pass_on()
    code = child.wait()
  finally:
    _partings.remove(kill)
    for number, handler in previous.items():
      signal.signal(number, handler)
  if signal.SIGINT in noticed:
    raise KeyboardInterrupt
  if noticed:
    sys.exit(128 + noticed[0])
  return code

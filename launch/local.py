"""Runs a job's processes on this machine:

  python launch/local.py --processes 4 --devices-per-process 2 -- \\
    python -m armd_jax.train --config=experiments/quickstart.py --workdir=work/four \\
    --config.train.batch_size=8

Every line they print starts with the process's number. If one ends with an error, the others are
ended too and its exit code is the job's. SIGTERM and Ctrl-C let them save; a second one does not.
With this launcher end all of them, however it ended. With --elastic every start takes as many as
there are devices for, cores where these are CPUs. Of GPUs, those that CUDA_VISIBLE_DEVICES names,
where it is set, are shared out, and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO

import common

# Kills the process groups whose numbers it has read, once nobody can write to it any more.
_GUARD = 'while read -r group; do all="$all -$group"; done; kill -9 $all'
_VISIBLE = 'CUDA_VISIBLE_DEVICES'
# What it names a GPU by: a number or a UUID, or that of a part of one. Anything else, such as -1 or
# nothing, ends the list, as it does for CUDA.
_is_gpu = re.compile(r'[0-9]+|(GPU|MIG)-\S+').fullmatch
# Once a process has crashed the others cannot save; they get this long to print what they saw.
_SECONDS_AFTER_A_CRASH = 5


def main(arguments: Sequence[str]) -> int:
  """Runs the job, again after crashes; returns its exit code."""
  parser = common.parser(__doc__.splitlines()[0], ['cpu', 'gpu'])
  parser.add_argument(
    '--port', type=common.at_least(0), default=0, help='of process 0; 0 takes a free one'
  )
  parsed = parser.parse_args(arguments)
  if parsed.port >= 2**16:
    raise common.UserError(f'--port is {parsed.port}; write one below {2**16}')
  job = common.job(parsed)
  restarts = 0
  while True:
    port = parsed.port or _free_port()
    devices = _devices(job)
    now = _with_what_is_there(job, devices)
    processes = [_process(now, port, index, devices) for index in range(now.processes)]
    if parsed.dry_run:
      common.show(' &\n'.join([common.shell_line(*p) for p in processes]) + ' &\nwait')
      return common.DONE
    code, told_to_stop = asyncio.run(_Running(job.grace).run(processes))
    if told_to_stop or not common.starts_again(code, restarts, job):
      return code
    restarts += code not in common.TOLD_TO_STOP
    _say(f'the job ended with exit code {code} and is started again')


def _with_what_is_there(job: common.Job, devices: Sequence[str]) -> common.Job:
  """The job with as many processes as there are devices for, where that is asked for.

  Raises:
    UserError: there are too few.
  """
  count = min(job.processes, len(devices) // job.devices_per_process)
  is_given = job.platform == 'gpu' and _VISIBLE in os.environ
  where = f' in {_VISIBLE}={os.environ[_VISIBLE]!r}' if is_given else ''
  if not job.elastic:
    if is_given and count < job.processes:
      raise common.UserError(
        f'there are {len(devices)} devices{where}, too few for --processes {job.processes} with '
        f'{job.devices_per_process} each; name more of them there, or write less'
      )
    return job
  if count < job.elastic:
    raise common.UserError(
      f'there are {len(devices)} devices{where}, too few for --elastic {job.elastic} processes of '
      f'{job.devices_per_process}; write less'
    )
  # Told to every process, since all must know how many they are.
  return dataclasses.replace(job, processes=count, elastic=0)


def _devices(job: common.Job) -> list[str]:
  """What the devices for the processes are called, in their order."""
  if job.platform == 'cpu':
    return [str(core) for core in os.sched_getaffinity(0)]
  given = None
  if _VISIBLE in os.environ:
    names = map(str.strip, os.environ[_VISIBLE].split(','))
    given = list(itertools.takewhile(_is_gpu, names))
  if not job.elastic:
    count = job.processes * job.devices_per_process
    return [str(number) for number in range(count)] if given is None else given
  list_gpus = ['nvidia-smi', '--list-gpus']
  listed = common.call(list_gpus, 'leave out --elastic', capture_output=True, text=True).stdout
  count = len(re.findall(r'^GPU [0-9]+:', listed, re.MULTILINE))  # below each are its parts
  if given is None:
    return [str(number) for number in range(count)]
  is_there = lambda name: int(name) < count if name.isdecimal() else name in listed
  return list(filter(is_there, given))  # one may be lost since the last start


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def _process(
  job: common.Job, port: int, index: int, devices: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
  variables = common.environment(job)
  if job.platform == 'gpu':
    first = index * job.devices_per_process
    variables[_VISIBLE] = ','.join(devices[first : first + job.devices_per_process])
  return common.explicit(job, f'127.0.0.1:{port}', index), variables


def _say(text: str) -> None:
  print(f'launch: {text}', file=sys.stderr, flush=True)


class _Running:
  """The processes of a job, from their start to the end of the last."""

  def __init__(self, grace: int):
    self._grace = grace
    self._signals: list[signal.Signals] = []
    self._processes: list[asyncio.subprocess.Process] = []
    self._deadline: float | None = None  # when all that still run are killed

  async def run(self, commands: list[tuple[list[str], dict[str, str]]]) -> tuple[int, bool]:
    """Returns the job's exit code, and whether a signal asked for its end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
      loop.add_signal_handler(number, self._on_signal, number)
    outputs = []
    # A pipe closes however this process ends; its end would signal only those that it started.
    guard = subprocess.Popen(
      ['sh', '-c', _GUARD],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
    )
    try:
      for index, (command, variables) in enumerate(commands):
        # A session of their own: the terminal's Ctrl-C comes to this process alone.
        process = await asyncio.create_subprocess_exec(
          *command,
          env=os.environ | variables,
          stdin=asyncio.subprocess.DEVNULL,
          stdout=asyncio.subprocess.PIPE,
          stderr=asyncio.subprocess.PIPE,
          start_new_session=True,
        )
        self._processes.append(process)
        guard.stdin.write(f'{process.pid}\n'.encode())
        guard.stdin.flush()
        if self._signals:  # they came while this one was being started
          self._send(signal.SIGTERM)
        prefix = f'[{index}] '.encode()
        outputs.append(asyncio.create_task(_copy(process.stdout, sys.stdout.buffer, prefix)))
        outputs.append(asyncio.create_task(_copy(process.stderr, sys.stderr.buffer, prefix)))
      code = await self._wait()
    except OSError as error:
      raise common.UserError(
        f'cannot run {command[0]!r} ({error.strerror}); give the path of a program after --'
      ) from error
    finally:
      self._send(signal.SIGKILL)
      guard.kill()  # rather than let it, when others may have got these numbers
      guard.wait()
      guard.stdin.close()
    await asyncio.gather(*outputs)
    if self._signals and self._signals[0] == signal.SIGINT:
      code = 128 + signal.SIGINT
    return code, bool(self._signals)

  async def _wait(self) -> int:
    """Returns the code of the first process that failed, once all have ended."""
    code = 0
    while True:
      # Not asyncio's wait, which takes a process for running while one that it left has its output.
      codes = [process.returncode for process in self._processes]
      ended = {i: _exit_code(c) for i, c in enumerate(codes) if c is not None}
      first = max(ended, key=ended.get, default=None)
      if first is not None and ended[first] and not code:
        code = ended[first]
        if not self._signals:
          _say(f'process {first} ended with exit code {code}; ending the others')
          stopped = code in common.TOLD_TO_STOP
          self._end_within(self._grace if stopped else _SECONDS_AFTER_A_CRASH)
      if len(ended) == len(codes):
        return code
      if self._deadline is not None and asyncio.get_running_loop().time() > self._deadline:
        self._send(signal.SIGKILL)
      await asyncio.sleep(0.05)

  def _on_signal(self, number: signal.Signals) -> None:
    self._signals.append(number)
    if len(self._signals) == 1:
      _say(f'{number.name}; the processes get {self._grace} s to save, a second one ends them now')
      self._end_within(self._grace)
    else:
      self._send(signal.SIGKILL)

  def _end_within(self, seconds: float) -> None:
    self._send(signal.SIGTERM)
    self._deadline = asyncio.get_running_loop().time() + seconds

  def _send(self, number: signal.Signals) -> None:
    for process in self._processes:
      with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
          os.killpg(process.pid, number)  # and whatever it started, which it needs until then
        elif process.returncode is None:
          process.send_signal(number)


def _exit_code(returncode: int) -> int:
  return returncode if returncode >= 0 else 128 - returncode


async def _copy(source: asyncio.StreamReader, target: BinaryIO, prefix: bytes) -> None:
  """Copies lines, and the redrawn lines of a progress bar, each with the prefix."""
  rest = b''
  while chunk := await source.read(1 << 16):
    *lines, rest = re.split(rb'(?<=\n)|(?<=\r)(?!\n)', rest + chunk)
    target.writelines(prefix + line for line in lines)
    target.flush()
  if rest:
    target.write(prefix + rest + b'\n')
    target.flush()


if __name__ == '__main__':
  common.run(main)

"""A real browser without a window: Chromium, told what to do through a pipe (DevTools protocol)."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import select
import shlex
import shutil
import subprocess
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
SECONDS = 300  # that a busy machine may take to answer


def find() -> str | None:
  """The path of a Chromium."""
  return next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> tuple[int, int]:
  """A pipe clear of the numbers 3 and 4, at which the browser reads and writes."""
  ends = os.pipe()
  moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
  for end in ends:
    os.close(end)
  return moved


class Page:
  """One page of a browser of its own; `events` holds all that the browser told meanwhile."""

  def __init__(self, profile: pathlib.Path):
    self.events: list[dict[str, Any]] = []
    self._count, self._read = 0, b''
    (from_us, self._to), (self._from, to_us) = _pipe(), _pipe()
    options = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
    # What a browser does of its own accord is no page's doing.
    options += ['--disable-background-networking', '--disable-component-update', '--no-first-run']
    options += [f'--user-data-dir={profile}', '--remote-debugging-pipe', 'about:blank']
    command = shlex.join([find(), *options])
    self._browser = subprocess.Popen(
      ['bash', '-c', f'exec {command} 3<&{from_us} 4>&{to_us}'],
      pass_fds=(from_us, to_us),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    self._session = None
    targets = self.call('Target.getTargets')['targetInfos']
    (target,) = [one['targetId'] for one in targets if one['type'] == 'page'][:1]
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **parameters: Any) -> dict[str, Any]:
    """Calls a method of the protocol and waits for what it returns."""
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': parameters}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._to, json.dumps(message).encode() + b'\0')
    while (answer := self._next()).get('id') != self._count:
      self.events.append(answer)
    assert 'error' not in answer, answer
    return answer['result']

  def _next(self):
    while b'\0' not in self._read:
      if not select.select([self._from], [], [], SECONDS)[0]:
        raise TimeoutError(f'the browser has said nothing for {SECONDS} s')
      new = os.read(self._from, 1 << 16)
      assert new, 'the browser has ended'
      self._read += new
    answer, _, self._read = self._read.partition(b'\0')
    return json.loads(answer)

  def open(self, url: str) -> None:
    """Goes there, and waits until all of it is loaded."""
    self.events.clear()
    self.call('Page.navigate', url=url)
    while not any(event['method'] == 'Page.loadEventFired' for event in self.events):
      self.events.append(self._next())

  def run(self, script: str) -> Any:
    """The value of an expression."""
    answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in answer, answer
    return answer['result'].get('value')

  def press(self, key: str, code: int) -> None:
    """Presses a key and lets it go."""
    for kind in ('rawKeyDown', 'keyUp'):
      self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=code)

  def happened(self, *methods: str) -> list[dict[str, Any]]:
    """What these events told."""
    return [event['params'] for event in self.events if event['method'] in methods]

  def close(self) -> None:
    self._browser.kill()
    self._browser.wait()
    os.close(self._to)
    os.close(self._from)

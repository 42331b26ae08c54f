"""What a stage's process is given, and the rows it writes; imports nothing that could be missing.

A row is a line of JSON, on the disk before the next one is begun. Rows go to two folders: that of
the results, and one that outlives it, because some machines empty the first between two calls. The
last row of a key holds. A row with an `error`, `skipped` for want of time, or with `ok` false is
measured again by the next call; any other is never measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from armd_jax.errors import UserError, sentence
from armd_jax.files import whole

FILE = 'rows.jsonl'
PROCESS = 'process'
NO_TIME = 'no time left'
MIN_SECONDS = 5  # what takes less than this to measure, compiled or not, is rare

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
  """The job of a process.

  Attributes:
    stage: what its rows are filed under.
    out, kept: the two folders of rows.
    until: time at which it should have ended.
    label: added to every key, for what is measured again under other settings.
  """

  stage: str
  out: pathlib.Path
  kept: pathlib.Path
  until: float
  label: str = ''

  def arguments(self) -> list[str]:
    """The command line that `parse` reads."""
    return [f'--{name}={value}' for name, value in vars(self).items()]


def parse(argv: list[str] | None = None) -> tuple[Job, list[str]]:
  """The job of this process, and its own arguments."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--stage', required=True)
  for name in ('out', 'kept'):
    parser.add_argument(f'--{name}', type=pathlib.Path, required=True)
  parser.add_argument('--until', type=float, required=True)
  parser.add_argument('--label', default='')
  parser.add_argument('rest', nargs='*')
  given = vars(parser.parse_args(argv))
  rest = given.pop('rest')
  return Job(**given), rest


def read(folder: pathlib.Path) -> dict[tuple[str, str], Row]:
  """The last row of every (stage, key)."""
  return {(row['stage'], row['key']): row for row in lines(folder).values()}


def lines(folder: pathlib.Path) -> dict[str, Row]:
  """Every row by its line; without a last one that was being written when a process was killed.

  Raises:
    UserError: a line is damaged.
  """
  path, found = folder / FILE, {}
  *whole_lines, _ = path.read_bytes().split(b'\n') if path.exists() else [b'']
  for number, line in enumerate(whole_lines, 1):
    try:
      row = whole.parse_json(line, {'stage': str, 'key': str, 'at': float})
    except ValueError as error:
      raise UserError(
        f'line {number} of {path} is damaged (it {error}); remove that line'
      ) from None
    found[line.decode()] = row
  return found


def merge(
  out: pathlib.Path, kept: pathlib.Path, without: Iterable[str] = (), on_gpu: bool = False
) -> int:
  """Gives both folders the rows of either, but for those of some stages; returns how many.

  Args:
    out, kept: the folders.
    without: stages.
    on_gpu: leaves out a dry run, too, and how the processes of its stages ended, which would be
      taken for measurements that need not be made again.
  Raises:
    UserError: a folder cannot be written.
  """
  every, fresh = lines(kept) | lines(out), set(without)
  is_dry = lambda row: on_gpu and row.get('dry')
  dry = {row['stage'] for row in every.values() if is_dry(row)}

  def is_kept(row: Row) -> bool:
    if row['stage'] == PROCESS:
      return row['key'].partition(':')[0] not in dry | fresh
    return not is_dry(row) and row['stage'] not in fresh

  found = [line for line, row in every.items() if is_kept(row)]
  found.sort(key=lambda line: every[line]['at'])
  for folder in (out, kept):
    try:
      folder.mkdir(parents=True, exist_ok=True)
      whole.write_text(folder / FILE, ''.join(f'{line}\n' for line in found))
    except OSError as error:
      raise UserError(f'cannot write to {folder} ({error.strerror}); give another') from error
  return len(found)


def process_key(stage: str, name: str) -> str:
  """The key of the row, of stage `PROCESS`, that records how a process of a stage ended."""
  return f'{stage}: {name}'


def failed(row: Mapping[str, Any]) -> bool:
  """Whether a row shows something wrong; one that was skipped does not."""
  return 'error' in row or row.get('ok') is False


def _plain(value):
  """JSON has no NaN, and numbers of arrays are made Python's."""
  if value is None or isinstance(value, (bool, str, int)):
    return value
  if isinstance(value, Mapping):
    return {name: _plain(x) for name, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(x) for x in value]
  value = float(value)
  return value if math.isfinite(value) else str(value)


class Rows:
  """The rows of one process.

  Attributes:
    job: of the process.
    device: named in every row.
    dry: whether this is no measurement, but shows that the program runs; noted in every row.
  """

  def __init__(self, job: Job, device: str | None = None, dry: bool = False):
    self.job, self.device, self.dry = job, device, dry
    self._wanting: set[str] = set()

  def of(self, stage: str) -> Rows:
    """Rows of another stage that this process adds, too."""
    return Rows(dataclasses.replace(self.job, stage=stage), self.device, self.dry)

  def left(self) -> float:
    """Seconds."""
    return self.job.until - time.time()

  def full(self, key: str) -> str:
    return key + self.job.label

  def has(self, key: str) -> bool:
    """Whether a row is there that need not be measured again."""
    row = read(self.job.out).get((self.job.stage, self.full(key)))
    return row is not None and not failed(row) and 'skipped' not in row

  def add(self, key: str, **numbers: Any) -> Row:
    """Writes a row."""
    row = {'stage': self.job.stage, 'key': self.full(key), 'at': round(time.time(), 1)}
    row |= {'device': self.device, 'dry': self.dry} | _plain(numbers)
    line = (json.dumps(row) + '\n').encode()
    for folder in (self.job.out, self.job.kept):
      # One write each: lines of processes side by side do not mix.
      file = os.open(folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
      try:
        os.write(file, line)
        os.fsync(file)
      finally:
        os.close(file)
    print(text(row), flush=True)
    wanting = failed(row) or 'skipped' in row
    (self._wanting.add if wanting else self._wanting.discard)(row['key'])
    return row

  def measure(self, key: str, run: Callable[[], Mapping[str, Any]]) -> None:
    """Adds the row that `run` returns, unless it is there or time is over; an error is a row."""
    if self.has(key):
      return
    if self.left() < MIN_SECONDS:
      self.add(key, skipped=NO_TIME)
      return
    try:
      numbers = run()
    except Exception as error:
      traceback.print_exc()
      numbers = {'error': f'{type(error).__name__}: {sentence(error)}'}
    self.add(key, **numbers)

  def exit_code(self) -> int:
    """0 if every row that this process should add is there and is as it should be."""
    return int(bool(self._wanting))


def text(row: Mapping[str, Any]) -> str:
  """A row in a line."""
  hidden = ('stage', 'key', 'at', 'device', 'dry')
  parts = [f'{k}={short(v)}' for k, v in row.items() if k not in hidden and v is not None]
  dry = ' (dry run)' if row['dry'] else ''
  return f'{row["stage"]}: {row["key"]}{dry}: {" ".join(parts)}'


def short(value: Any) -> str:
  """Floats with four significant digits."""
  if isinstance(value, dict):
    return ', '.join(f'{name} {short(x)}' for name, x in value.items())
  if isinstance(value, list):
    return ','.join(map(short, value))
  if not isinstance(value, float):
    return str(value)
  return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.4g}'

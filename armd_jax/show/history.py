"""What a run logged, read from its metrics.jsonl."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from armd_jax.errors import UserError
from armd_jax.files import buckets, whole

Record = dict[str, Any]
_VALUE = (str, float, bool, list, type(None))
# Of these there are tables and curves; so there are of what begins with `loss_` or `held_out_`.
_NUMBERS = (
  'loss', 'held_out', 'learning_rate', 'shuffled', 'tokens_per_second', 'time', 'timed_steps',
)  # fmt: skip


def read(path: pathlib.Path) -> dict[int, Record]:
  """What metrics.jsonl holds of every step; of two values of one name the later one counts.

  A last line without an end was being written when the run was killed; it is left out.

  Raises:
    UserError: there is no such file, or a line of it is damaged.
  """
  records: dict[int, Record] = {}
  for record in lines(path):
    step = record.pop('step')
    records[step] = records.get(step, {}) | record
  return dict(sorted(records.items()))


def lines(path: pathlib.Path) -> Iterator[Record]:
  """The records as they were written, with their `step`; of one step there may be several.

  Raises:
    UserError: as `read`.
  """
  try:
    whole.check_ends(path)
    parts = [path]
    if buckets.is_bucket(path):  # where it is a folder of parts
      parts = sorted(path.iterdir(), key=str) if path.is_dir() else parts
    *found, _ = b''.join(part.read_bytes() for part in parts).split(b'\n')
  except OSError as error:
    raise UserError(
      f'cannot read {path} ({error.strerror or "not there"}); give the --workdir of a run that '
      'has trained'
    ) from error
  for number, line in enumerate(found, 1):
    try:
      record = whole.parse_json(line, {'step': int})
      whole.check_form(record, {str: _VALUE})
      is_number = lambda name: (
        name in _NUMBERS or name.startswith(('loss_', 'held_out_')) or name.endswith('_seconds')
      )
      numbers = {name: value for name, value in record.items() if is_number(name)}
      whole.check_form(numbers, {str: (float, type(None))})
      if record['step'] < 0 or not math.isfinite(record.get('shuffled') or 0):
        raise ValueError(f'holds step {record["step"]}, {record.get("shuffled")} shuffled')
    except ValueError as error:
      raise UserError(
        f'line {number} of {path} is damaged (it {error}); remove that line'
      ) from error
    yield record


def held_out(records: Mapping[int, Record], step: int) -> tuple[int, float | None] | None:
  """The last held-out loss that is not of later weights than those of a step, which may have been
  taken after it.

  Args:
    records: of `read`.
    step: of the weights.
  Returns:
    Its step and the loss, None where that was not finite; None if there is none.
  """
  found = [s for s, record in records.items() if s <= step and 'held_out' in record]
  return (max(found), records[max(found)]['held_out']) if found else None


def overview(records: Mapping[int, Record], rows: int = 10) -> list[Record]:
  """A run in few rows: means of what was logged since the row before, and the last of what a step
  has one of; none where no step was logged.

  Args:
    records: of `read`.
    rows: at most so many.
  """
  logged = [step for step, record in records.items() if 'loss' in record]
  found: list[Record] = []
  begin = -1
  if not logged:
    return found
  for steps in np.array_split(logged, min(rows, len(logged))):
    inside = [record for step, record in records.items() if begin < step <= steps[-1]]
    begin = steps[-1]
    values = lambda name, inside=inside: [r[name] for r in inside if r.get(name) is not None]
    mean = lambda name, of=values: float(np.mean(of(name))) if of(name) else None
    last = lambda name, of=values: of(name)[-1] if of(name) else None
    row = {'step': int(begin), 'loss': mean('loss'), 'held out': last('held_out')}
    shuffled = last('shuffled')
    row['learning rate'] = last('learning_rate')
    row['shuffled'] = shuffled if shuffled is None else int(shuffled)
    row['tokens/s'] = mean('tokens_per_second')
    for name in ('step', 'input'):
      seconds = mean(f'{name}_seconds')
      row[f'{name} ms'] = seconds and 1e3 * seconds
    found.append(row)
  return found

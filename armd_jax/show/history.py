"""What a run logged, read from its metrics.jsonl."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

Record = dict[str, Any]


def read(path: pathlib.Path) -> dict[int, Record]:
  """What metrics.jsonl holds of every step; of two lines that say the same the later one counts."""
  records: dict[int, Record] = {}
  for text in path.read_text().splitlines():
    record = json.loads(text)
    step = record.pop('step')
    records[step] = records.get(step, {}) | record
  return dict(sorted(records.items()))


def overview(records: dict[int, Record], rows: int = 10) -> list[Record]:
  """A run in few rows: means of what was logged since the row before, and the last of what a step
  has one of.

  Args:
    records: of `read`.
    rows: at most so many.
  """
  logged = [step for step, record in records.items() if 'loss' in record]
  found, begin = [], 0
  for steps in np.array_split(logged, min(rows, len(logged))):
    inside = [record for step, record in records.items() if begin < step <= steps[-1]]
    begin = steps[-1]
    values = lambda name, inside=inside: [r[name] for r in inside if r.get(name) is not None]
    mean = lambda name, of=values: float(np.mean(of(name))) if of(name) else None
    last = lambda name, of=values: of(name)[-1] if of(name) else None
    row = {'step': int(begin), 'loss': mean('loss'), 'held out': last('held_out')}
    row |= {'learning rate': last('learning_rate'), 'shuffled': int(last('shuffled'))}
    row['tokens/s'] = mean('tokens_per_second')
    for name in ('step', 'input'):
      seconds = mean(f'{name}_seconds')
      row[f'{name} ms'] = seconds and 1e3 * seconds
    found.append(row)
  return found

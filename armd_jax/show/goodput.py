"""Which share of a run's time trained it, over all its starts, and where the rest went."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable, Mapping

from armd_jax.show.history import Record

_NAMES = {
  'start_import_seconds': 'start', 'start_data_seconds': 'start', 'start_restore_seconds': 'start',
  'start_compile_seconds': 'compile', 'evaluation_seconds': 'evaluation',
  'sample_seconds': 'samples', 'save_seconds': 'saves',
}  # fmt: skip
PARTS = ('start', 'compile', 'input', 'evaluation', 'samples', 'saves', 'lost', 'other')


@dataclasses.dataclass(frozen=True)
class Goodput:
  """Seconds of a run, from its first start to its last record.

  Attributes:
    total: of the clock on the wall.
    trained: of steps that the run consists of.
    parts: of all else, by PARTS. 'lost' are steps that were done again after a restart, and what is
      between the last record of a start and the next start.
    starts: how often the run was started.
  """

  total: float
  trained: float
  parts: Mapping[str, float]
  starts: int

  def text(self) -> str:
    """A line for people."""
    share = lambda seconds: seconds / max(self.total, 1e-9)
    rest = [f'{name} {share(s):.1%}' for name, s in self.parts.items() if share(s) >= 5e-4]
    whole = datetime.timedelta(seconds=round(self.total))
    started = '1 start' if self.starts == 1 else f'{self.starts} starts'
    return (
      f'goodput   {share(self.trained):.1%} of {whole} in {started} trained'
      f'{"; " * bool(rest)}{", ".join(rest)}'
    )


def of(records: Iterable[Record]) -> Goodput | None:
  """Counts the records of a log.

  Args:
    records: in the order in which they were written.
  Returns:
    None of a log whose records have no time, as those of older versions.
  """
  segments: list[list[Record]] = []
  for record in records:
    if record.get('time') is None:
      continue
    if record.get('start_seconds') is not None:
      segments.append([])
    if segments:
      segments[-1].append(record)
  if not segments:
    return None
  parts, trained = dict.fromkeys(PARTS, 0.0), 0.0
  begins = [first['time'] - first['start_seconds'] for first, *_ in segments]
  ends = [max(record['time'] for record in segment) for segment in segments]
  for number, segment in enumerate(segments):
    again = segments[number + 1][0]['step'] if number + 1 < len(segments) else math.inf
    for record in segment:
      of_record = lambda name, record=record: record.get(name) or 0.0
      for name, part in _NAMES.items():
        parts[part] += of_record(name)
      steps = of_record('timed_steps')
      seconds, waited = (steps * of_record(f'{name}_seconds') for name in ('step', 'input'))
      # A record is of the steps up to its own; those from `again` on were done once more.
      twice = min(1.0, max(0.0, record['step'] + 1 - again) / max(1.0, steps))
      parts['lost'] += twice * seconds
      parts['input'] += (1 - twice) * waited
      trained += (1 - twice) * (seconds - waited)
    if number:
      parts['lost'] += max(0.0, begins[number] - ends[number - 1])
  total = ends[-1] - begins[0]
  parts['other'] = max(0.0, total - trained - sum(parts.values()))
  return Goodput(total, trained, parts, len(segments))

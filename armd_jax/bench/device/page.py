"""The rows as text and as a Markdown page; imports nothing that could be missing."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from armd_jax.bench.device.goals import Goal
from armd_jax.bench.device.rows import PROCESS, Row, failed, short, text
from armd_jax.bench.device.stages import STAGES, filed
from armd_jax.files import whole

TABLE, PAGE, PICTURE = 'table.txt', 'report.md', 'report.png'
# Of a row's numbers, what a page shows; of other stages all.
COLUMNS = {
  'smoke': ('ok', 'out', 'dq', 'dk', 'dv', 'compile_s'),
  'numerics': (
    'ok', 'runs', 'moved', 'out', 'out xla', 'dq', 'dq xla', 'dk', 'dk xla', 'dv', 'dv xla',
  ),
  'times': ('ms', 'tflops', 'of_peak', 'compiling_beside'),
  'torch': ('ms', 'tflops'),
  'train': ('ms', 'tokens_per_s', 'mfu', 'gib', 'last_loss', 'compile_s'),
  'decode': ('tokens_per_s', 'ms_per_step', 'ms_of_weights', 'gib', 'compile_s'),
  'peers': ('tokens_per_s', 'ms_per_step'),
}  # fmt: skip
COLUMNS |= {'again': COLUMNS['numerics'], 'flags': COLUMNS['decode']}
DRY = 'DRY RUN: no GPU, tiny shapes, the reference in place of the kernels; no goal is measured'

Rows = Mapping[tuple[str, str], Row]


def is_dry(rows: Rows) -> bool:
  """Whether any row is of a dry run."""
  return any(row['dry'] for row in rows.values())


def devices(rows: Rows) -> str:
  """The devices that rows were measured on."""
  return ', '.join(sorted({row['device'] for row in rows.values() if row['device']})) or 'unknown'


def of_stage(rows: Rows, stage: str) -> dict[str, Row]:
  """By key, in order of measurement."""
  return {key: row for (name, key), row in rows.items() if name == stage}


def counted(goals: Sequence[Goal]) -> str:
  """How many goals have which verdict."""
  verdicts = [goal.verdict for goal in goals]
  return ', '.join(f'{verdicts.count(v)} {v}' for v in dict.fromkeys(verdicts))


def as_text(rows: Rows, goals: Sequence[Goal]) -> str:
  """A line per goal and per row."""
  lines = [DRY] if is_dry(rows) else []
  lines += [devices(rows), *(f'{g.verdict:>12}  {g.name}  {g.detail}'.rstrip() for g in goals)]
  for stage in ('machine', *filed(STAGES), PROCESS):
    found = of_stage(rows, stage).values()
    if found:
      bad = sum(map(failed, found))
      lines += [f'== {stage}: {len(found)} rows, {bad} failed', *map(text, found)]
  return '\n'.join(lines) + '\n'


def _cell(row, name):
  value = row.get(name)
  return '' if value is None else short(value).replace('|', '/')


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _stage(name, rows):
  """A table of a stage's numbers, and what has none."""
  good = {key: row for key, row in rows.items() if not {'error', 'skipped'} & set(row)}
  hidden = ('stage', 'key', 'at', 'device', 'dry', 'all_ms')
  every = [column for row in good.values() for column in row if column not in hidden]
  columns = COLUMNS.get(name) or tuple(dict.fromkeys(every))
  parts = [f'## {name}']
  if name == 'ceilings' or name == 'machine':
    values = ((key, column, _cell(row, column)) for key, row in good.items() for column in columns)
    parts.append(_table(('', '', ''), [line for line in values if line[2]]))
  elif good:
    body = [[key, *(_cell(row, c) for c in columns)] for key, row in good.items()]
    parts.append(_table(('', *columns), body))
  for key, row in rows.items():
    if key not in good:
      parts.append(f'- {key}: {row.get("error") or row.get("skipped")}')
  return '\n\n'.join(parts)


def as_markdown(rows: Rows, goals: Sequence[Goal], picture: bool) -> str:
  """The page.

  Args:
    rows: all of them.
    goals: judged.
    picture: whether there is one, to be shown.
  """
  parts = [f'# Device report: {devices(rows)}']
  parts += [f'**{DRY}.**'] if is_dry(rows) else []
  lines = [[goal.name, f'**{goal.verdict}**', goal.detail] for goal in goals]
  parts += [f'Goals: {counted(goals)}.', _table(('goal', 'verdict', 'measured'), lines)]
  parts += [f'![attention, training and decoding]({PICTURE})'] if picture else []
  wrong = [row for row in of_stage(rows, PROCESS).values() if 'error' in row]
  if wrong:
    parts.append('Processes that did not do all they should:')
    parts.append('\n'.join(f'- {row["key"]}: {row["error"]}' for row in wrong))
  for stage in ('machine', *filed(STAGES)):
    if found := of_stage(rows, stage):
      parts.append(_stage(stage, found))
  return '\n\n'.join(parts) + '\n'


def write(out: pathlib.Path, rows: Rows, goals: Sequence[Goal]) -> None:
  """Writes table and page into `out`."""
  whole.write_text(out / TABLE, as_text(rows, goals))
  whole.write_text(out / PAGE, as_markdown(rows, goals, (out / PICTURE).exists()))

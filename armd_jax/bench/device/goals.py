"""What the numbers of an H100 or H200 should be, and whether they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from armd_jax.bench.device.cases import (
  NUMERICS,
  SMOKE,
  STEPS,
  TIMES,
  decode_key,
  peer_key,
  time_key,
)
from armd_jax.bench.device.rows import PROCESS, Row, failed, process_key

MET, MISSED, NOT_MEASURED = 'met', 'missed', 'not measured'
RIVALS = ('cudnn', 'torch flash')
HEADS = ('12x64', '16x128')  # of the shapes at which the rivals are to be reached
TOKENS = 16384  # of the calls
STREAMS = 1.25
MFU = 0.40
STRIDED = 3.8
OVER_AR = 1.1
OVER_TRANSFORMERS = 10.0
AS_TEXT = {'forward': 'forward', 'both': 'forward + backward'}

Rows = Mapping[tuple[str, str], Row]


@dataclasses.dataclass(frozen=True)
class Goal:
  """A goal and its verdict, `MET`, `MISSED` or `NOT_MEASURED`, with the numbers behind it."""

  name: str
  verdict: str
  detail: str


def judge(rows: Rows) -> list[Goal]:
  """Every goal.

  Args:
    rows: as of `rows.read`. Those of a dry run, and what was skipped, count for nothing.
  """
  dry = any(row['dry'] for row in rows.values())
  real = {
    (stage, key): row
    for (stage, key), row in rows.items()
    # The end of a process of a dry run has nothing to do with a kernel.
    if not row['dry'] and 'skipped' not in row and not (dry and stage == PROCESS)
  }
  checked = _correct(real), _same_bits(real)
  return [*checked, *_rivals(real), *_streams(real), *_mfu(real), *_decoding(real)]


def _number(rows, stage, key, name):
  row = rows.get((stage, key), {})
  return None if failed(row) else row.get(name)


def _goal(name, value, reached, detail):
  """Of a number, None if it was not measured."""
  if value is None:
    return Goal(name, NOT_MEASURED, detail)
  return Goal(name, MET if reached else MISSED, detail)


# ---- results -----------------------------------------------------------------------------------


def _checked():
  """(stage, key) of every check, as of the compiler that is used."""
  return [('smoke', key) for key in SMOKE] + [('numerics', case.key) for case in NUMERICS]


def _correct(rows):
  every = _checked()
  there = [key for key in every if key in rows]
  wrong = [key for _, key in there if failed(rows[_, key])]
  # A process that was killed left no row of what it was at.
  wrong += [
    f'{name} ({row["error"]})'
    for (stage, name), row in rows.items()
    if stage == PROCESS and 'killed' in row.get('error', '')
    and name in {process_key('smoke', key) for key in SMOKE}
  ]  # fmt: skip
  name = 'correct everywhere, forward and backward against float32'
  detail = f'{len(there) - len([k for k in there if failed(rows[k])])} of {len(every)} checks'
  if wrong:
    by_other = [key for (stage, key), row in rows.items() if stage == 'again' and not failed(row)]
    blame = f'; right with another ptxas: {", ".join(by_other)}' if by_other else ''
    return Goal(name, MISSED, f'{detail}; wrong: {", ".join(wrong)}{blame}')
  return _goal(name, len(there) == len(every) or None, True, detail)


def _same_bits(rows):
  moved = {
    case.key: rows['numerics', case.key].get('moved')
    for case in NUMERICS
    if ('numerics', case.key) in rows
  }
  found = {key: count for key, count in moved.items() if count is not None}
  other = {key: count for key, count in found.items() if count}
  name = 'the same bits from every run'
  if other:
    told = ', '.join(f'{key} ({count} runs)' for key, count in other.items())
    return Goal(name, MISSED, f'other bits: {told}')
  complete = len(found) == len(NUMERICS) or None
  return _goal(name, complete, True, f'{len(found)} of {len(NUMERICS)} cases run again')


# ---- attention ---------------------------------------------------------------------------------


def _filling(case):
  tokens = case.batch * int(case.shape.split('_')[1])
  return case.shape.split('_')[-1] in HEADS and tokens == TOKENS


def _rivals(rows):
  for case in TIMES:
    if case.streams > 1 or case.decodes or not _filling(case):
      continue
    for kind, text in AS_TEXT.items():
      ours = _number(rows, 'times', time_key(case, 'ours', kind), 'ms')
      theirs = {
        rival: _number(rows, stage, time_key(case, rival, kind), 'ms')
        for rival, stage in zip(RIVALS, ('times', 'torch'), strict=True)
      }
      detail = ', '.join(
        f'{name} {"-" if ms is None else f"{ms:.3f} ms"}'
        for name, ms in ({'ours': ours} | theirs).items()
      )
      name = f'{case.key}, {text}: at least {" and ".join(RIVALS)}'
      known = [ms for ms in theirs.values() if ms is not None]
      if ours is not None and any(ms < ours for ms in known):
        yield Goal(name, MISSED, detail)
      else:
        complete = ours if len(known) == len(RIVALS) else None
        yield _goal(name, complete, True, detail)


def _streams(rows):
  pairs = {(case.shape, case.batch, case.streams): case for case in TIMES}
  for case in TIMES:
    two = pairs.get((case.shape, case.batch, 2))
    if case.streams > 1 or case.decodes or two is None:
      continue
    for kind, text in AS_TEXT.items():
      keys = (time_key(each, 'ours', kind) for each in (case, two))
      one_ms, two_ms = (_number(rows, 'times', key, 'ms') for key in keys)
      ratio = 2 * one_ms / two_ms if one_ms and two_ms else None
      name = f'{case.shape} B{case.batch}, {text}: two streams {STREAMS}x as fast as two calls'
      yield _at_least(name, ratio, STREAMS)


def _at_least(name, ratio, least):
  detail = '' if ratio is None else f'{ratio:.3g}'
  return _goal(name, ratio, ratio is not None and ratio >= least, detail)


# ---- training and decoding ---------------------------------------------------------------------


def _mfu(rows):
  for family in ('armd', 'ar'):
    steps = [s for s in STEPS if (s.shape, s.family, s.two_stream) == ('gpt2_small', family, 0)]
    found = {s.key: _number(rows, 'train', s.key, 'mfu') for s in steps}
    found = {key: mfu for key, mfu in found.items() if mfu is not None}
    name = f'training MFU of {family.upper()} at GPT-2 small: at least {MFU:.2f}'
    best = max(found, key=found.get, default=None)
    detail = '' if best is None else f'{found[best]:.3f} ({best})'
    yield _goal(name, best, best is not None and found[best] >= MFU, detail)


def _decoding(rows):
  def rate(family, streams):
    """Tokens per second at batch 1, under the quickest of all flags."""
    key = decode_key(family, streams, 1)
    found = [
      row['tokens_per_s']
      for (stage, name), row in rows.items()
      if stage in ('decode', 'flags') and 'tokens_per_s' in row and not failed(row)
      and (name == key or name.startswith(f'{key},'))
    ]  # fmt: skip
    return max(found, default=None)

  over = lambda a, b: a / b if a and b else None
  one, ar = rate('armd', 1), rate('ar', 1)
  name = f'batch 1: S = 4 over S = 1: at least {STRIDED}'
  yield _at_least(name, over(rate('armd', 4), one), STRIDED)
  slower = over(ar, one)
  name = f'batch 1: a step of S = 1 at most {OVER_AR} of one of AR, each under its best flags'
  detail = '' if slower is None else f'{slower:.3f}'
  yield _goal(name, slower, slower is not None and slower <= OVER_AR, detail)
  peer: Any = _number(rows, 'peers', peer_key(1), 'tokens_per_s')
  name = f"batch 1: S = 16 over transformers' cached GPT-2: at least {OVER_TRANSFORMERS:.0f}"
  yield _at_least(name, over(rate('armd', 16), peer), OVER_TRANSFORMERS)

"""Files of a report: the run's log and what programs measured, read; the page, written."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax.errors import UserError, sentence
from armd_jax.files import paths
from armd_jax.show import history


@dataclasses.dataclass(frozen=True)
class Measured:
  """What programs measured of a run, each by the file that holds it.

  Attributes:
    scores: of `evaluate`.
    decoding: of `bench.decode`; at most one.
    verdicts: of `judge`.
  """

  scores: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  verdicts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_records(workdir: pathlib.Path) -> dict[int, history.Record]:
  """The run's log.

  Raises:
    UserError: there is none, or a line of it is damaged.
  """
  path = workdir / 'metrics.jsonl'
  try:
    records = history.read(path)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path} is missing or damaged ({sentence(error)}); give the training command again, which '
      'drops a line that was cut off'
    ) from error
  if not any('loss' in record for record in records.values()):
    raise UserError(f'{path} holds no step; train first')
  return records


def read_json(flag: str, path: str, program: str, *names: str) -> dict[str, Any]:
  """What a program wrote with --json.

  Raises:
    UserError: it cannot be read, or lacks what that program writes.
  """
  try:
    numbers = json.loads(paths.given(path, f'--{flag}').read_text('utf-8'))
    missing = [name for name in names if name not in numbers]
  except (OSError, ValueError, TypeError) as error:
    raise UserError(
      f'--{flag}={path} cannot be read ({sentence(error)}); make it by python -m {program} '
      f'--json={path}'
    ) from error
  if missing:
    raise UserError(
      f'--{flag}={path} has no {missing[0]!r}; make it by python -m {program} --json={path}'
    )
  return numbers


def quickstart_decoding(results: Mapping[str, Any]) -> dict[str, Any]:
  """A quickstart's results.json in the form of `bench.decode`."""
  by_name = {score['name']: score for score in results['held_out']['after_sbp']}
  nats = lambda name: by_name[name]['nats_per_token']
  base, length = nats('left-to-right'), results['config']['model']['length']
  quality = []
  for speed in results['generation']:
    count = speed['streams']
    both = [base] * 2
    if count > 1:
      both = [nats(f'strided S={count}, {how}') for how in ('parallel', 'one by one')]
    costs = {'order': both[1] - base, 'independence': both[0] - both[1]}
    row = {'streams': count, 'nats': both[0]}
    for name, cost in costs.items():
      row |= {f'{name}_cost': cost, f'{name}_cost_error': None}
    junctions = max(count - 1, 1)
    quality.append(row | {'order_nats_per_junction': costs['order'] * length / junctions})
  systems = [
    speed | {'system': f'ARMD S={speed["streams"]}', 'batch_size': 1}
    for speed in results['generation']
  ]
  return {'machine': results['machine'], 'systems': systems, 'quality': quality}


def quickstart_results(workdir: pathlib.Path) -> Measured:
  """Scores and decoding of a quickstart, if there was one.

  Raises:
    UserError: its results.json is damaged.
  """
  path = workdir / 'results.json'
  if not path.exists():
    return Measured()
  try:
    numbers = json.loads(path.read_text('utf-8'))
    return Measured(
      scores={str(path): numbers['held_out']['after_sbp']},
      decoding={str(path): quickstart_decoding(numbers)},
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} is not what the quickstart writes ({sentence(error)}); run it again, or take the '
      'file away'
    ) from error


def read_measured(
  workdir: pathlib.Path, decoding: str | None = None, judged: Sequence[str] = ()
) -> Measured:
  """What a quickstart left in a run's folder, and what other programs measured of the run.

  Args:
    workdir: of the run.
    decoding, judged: files of `bench.decode` and `judge`.
  Raises:
    UserError: a file is not what it should be.
  """
  found = quickstart_results(workdir)
  names = 'judge', 'verdict', 'statistics', 'mauve'
  verdicts = {path: read_json('judged', path, 'armd_jax.judge', *names) for path in judged}
  if decoding:
    rows = read_json('decoding', decoding, 'armd_jax.bench.decode', 'systems', 'quality')
    found = dataclasses.replace(found, decoding={decoding: rows})
  return dataclasses.replace(found, verdicts=verdicts)


def write(path: pathlib.Path, text: str) -> None:
  """Writes a page; one that was there stays until the new one is whole.

  Raises:
    UserError: it cannot be written.
  """
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      part.write_text(text, 'utf-8')
      part.replace(path)
    finally:
      part.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); give another --out') from error

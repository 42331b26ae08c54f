"""Files of a report: the run's log and what programs measured, read; the page, written."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax.errors import UserError
from armd_jax.evaluation.scores import SCORE
from armd_jax.files import paths, whole
from armd_jax.show import history

_NUMBER = (float, type(None))  # null is also what is not finite, see `whole.write_json`
# Of `bench.decode`, `judge` and the quickstart, as far as a report shows them.
_SYSTEM = {
  'system': str, 'streams': int, 'batch_size': int, 'steps': int, 'seconds': _NUMBER,
  'tokens_per_second': _NUMBER,
}  # fmt: skip
_QUALITY = {
  'streams': int, 'nats': _NUMBER, 'order_cost': _NUMBER, 'order_cost_error': _NUMBER,
  'independence_cost': _NUMBER, 'independence_cost_error': _NUMBER,
  'order_nats_per_junction': _NUMBER, 'starts': [_NUMBER], 'ends': [_NUMBER], 'won_back': _NUMBER,
}  # fmt: skip
_DECODING = {'machine': {str: None}, 'systems': [_SYSTEM], 'quality': ([_QUALITY], None)}
_VERDICT = {
  'judge': str,
  'verdict': {'corpus_perplexity': _NUMBER, 'mean_perplexity': _NUMBER},
  'statistics': {'entropy_bits': float, 'distinct_2': float, 'repetition_4': float},
  'mauve': _NUMBER,
}
_SPEED = {'streams': int, 'steps': int, 'seconds': float, 'tokens_per_second': float}
_RESULTS = {
  'machine': {str: None},
  'config': {'model': {'length': int}},
  'held_out': {'after_sbp': [SCORE]},
  'generation': [_SPEED],
}


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
  records = history.read(path)
  if not any('loss' in record for record in records.values()):
    raise UserError(f'{path} holds no step; train first')
  return records


def read_json(flag: str, path: str, program: str, like: Any) -> dict[str, Any]:
  """What a program wrote with --json.

  Args:
    flag: that names the file.
    path: the file.
    program: what writes it.
    like: its form, see `whole.check_form`.
  Raises:
    UserError: it cannot be read, or is not what that program writes.
  """
  fix = f'make it by {program} --json={path}'
  try:
    return whole.read_json(paths.given(path, f'--{flag}'), like, fix)
  except OSError as error:
    raise UserError(f'cannot read --{flag}={path} ({error.strerror}); {fix}') from error


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
    row['order_nats_per_junction'] = costs['order'] * length / junctions
    quality.append(row | {'starts': [], 'ends': [], 'won_back': None})
  systems = [
    speed | {'system': f'ARMD S={speed["streams"]}', 'batch_size': 1}
    for speed in results['generation']
  ]
  left_to_right, counted = by_name['left-to-right'], {}
  if ngrams := results['held_out'].get('ngrams'):
    name = min(ngrams, key=ngrams.__getitem__)
    tokens_per_byte = left_to_right['nats_per_byte'] / base
    counted = {name: ngrams[name] / tokens_per_byte}
  return {
    'machine': results['machine'], 'systems': systems, 'quality': quality, 'counted': counted,
  }  # fmt: skip


def quickstart_results(workdir: pathlib.Path) -> Measured:
  """Scores and decoding of a quickstart, if there was one.

  Raises:
    UserError: its results.json is damaged.
  """
  path = workdir / 'results.json'
  if not path.exists():
    return Measured()
  fix = 'run the quickstart again, or take the file away'
  numbers = whole.read_json(path, _RESULTS, fix)
  try:
    whole.check_form(numbers['held_out'].get('ngrams', {}), {str: float}, 'held_out.ngrams')
    scores = numbers['held_out']['after_sbp']
    if any(None in (row['nats_per_token'], row['nats_per_byte']) for row in scores):
      return Measured({str(path): scores})  # of a model that diverged nothing compares
    decoding = quickstart_decoding(numbers)
  except KeyError as error:
    raise UserError(f'{path} is not what the quickstart writes (no {error}); {fix}') from error
  except ValueError as error:
    raise UserError(f'{path} is damaged (it {error}); {fix}') from error
  except ArithmeticError as error:
    raise UserError(f'{path} is damaged (it holds scores of 0 nats); {fix}') from error
  return Measured({str(path): scores}, {str(path): decoding})


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
  verdicts = {path: read_json('judged', path, 'armd judge', _VERDICT) for path in judged}
  if decoding:
    rows = read_json('decoding', decoding, 'armd bench.decode', _DECODING)
    found = dataclasses.replace(found, decoding={decoding: rows})
  return dataclasses.replace(found, verdicts=verdicts)


def write(path: pathlib.Path, text: str) -> None:
  """Writes a page; one that was there stays until the new one is whole.

  Raises:
    UserError: it cannot be written.
  """
  try:
    whole.write_text(path, text)
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); give another --out') from error

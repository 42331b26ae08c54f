"""A run as one HTML page: `python -m armd_jax.report --workdir=DIR`.

Curves, measured numbers, quality against speed, orders and masks, and texts that the run generates,
replayed step by step. The page holds all it shows: it opens offline and fetches nothing. Numbers
come from what `evaluate`, `bench.decode` and `judge` wrote with --json, or from a quickstart's
results.json; training is read from the run itself.
"""

from __future__ import annotations

import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from armd_jax import cli
from armd_jax.artifacts import weights
from armd_jax.artifacts.cards import measured_in
from armd_jax.decode import requests
from armd_jax.errors import UserError, sentence
from armd_jax.show import history, report_page
from armd_jax.show.columns import num_parameters
from armd_jax.show.replays import drawn_orders, replays
from armd_jax.training import workdir as workdir_lib

_FLAGS = {'S': 'streams', 'K': 'steps'}  # of `sample`, by what texts are told apart by


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
    numbers = json.loads(pathlib.Path(path).read_text('utf-8'))
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


def report(
  workdir: pathlib.Path,
  out: pathlib.Path,
  *,
  scores: Sequence[str] = (),
  decoding: str | None = None,
  judged: Sequence[str] = (),
  streams: Sequence[int] = (1, 2, 4, 8),
  prompt: str = '',
  **options: Any,
) -> None:
  """Writes the page of a run.

  Args:
    workdir: of the run.
    out: the page.
    scores, decoding, judged: files of `evaluate`, `bench.decode` and `judge`.
    streams: stride counts S of the texts that are generated, see `replays`.
    prompt: what these go on from.
    options: seed, temperature and top_p of them.
  Raises:
    UserError: no run is there, a file is not what it should be, or the page cannot be written.
  """
  config, records = workdir_lib.read_config(workdir), read_records(workdir)
  measured = _results(workdir / 'results.json')
  names = 'judge', 'verdict', 'statistics', 'mauve'
  verdicts = {path: read_json('judged', path, 'armd_jax.judge', *names) for path in judged}
  if decoding:
    rows = read_json('decoding', decoding, 'armd_jax.bench.decode', 'systems', 'quality')
    measured['decoding'] = decoding, rows
  config, tokenizer, params, step = weights.load_ema(workdir)
  if scores:
    measured['scores'] = {path: measured_in(path, step) for path in scores}

  command = _sample_command(workdir, prompt, options)
  streams = [1] if config.model.orders == 'left_to_right' else streams
  texts, how = replays(config, tokenizer, params, prompt, streams, **options)
  kind, _, number = texts[-1].name.partition(' = ')
  command += f' --{_FLAGS[kind]}={number}'
  sections = [report_page.replay_section(texts, how, command)]
  if 'decoding' in measured:
    sections.append(report_page.decoding_section(*measured['decoding']))
  if 'scores' in measured:
    sections.append(report_page.scores_section(measured['scores']))
  if verdicts:
    sections.append(report_page.judge_section(verdicts))
  sections.append(report_page.training_section(config, records))
  if drawn := drawn_orders(config, step):
    sections.append(report_page.masks_section(drawn))
  sections.append(report_page.config_section(config))

  model = config.model
  lead = (
    f'{model.family.upper()}, {model.num_layers} layers x {model.embed_dim}, {model.num_heads} '
    f'heads, {model.length:,} tokens of {tokenizer.name}; trained on {config.data.source}'
  )
  tiles = {
    'parameters': _short(num_parameters(params)),
    'steps': f'{step:,}',
    'tokens read': _short(step * config.train.batch_size * model.length),
  }
  if held_out := [r['held_out'] for r in records.values() if r.get('held_out') is not None]:
    tiles['held out, nats/token'] = f'{held_out[-1]:.4f}'
  write(out, report_page.page(workdir.absolute().name, lead, tiles, sections))


def _results(path: pathlib.Path) -> dict[str, Any]:
  """Scores and decoding of a quickstart, if there was one."""
  if not path.exists():
    return {}
  try:
    numbers = json.loads(path.read_text('utf-8'))
    return {
      'scores': {str(path): numbers['held_out']['after_sbp']},
      'decoding': (str(path), quickstart_decoding(numbers)),
    }
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} is not what the quickstart writes ({sentence(error)}); run it again, or take the '
      'file away'
    ) from error


def _sample_command(workdir, prompt, options):
  arguments = {'workdir': workdir, **options} | ({'prompt': prompt} if prompt else {})
  flags = [f'--{name}={value}' for name, value in arguments.items()]
  return shlex.join(['python', '-m', 'armd_jax.sample', *flags])


def _short(count: int) -> str:
  """
  >>> _short(2_430_000), _short(512)
  ('2.4M', '512')
  """
  for unit, name in ((10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
    if count >= unit:
      return f'{count / unit:.1f}{name}'
  return str(count)


def main() -> None:
  requests.check_sampling(1, _TEMPERATURE.value, _TOP_P.value, 1)
  workdir = pathlib.Path(_WORKDIR.value)
  out = pathlib.Path(_OUT.value or workdir / 'report.html')
  report(
    workdir,
    out,
    scores=_SCORES.value,
    decoding=_DECODING.value,
    judged=_JUDGED.value,
    streams=cli.streams_of(_STREAMS),
    prompt=_PROMPT.value,
    seed=_SEED.value,
    temperature=_TEMPERATURE.value,
    top_p=_TOP_P.value,
  )
  print(f'{out}: {out.stat().st_size / 1e6:.1f} MB, opens in any browser, offline')


if __name__ == '__main__':
  _WORKDIR = cli.workdir_flag('A training run.')
  _OUT = flags.DEFINE_string('out', None, 'The page; left out: report.html in the workdir.')
  _SCORES = flags.DEFINE_list('scores', [], 'Files of evaluate --json.')
  _DECODING = flags.DEFINE_string('decoding', None, 'File of bench.decode --json.')
  _JUDGED = flags.DEFINE_list('judged', [], 'Files of judge --json.')
  _STREAMS = cli.streams_flag('1,2,4,8')
  _PROMPT = flags.DEFINE_string('prompt', '', 'Text that the generated ones go on from.')
  _SEED = flags.DEFINE_integer('seed', 0, 'Seed of all draws.')
  _TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 takes the most likely tokens.')
  _TOP_P = flags.DEFINE_float('top_p', 1.0, 'Nucleus of the distribution to draw from.')
  cli.run(main)

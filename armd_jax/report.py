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

import jax
import numpy as np
from absl import flags

from armd_jax import checkpoint, cli, metrics, report_page, sample
from armd_jax import order as orders
from armd_jax.bench.timing import num_parameters
from armd_jax.config import Config
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import diffusion
from armd_jax.decode.generate import task_of
from armd_jax.errors import UserError, sentence
from armd_jax.export import measured_in
from armd_jax.report_page import Replay

_DRAWN = 16  # tokens of a drawn order
_FLAGS = {'S': 'streams', 'K': 'steps'}  # of `sample`, by what texts are told apart by


def pieces_of(
  tokenizer: Tokenizer, ids_N: np.ndarray, step_N: np.ndarray
) -> tuple[tuple[str, int, int], ...]:
  """A text cut wherever it can be read: a token alone, or several that make one character.

  Args:
    tokenizer: of the ids.
    ids_N: int, in text order.
    step_N: int, at which each token appeared.
  Returns:
    (text, tokens, step) of each piece; a piece appears with the last of its tokens.

  >>> from armd_jax.data.tokenizers import ByteTokenizer
  >>> ids = ByteTokenizer().encode('né!')
  >>> pieces_of(ByteTokenizer(), ids, np.array([1, 2, 3, 2]))
  (('n', 1, 1), ('é', 2, 3), ('!', 1, 2))
  """
  whole = tokenizer.decode(ids_N)
  pieces, begin, shown = [], 0, ''
  for end in range(1, len(ids_N) + 1):
    text = tokenizer.decode(ids_N[:end])
    if not whole.startswith(text):
      continue
    pieces.append((text[len(shown) :], end - begin, int(step_N[begin:end].max())))
    begin, shown = end, text
  return tuple(pieces)


def steps_of(given_N: np.ndarray, streams: int) -> np.ndarray:
  """The step at which each token of a text is generated, int [N]; 0 where it is given.

  >>> steps_of(np.arange(8) < 2, 3).tolist()
  [0, 0, 1, 4, 2, 4, 3, 4]
  """
  order = task_of(given_N[None], np.array([len(given_N)]), streams).order
  # Every step generates a block; those that were given come first.
  given = int(given_N.sum())
  step_N = np.zeros(len(given_N), int)
  position_M, block_M = (np.asarray(x[0])[given:] for x in (order.position_BxN, order.block_BxN))
  step_N[position_M - 1] = np.unique(block_M, return_inverse=True)[1] + 1
  return step_N


def replays(
  config: Config,
  tokenizer: Tokenizer,
  params: Any,
  prompt: str,
  streams: Sequence[int],
  **options: Any,
) -> tuple[list[Replay], str]:
  """One text for every S; of a diffusion baseline, one for every K = tokens / S steps.

  Args:
    config, tokenizer, params: a trained model.
    prompt: what they go on from.
    streams: stride counts S.
    options: of `sample.complete`.
  Returns:
    The texts, and how they were generated, in a sentence.
  Raises:
    UserError: the prompt leaves no room.
  """
  request = sample.continue_prompts([prompt], config.model.num_slots, tokenizer)
  arguments, length = (config, tokenizer, params, request), config.model.num_slots
  samplers = diffusion.SAMPLERS.get(config.model.family)
  found = []
  for count in streams:
    if samplers:
      steps = -(-int((~request.given_BxN[0]).sum()) // count)
      name, options['steps'], options['sampler'] = f'K = {steps}', steps, samplers[0]
      _, generated = sample.denoise(*arguments, **options)
      step_N = np.asarray(generated.step_BxN[0])
    else:
      name = f'S = {count}'
      _, generated = sample.complete(*arguments, streams=count, **options)
      step_N = steps_of(request.given_BxN[0], count)
    ids_N = np.asarray(generated.tokens_BxN[0])
    found.append(Replay(name, int(generated.steps), pieces_of(tokenizer, ids_N, step_N)))
  if samplers:
    how = (
      f'A text of {length:,} tokens, all masked at first, is revealed in K steps, anywhere in it; '
      'after a step that reveals nothing, a network that does not read the noise need not run.'
    )
  else:
    how = f'S streams of a text of {length:,} tokens grow at once, a token of each in every step.'
  return found, how


def drawn_orders(config: Config, step: int) -> dict[str, orders.GenerationOrder]:
  """Small orders of the kinds that a run has been trained on by a step, by what they are called."""
  o, keys = config.order, jax.random.split(jax.random.key(config.seed), 1)
  if config.model.family in diffusion.SAMPLERS:
    return {}
  is_strided = 0 <= o.sbp_start < step
  last = o.sbp_start if is_strided else step
  budget = int(orders.progressive_budget(last - 1, o.ar_steps, o.perm_steps, o.rho))
  found = {'left-to-right': orders.left_to_right(_DRAWN)}
  if budget > 1:
    count = min(budget, _DRAWN // 2)
    found[f'{budget} shuffled' + _drawn_as(budget, count)] = orders.shuffled(
      keys, _DRAWN, count, o.perm_mode
    )
  if o.uniform_order_prob and last > o.ar_steps:
    if o.block_steps:
      count = min(o.block_steps, _DRAWN // 4)
      found[f'masked diffusion, T = {o.block_steps}' + _drawn_as(o.block_steps, count)] = (
        orders.masking_blocks(keys, _DRAWN, count, o.block_schedule)
      )
    else:
      found['uniform'] = orders.uniform(keys, _DRAWN)
  for count in o.sbp_streams if is_strided else ():
    if 1 < count < _DRAWN and _DRAWN % count == 0:
      found[f'strided, S = {count}'] = orders.strided(_DRAWN, count)
  return found


def _drawn_as(of_the_run: int, here: int) -> str:
  return f', here {here}' if here < of_the_run else ''


def read_records(workdir: pathlib.Path) -> dict[int, metrics.Record]:
  """The run's log.

  Raises:
    UserError: there is none, or a line of it is damaged.
  """
  path = workdir / 'metrics.jsonl'
  try:
    records = metrics.read(path)
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
  config, records = checkpoint.read_config(workdir), read_records(workdir)
  measured = _results(workdir / 'results.json')
  names = 'judge', 'verdict', 'statistics', 'mauve'
  verdicts = {path: read_json('judged', path, 'armd_jax.judge', *names) for path in judged}
  if decoding:
    rows = read_json('decoding', decoding, 'armd_jax.bench.decode', 'systems', 'quality')
    measured['decoding'] = decoding, rows
  config, tokenizer, params, step = sample.load_ema(workdir)
  if scores:
    measured['scores'] = {path: measured_in(path, step) for path in scores}

  command = _sample_command(workdir, prompt, options)
  streams = [1] if config.model.family == 'ar' else streams
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
  sample.check_sampling(1, _TEMPERATURE.value, _TOP_P.value, 1)
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

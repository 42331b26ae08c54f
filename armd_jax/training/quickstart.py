"""The stages of the quickstart: train, fine-tune for parallel decoding, measure, generate."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from armd_jax import config as config_lib
from armd_jax import families
from armd_jax.cli import write_json
from armd_jax.config_rules import check_streams
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.packing import text_bytes
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.evaluation.ngram import witten_bell_nats
from armd_jax.evaluation.scores import SCORE, Score, evaluate, table
from armd_jax.files import whole
from armd_jax.hardware import machines
from armd_jax.parallel import sharding
from armd_jax.show import moving, plots, replays, report_files, run_page
from armd_jax.training import network_params, text
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import train

STREAMS = (1, 2, 4, 8)
EVAL_WINDOWS = 96
SAMPLING = Sampling(temperature=0.7, top_p=0.95)
TIMED_REPEATS = 7


def quickstart(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs every stage in `workdir`.

  Args:
    config: with `order.strided_start` > 0, where the strided fine-tuning begins.
    workdir: takes the run, results.json and the plots.
  Returns:
    All numbers, as written to results.json.
  Raises:
    UserError: bad config, text or work directory.
  """
  begin = time.perf_counter()
  base_steps = config.order.strided_start
  if not 0 < base_steps < config.train.steps:
    raise UserError(
      f'config.order.strided_start is {base_steps}; for the quickstart write a step between 0 and '
      f'train.steps = {config.train.steps}'
    )
  for streams in STREAMS:
    check_streams(streams, config.model.num_slots, 'config.model.length')
  corpus = corpus_lib.load(config.data, config.model.length)
  tokenizer = corpus.tokenizer
  held_out_WxN: Any = corpus.held_out_WxN[:EVAL_WINDOWS]
  model, mesh = families.build(config.model, tokenizer.vocab_size), sharding.make_mesh(config.mesh)

  _title('1. Train with the progressive permutation schedule')
  base = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=base_steps))
  base_file = workdir / 'base_scores.json'
  if base_file.exists():  # a restarted run is past this stage, and its checkpoint may be gone
    workdir_lib.check_same_run(workdir, config)
    text.check(workdir, corpus)  # or the numbers before would be of another text than those after
    before = _read_scores(base_file, likelihood.standard_suite(config.model, STREAMS))
  else:
    params = network_params(base, train(base, workdir, corpus=corpus))
    before = evaluate(model, tokenizer, params, held_out_WxN, STREAMS, mesh)
    write_json(base_file, [vars(s) for s in before])

  _title('2. Fine-tune for strided block-parallel generation (SBP)')
  print(f'S from {config.order.strided_streams}, {config.train.steps - base_steps} steps')
  params = network_params(config, train(config, workdir, corpus=corpus))
  trained = time.perf_counter()

  _title('3. Held-out nats per byte')
  after = evaluate(model, tokenizer, params, held_out_WxN, STREAMS, mesh)
  print(table(after))
  print('uniform orders: all of a text shuffled, which this run hardly trains; a bound, not a loss')
  ngrams = _ngrams(corpus, held_out_WxN)
  for name, nats in ngrams.items():
    print(f'{name:{max(len(s.name) for s in after)}}  exact  {nats:9.4f}')
  changes = _changes(before, after)
  print('\nbefore and after SBP fine-tuning, nats per byte:')
  for name, change in changes.items():
    print(f'  {name}: {change["before"]:.4f} -> {change["after"]:.4f} ({change["percent"]:+.2f}%)')

  _title('4. Generate')
  decoder = requests.Decoder(model, params, tokenizer, mesh)
  prompt = _prompt(corpus)
  speeds = _generate(decoder, prompt)
  for speed in speeds:
    speed['speedup'] = speed['tokens_per_second'] / speeds[0]['tokens_per_second']
    print(f'--- S = {speed["streams"]} ' + '-' * 60)
    print(speed['text'])
  print('\n  S  steps  tokens/s  speed-up')
  for s in speeds:
    print(f'{s["streams"]:3}  {s["steps"]:5}  {s["tokens_per_second"]:8.0f}  {s["speedup"]:7.2f}x')

  results: dict[str, Any] = {
    'machine': machines.machine(),
    'text': {'description': corpus.description, 'sha256': corpus.sha256},
    'config': config_lib.to_dict(config),
    'held_out': {
      'windows': len(held_out_WxN),
      'ngrams': ngrams,
      'before_sbp': [vars(s) for s in before],
      'after_sbp': [vars(s) for s in after],
      'changes': changes,
    },
    'prompt': prompt,
    'sampling': {'temperature': SAMPLING.temperature, 'top_p': SAMPLING.top_p},
    'generation': speeds,
    'seconds': {
      'training': trained - begin,
      'total': time.perf_counter() - begin,
    },
  }
  write_json(workdir / 'results.json', results)
  plots.quality_speed(after, speeds, ngrams, workdir / 'quality_speed.png')

  _title('5. Show')
  page = workdir / 'report.html'
  records = report_files.read_records(workdir)
  measured = report_files.read_measured(workdir)
  shown = run_page.page(
    workdir, config, config.train.steps, records, measured, decoder, SAMPLING, streams=STREAMS,
    prompt=prompt,
  )  # fmt: skip
  report_files.write(page, shown)
  texts, _ = replays.replays(decoder, prompt, (4, 1), SAMPLING)
  report_files.write(workdir / 'moving.svg', moving.picture(texts))
  print(f'the page that replays these texts: {page.absolute().as_uri()}')
  return results


def closing_words(results: dict[str, Any], workdir: pathlib.Path) -> str:
  """What a quickstart ends with."""
  nats = {s['name']: s['nats_per_byte'] for s in results['held_out']['after_sbp']}
  percent = 100 * (nats['strided S=4, parallel'] / nats['left-to-right'] - 1)
  faster = next(s['speedup'] for s in results['generation'] if s['streams'] == 4)
  return f"""{results['seconds']['total']:.0f} s. Everything is in {workdir.absolute()}:
  checkpoints/ config.json metrics.jsonl results.json report.html moving.svg model/ and two plots
Watch it:  armd sample --workdir={workdir} --race --temperature=0.7 --top_p=0.95
Open it:   {(workdir / 'report.html').absolute().as_uri()}
S = 4 writes {faster:.1f} times as fast for {percent:.1f} % of the likelihood."""


def _read_scores(path: pathlib.Path, suite: Sequence[likelihood.Protocol]) -> list[Score]:
  fix = 'bring it back, or start anew in another --workdir'
  rows = whole.read_json(path, [SCORE], fix)
  names = [protocol.name for protocol in suite]
  nats = [row['nats_per_byte'] or 0 for row in rows]
  if [row['name'] for row in rows] != names or min(nats) <= 0:
    raise UserError(f'{path} holds no scores of {", ".join(names)}; {fix}')
  return [Score(**{name: row[name] for name in SCORE}) for row in rows]


def _title(text: str) -> None:
  print(f'\n===== {text}', flush=True)


def _ngrams(corpus: corpus_lib.Corpus, held_out_WxN: np.ndarray) -> dict[str, float]:
  """Interpolated n-gram models counted on the same split, with a window's own context only."""
  num_bytes = text_bytes(held_out_WxN, corpus.tokenizer)
  vocab_size = corpus.tokenizer.vocab_size
  scores = {}
  for order in (2, 3):
    nats = witten_bell_nats(corpus.train_WxN, held_out_WxN, order, vocab_size)
    scores[f'{order} bytes of context, counted'] = float(nats.sum() / num_bytes)
  return scores


def _changes(before: list[Score], after: list[Score]) -> dict[str, dict[str, float]]:
  changes = {}
  for old, new in zip(before, after, strict=True):
    nats: Any = old.nats_per_byte, new.nats_per_byte  # bytes have some
    percent = 100 * (nats[1] / nats[0] - 1)
    changes[old.name] = {'before': nats[0], 'after': nats[1], 'percent': percent}
  return changes


def _prompt(corpus: corpus_lib.Corpus) -> str:
  """The first words of a held-out text."""
  first_N: Any = corpus.held_out_WxN[0]
  words = corpus.tokenizer.decode(np.asarray(first_N)[:48]).split(' ')
  text = ''
  while words and len(text) < 12:
    text += words.pop(0) + ' '
  return text.strip() or 'The'


def _generate(decoder: requests.Decoder, prompt: str) -> list[dict[str, Any]]:
  """A text for every S, and the median time of making it, all of them in turns, so that a busy
  moment slows all alike."""
  num_slots = decoder.model.config.num_slots
  request = requests.continue_prompts([prompt], num_slots, decoder.tokenizer)
  rows: list[dict[str, Any]] = []
  seconds: dict[int, list[float]] = {streams: [] for streams in STREAMS}
  for streams in STREAMS:
    start = time.perf_counter()
    (text,), generated = decoder.complete(request, streams, SAMPLING)
    first_call = time.perf_counter() - start
    rows.append({
      'streams': streams, 'steps': int(generated.steps), 'first': first_call, 'text': text,
    })  # fmt: skip
  for seed in range(TIMED_REPEATS):
    for streams in STREAMS:
      start = time.perf_counter()
      decoder.complete(request, streams, dataclasses.replace(SAMPLING, seed=seed))
      seconds[streams].append(time.perf_counter() - start)
  new = int((~request.given_BxN).sum())
  for row in rows:
    median = float(np.median(seconds[row['streams']]))
    row |= {
      'seconds': median,
      'tokens_per_second': new / median,
      'compile_seconds': row.pop('first') - median,
    }
  return rows

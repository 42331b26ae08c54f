"""All families on one front: `python -m armd_jax.bench.front --run=work/ar --run=work/mdlm`.

Runs of any families, trained on one text, are compared by what each gives its user: held-out
likelihood, exact or a bound, which do not compare; and, for every way to generate, how often the
network runs, tokens per second by the family's own sampler with its own cache, in turns, and how
good the texts are under a judge, never without their entropy.

`--warm_up=50 --repeats=1000` are the published protocol of a throughput.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from armd_jax import cli, families
from armd_jax.artifacts import weights
from armd_jax.config_rules import check_streams
from armd_jax.data import corpus as corpus_lib
from armd_jax.decode.requests import Decoder, continue_prompts
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.evaluation import judging, likelihood, quality, scores
from armd_jax.flags import flag
from armd_jax.hardware import clock, machines
from armd_jax.parallel import sharding
from armd_jax.show import columns


@dataclasses.dataclass(frozen=True)
class Way:
  """A way to generate texts from a run.

  Attributes:
    name: of the run, and how.
    family: of the run.
    decoder: of the run.
    generate: `(request, sampling) -> (texts, generated)`.
    streams: S of a family that predicts along orders, whose likelihood depends on it; else 0.
  """

  name: str
  family: str
  decoder: Decoder
  generate: Callable[..., Any]
  streams: int


def ways(name: str, decoder: Decoder, streams: Sequence[int], steps: Sequence[int]) -> list[Way]:
  """All ways to generate from a model.

  Args:
    name: printed.
    decoder: of the model.
    streams: stride counts S, of a family that predicts along orders.
    steps: of the sampler, of a family that has one; 0: one for each token.
  Raises:
    UserError: an S is more than the tokens.
  """
  model = decoder.model.config
  family = families.of(model)
  if family.samplers:
    return [
      Way(
        f'{name}, T = {count or model.num_slots}', model.family, decoder,
        functools.partial(family.generate, decoder, steps=count), 0,
      )
      for count in steps
    ]  # fmt: skip
  if model.orders == 'left_to_right':
    streams = (1,)
  for count in streams:
    check_streams(count, model.num_slots, '--streams')
  return [
    Way(
      f'{name}, S = {count}', model.family, decoder,
      functools.partial(family.generate, decoder, streams=count), count,
    )
    for count in streams
  ]  # fmt: skip


def held_out(found: Sequence[Way], windows_WxN: np.ndarray) -> list[dict[str, Any]]:
  """What each way knows of held-out text.

  Args:
    found: what to compare.
    windows_WxN: ids, as of the runs' corpus.
  Returns:
    kind ('exact' or 'bound'), nats_per_token and nats_per_byte, a row for each.
  """
  names = 'kind', 'nats_per_token', 'nats_per_byte'
  return [{name: getattr(score, name) for name in names} for score in _scores(found, windows_WxN)]


def gaps(found: Sequence[Way], windows_WxN: np.ndarray, size: int) -> list[float | None]:
  """Nats of so many tokens in the middle of a window, mean over windows, given all others; None of
  what reads nothing behind a gap."""
  begin = (windows_WxN.shape[1] - size) // 2
  marked_WxN = ~windows_WxN.astype(np.int32)
  marked_WxN[:, begin : begin + size] ^= -1  # `~` once more: these are scored
  can = [way for way in found if families.of(way.decoder.model.config).infills]
  of_way = dict(zip(map(id, can), _scores(can, marked_WxN), strict=True))
  return [of_way[id(way)].nats_per_token * size if id(way) in of_way else None for way in found]


def _scores(found, windows_WxN):
  """A score of each way; ways that differ by steps of a sampler alone share one."""
  known: dict[Any, scores.Score] = {}
  for way in found:
    decoder, which = way.decoder, (id(way.decoder), way.streams)
    if which not in known:
      protocol = likelihood.DENOISING if not way.streams else likelihood.LEFT_TO_RIGHT
      if way.streams > 1:
        protocol = likelihood.strided_protocols(way.streams)[0]
      part = scores.ScoredWindows(protocol, windows_WxN)
      how = decoder.tokenizer, decoder.params, [part], decoder.mesh
      (known[which],) = scores.score(decoder.model, *how)
  return [known[id(way.decoder), way.streams] for way in found]


def speed(
  found: Sequence[Way], batch_size: int, repeats: int, warm_up: int
) -> list[dict[str, Any]]:
  """Seconds of a batch of texts of the full length, in turns.

  Args:
    found: what to compare.
    batch_size: texts generated together.
    repeats: timed rounds.
    warm_up: rounds before, not counted.
  Returns:
    steps, how often the network ran; seconds (median of a batch) and tokens_per_second.
  """
  steps, calls = {}, {}
  for number, way in enumerate(found):
    request = _nothing_given(way, batch_size)
    run = functools.partial(way.generate, request, Sampling())
    steps[number] = int(run()[1].steps)
    calls[number] = lambda run=run: run()[1].tokens_BxN
  seconds = clock.medians(clock.interleaved(calls, repeats, warm_up))
  tokens = [batch_size * way.decoder.model.config.num_slots for way in found]
  return [
    {
      'steps': steps[number],
      'seconds': seconds[number],
      'tokens_per_second': tokens[number] / seconds[number],
    }
    for number in range(len(found))
  ]


def _nothing_given(way, batch_size):
  num_slots = way.decoder.model.config.num_slots
  return continue_prompts([''] * batch_size, num_slots, way.decoder.tokenizer)


def written(way: Way, count: int, batch_size: int) -> list[str]:
  """So many texts of the full length, at temperature 1."""
  texts: list[str] = []
  while len(texts) < count:
    sampling = Sampling(seed=len(texts))
    texts += way.generate(_nothing_given(way, batch_size), sampling)[0]
  return texts[:count]


def judged(
  way: Way, texts: Sequence[str], judge: quality.Judge | None, true: Sequence[str]
) -> dict[str, Any]:
  """What texts are like; empty ones are counted, and left out of the other numbers.

  Args:
    way: how they were generated.
    texts: generated.
    judge: None: there is none, and perplexity and MAUVE are None.
    true: of humans, for MAUVE; (): it is not asked for.
  """
  statistics = quality.statistics([way.decoder.tokenizer.encode(text) for text in texts])
  verdict = judge and quality.judge_texts(judge, texts)
  mauve = judging.mauve_score(judge, texts, true) if judge and true else None
  return {
    'empty_texts': statistics.left_out,
    'entropy_nats': statistics.entropy_nats,
    'judge_perplexity': verdict and verdict.corpus_perplexity,
    'mauve': mauve and mauve.score,
  }


def measure(
  found: Sequence[Way],
  windows_WxN: np.ndarray,
  *,
  batch_sizes: Sequence[int],
  repeats: int,
  warm_up: int,
  gap_sizes: Sequence[int],
  samples: int,
  judge: quality.Judge | None,
  mauve: bool = False,
) -> list[dict[str, Any]]:
  """All numbers of every way; the arguments are the flags of `Options`.

  Returns:
    A row for each: way, family, what `held_out` has, gaps (nats by size), steps, tokens_per_second
    (by batch size) and, of as many samples, what `judged` has.
  """
  rows: list[dict[str, Any]] = [{'way': way.name, 'family': way.family} for way in found]
  for row, known in zip(rows, held_out(found, windows_WxN), strict=True):
    row |= known | {'gaps': {}}
  for size in gap_sizes:
    for row, nats in zip(rows, gaps(found, windows_WxN, size), strict=True):
      row['gaps'][str(size)] = nats
  for batch_size in batch_sizes:
    timed = speed(found, batch_size, repeats, warm_up)
    for row, numbers in zip(rows, timed, strict=True):
      row['steps'] = numbers['steps']
      row.setdefault('tokens_per_second', {})[str(batch_size)] = numbers['tokens_per_second']
  if samples:
    tokenizer = found[0].decoder.tokenizer
    true = [tokenizer.decode(ids_N) for ids_N in windows_WxN] if mauve else []
    for row, way in zip(rows, found, strict=True):
      row |= judged(way, written(way, samples, max(batch_sizes)), judge, true)
  return rows


def _opened(paths: Sequence[str]) -> tuple[dict[str, Decoder], Any]:
  """The runs by name, and the held-out windows that all of them are measured on."""
  decoders: dict[str, Decoder] = {}
  compared: dict[str, dict[str, Any]] = collections.defaultdict(dict)
  for path in paths:
    config, tokenizer, params, _ = weights.load_ema(path)
    name = pathlib.Path(path).name
    if name in decoders:
      raise UserError(f'two runs are called {name}; give them folders of different names')
    corpus = corpus_lib.load(config.data, config.model.length)
    if known := weights.text_sha256_of(path):
      corpus_lib.check_same(known, corpus, path)
    model, mesh = (
      families.build(config.model, tokenizer.vocab_size),
      sharding.make_mesh(config.mesh),
    )
    decoders[name] = Decoder(model, params, tokenizer, mesh)
    compared['lengths of text'][path] = config.model.length
    compared['vocabularies'][path] = tokenizer.name
    compared['held-out texts'][path] = corpus.sha256
  for what, of_path in compared.items():
    if len(set(of_path.values())) > 1:
      there = ', '.join(f'{path}: {str(value)[:16]}' for path, value in of_path.items())
      raise UserError(f'the runs have different {what} ({there}); compare runs that share them')
  return decoders, corpus.held_out_WxN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  run: tuple[str, ...] = flag(
    'A run or an export; several are compared.', repeated=True, is_path=True
  )
  streams: tuple[int, ...] = flag('S, of families with orders.', (1, 4, 16), at_least=1)
  steps: tuple[int, ...] = flag('T, of families with a sampler; 0: the tokens.', (0,), at_least=0)
  batch_sizes: tuple[int, ...] = flag('Texts generated together.', (1, 8), at_least=1)
  repeats: int = flag('Timed rounds.', 5, at_least=1)
  warm_up: int = flag('Rounds before the timed ones.', 1, at_least=0)
  windows: int = flag('Held-out windows to score.', 64, at_least=1)
  gaps: tuple[int, ...] = flag('Tokens missing in the middle of a window.', (8, 32), at_least=1)
  samples: int = flag('Texts of each way for the judge; 0: none.', 16, at_least=0)
  judge: str | None = flag('Hugging Face folder or .gguf file.', None, is_path=True)
  mauve: bool = flag('Also MAUVE, which asks for thousands of samples.', False)
  json: str | None = cli.json_file()
  png: str | None = flag('Also draw the front to this file.', None, is_path=True, writes='picture')


def main(options: Options) -> None:
  if options.mauve and not options.judge:
    raise UserError('--mauve compares texts by a judge; write --judge=PATH')
  judge = judging.open_judge(options.judge) if options.judge else None
  decoders, windows_WxN = _opened(options.run)
  windows_WxN = windows_WxN[: options.windows]
  if max(options.gaps, default=0) >= windows_WxN.shape[1]:
    raise UserError(
      f'--gaps={",".join(map(str, options.gaps))} is more than a window of {windows_WxN.shape[1]} '
      'tokens has beside it; write less'
    )
  found = [
    way
    for name, decoder in decoders.items()
    for way in ways(name, decoder, options.streams, options.steps)
  ]
  machine = machines.machine()
  print(f'{machines.machine_line(machine)}; medians of {options.repeats} rounds in turns')
  print(f'{len(windows_WxN)} held-out windows; bounds and exact nats do not compare', flush=True)
  rows = measure(
    found, windows_WxN, batch_sizes=options.batch_sizes, repeats=options.repeats,
    warm_up=options.warm_up, gap_sizes=options.gaps, samples=options.samples, judge=judge,
    mauve=options.mauve,
  )  # fmt: skip
  print(report(rows))
  if options.json:
    cli.write_json(options.json, {'machine': machine, 'judge': judge and judge.name, 'ways': rows})
  if options.png:
    from armd_jax.show import fronts

    fronts.draw(rows, options.png)


def report(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as text."""
  return columns.table(
    [
      {
        'way': row['way'],
        'kind': row['kind'],
        'nats/byte': row['nats_per_byte'],
        **{f'nats, gap of {size}': nats for size, nats in row['gaps'].items()},
        'steps': row['steps'],
        **{f'tokens/s, batch {b}': rate for b, rate in row['tokens_per_second'].items()},
        'judge': row.get('judge_perplexity'),
        'entropy': row.get('entropy_nats'),
        'MAUVE': row.get('mauve'),
        'empty texts': row.get('empty_texts'),
      }
      for row in rows
    ]
  )


if __name__ == '__main__':
  cli.run(main, Options)

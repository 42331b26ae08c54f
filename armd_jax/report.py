"""A run as one HTML page: `armd report --workdir=DIR`.

Curves, measured numbers, quality against speed, orders and masks, and texts that the run generates,
replayed step by step. The page holds all it shows: it opens offline and fetches nothing. Numbers
come from what `evaluate`, `bench.decode` and `judge` wrote with --json, or from a quickstart's
results.json; training is read from the run itself. `armd report --workdir=A --workdir=B --out=FILE`
compares runs: numbers, curves, texts and what differs in their options.
"""

from __future__ import annotations

import dataclasses
import pathlib

from armd_jax import cli, families
from armd_jax.artifacts import weights
from armd_jax.artifacts.cards import measured_in
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.files import buckets, paths
from armd_jax.flags import flag
from armd_jax.parallel import sharding
from armd_jax.show import compare_page, report_files, run_page
from armd_jax.training import text
from armd_jax.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  workdir: tuple[str, ...] = flag(
    'A training run; several are compared.', repeated=True, is_path='or a bucket'
  )
  out: str | None = flag(
    'The page; left out: report.html in the first workdir.',
    None,
    is_path='or a bucket',
    writes='page',
  )
  scores: tuple[str, ...] = flag('Files of evaluate --json.', (), is_path=True)
  decoding: str | None = flag('File of bench.decode --json.', None, is_path=True)
  judged: tuple[str, ...] = flag('Files of judge --json.', (), is_path=True)
  streams: tuple[int, ...] = flag('Stride counts S of the texts.', (1, 2, 4, 8), at_least=1)
  prompt: str = flag('Text that the generated ones go on from.', '')
  seed: int = flag('Seed of all draws.', 0)
  temperature: float = flag('0 takes the most likely tokens.', 1.0)
  top_p: float = flag('Nucleus of the distribution to draw from.', 1.0)


def _runs(options: Options, workdirs: list[pathlib.Path], sampling: Sampling) -> str:
  """The page of several runs."""
  if options.scores or options.decoding or options.judged:
    raise UserError(
      '--scores, --decoding and --judged are of one run; give one --workdir, or leave them out'
    )
  runs = []
  for workdir in workdirs:
    records = report_files.read_records(workdir)
    config, tokenizer, params, step = weights.load_ema(workdir)
    model = families.build(config.model, tokenizer.vocab_size)
    decoder = Decoder(model, params, tokenizer, sharding.make_mesh(config.mesh))
    text_of = weights.text_sha256_of(workdir)
    runs.append(compare_page.Run(workdir, config, step, records, decoder, text_of))
  streams = 4 if 4 in options.streams else max(options.streams)
  return compare_page.page(runs, sampling, streams, options.prompt)


def _run(options: Options, workdir: pathlib.Path, sampling: Sampling) -> str:
  """The page of one run."""
  workdir_lib.read_config(workdir)
  records = report_files.read_records(workdir)
  measured = report_files.read_measured(workdir, options.decoding, options.judged)
  config, tokenizer, params, step = weights.load_ema(workdir)
  if options.scores:
    scores = {path: measured_in(path, step) for path in options.scores}
    measured = dataclasses.replace(measured, scores=scores)
  model = families.build(config.model, tokenizer.vocab_size)
  decoder = Decoder(model, params, tokenizer, sharding.make_mesh(config.mesh))
  return run_page.page(
    workdir, config, step, records, measured, decoder, sampling,
    streams=options.streams, prompt=options.prompt, statistics=text.statistics_of(workdir),
  )  # fmt: skip


def main(options: Options) -> None:
  sampling = Sampling(options.seed, options.temperature, options.top_p)
  workdirs = [paths.kept(workdir, '--workdir') for workdir in options.workdir]
  out = paths.kept(options.out, '--out') if options.out else workdirs[0] / 'report.html'
  if len(workdirs) > 1:
    page = _runs(options, workdirs, sampling)
  else:
    page = _run(options, workdirs[0], sampling)
  report_files.write(out, page)
  where = out if buckets.is_bucket(out) else out.absolute().as_uri()
  print(f'{where}: {len(page.encode()) / 1e6:.1f} MB, opens in any browser, offline')


if __name__ == '__main__':
  cli.run(main, Options)

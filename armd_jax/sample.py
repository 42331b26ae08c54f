"""Generates text: `armd sample --workdir=DIR --streams=4 --prompt="Once upon"`.

With --prompt the text continues the prompt; with --infill three or more underscores in a row are a
gap, and the rest is kept. A diffusion baseline takes --steps in place of --streams. On a
terminal the text appears as it is generated, stream by stream: --live slows it down so that one can
read along, and --race shows S = 1 beside S = 4 on one clock.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np

from armd_jax import cli, families
from armd_jax.artifacts.weights import load_ema
from armd_jax.config import MeshConfig, ModelConfig
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import live, race
from armd_jax.decode.requests import Decoder, check_counts
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.families import asked
from armd_jax.flags import flag
from armd_jax.parallel import distributed, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.OnCluster):
  workdir: str = flag('A training run, or an export.', is_path='or a bucket')
  streams: int = flag('S: tokens generated at once.', 4)
  steps: int = flag(
    "Steps of a diffusion baseline's sampler; 0: one per token.", 0, at_least=0, at_most=2**20
  )
  sampler: str = flag("Of a diffusion baseline; left out: its family's first.", '')
  prompt: str = flag('Text to go on from.', '')
  infill: str | None = flag('Text whose gaps (___) are filled.', None)
  gap_tokens: int = flag('Tokens in every gap; 0: as many as its underscores.', 0, at_least=0)
  num_samples: int = flag('Texts to generate.', 1)
  seed: int = flag('Seed of all draws.', 0)
  temperature: float = flag('0 takes the most likely tokens.', 1.0)
  top_p: float = flag('Nucleus of the distribution to draw from.', 1.0)
  mend: int = flag(
    'Tokens on either side of each junction of streams to write anew, once all others are there.',
    0, at_least=0,
  )  # fmt: skip
  stop: str = flag('Where a text ends.', 'none', choices=('none', 'eos'))
  live: bool | None = flag(
    'Show text as it is generated, slowly; left out: on a terminal, at full speed.', None
  )
  race: bool = flag('Show S = 1 beside --streams, with a clock.', False)
  margin: bool = flag('Also print how close the closest decision was.', False)
  json: str | None = cli.json_file()
  mesh: MeshConfig | None = cli.mesh()


def _request(options: Options, model: ModelConfig, tokenizer: Tokenizer) -> Request:
  diffuses = bool(options.steps or options.sampler)
  asked.check_family(model, options.streams, options.infill, diffuses)
  asked.check_race(model, options.streams, options.race)
  asked.check_mend(model, options.streams, options.mend)
  gaps = options.infill, options.gap_tokens
  return asked.request_of(options.prompt, *gaps, options.num_samples, model.num_slots, tokenizer)


def main(options: Options) -> None:
  check_counts(options.streams, options.num_samples)
  sampling = Sampling(options.seed, options.temperature, options.top_p)
  options.start()
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(options.workdir, options.mesh)
  )
  request = distributed.together(lambda: _request(options, config.model, tokenizer))
  family = families.of(config.model)
  # Watching is one process's own doing, and several must run the same programs.
  alone = jax.process_count() == 1 and not family.samplers and not options.race
  shows = sys.stdout.isatty() if options.live is None else options.live
  watch = live.Live(tokenizer, sys.stdout, slow=bool(options.live)) if alone and shows else None
  start = time.perf_counter()
  sampling = dataclasses.replace(sampling, stop=tokenizer.eos_id if options.stop == 'eos' else None)
  model = families.build(config.model, tokenizer.vocab_size)
  decoder = Decoder(model, params, tokenizer, sharding.make_mesh(config.mesh))
  if distributed.is_first():
    print('compiling ...', file=sys.stderr, flush=True)
  if family.samplers:
    sampler = distributed.together(lambda: asked.sampler_of(config.model, options.sampler))
    how = f'sampler {sampler}'
    how_many: Any = {'steps': options.steps, 'sampler': sampler}
  else:
    how = f'S = {options.streams}'
    how_many = {'streams': options.streams, 'watch': watch, 'mend': options.mend}
  if options.race:
    print(race.run(decoder, request, (1, options.streams), sampling, sys.stdout))
  texts, generated = family.generate(decoder, request, sampling, **how_many)
  seconds = time.perf_counter() - start
  if not distributed.is_first():
    return
  if watch:
    watch.clear()
  rate = f'{watch.tokens_per_second():.1f} tokens/s, ' if watch and not options.live else ''
  if options.json:
    words = {name: getattr(options, name) for name in asked.WORDS} | {'step': step}
    streams = 1 if family.samplers else options.streams
    junctions = asked.junctions_of(request, streams, generated, tokenizer)
    cli.write_json(options.json, asked.numbers(words, texts, generated, junctions, seconds))
  print('\n'.join(line for text in texts for line in ('-' * 80, text)))
  print('-' * 80)
  print(
    f'{len(texts)} texts in {int(generated.steps)} steps, {how}, {rate}{seconds:.1f} s with '
    f'compilation, weights of step {step}'
    + (f'; the closest decision by {np.min(generated.margin_B):.1e} nats' if options.margin else '')
  )


if __name__ == '__main__':
  cli.run(main, Options)

"""Generates text: `armd sample --workdir=DIR --streams=4 --prompt="Once upon"`.

With --prompt the text goes on from the prompt; with --infill every run of three or more underscores
is a gap, and the rest is kept. A diffusion baseline takes --steps in place of --streams. On a
terminal the text appears as it is generated, stream by stream.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import jax
import numpy as np

from armd_jax import cli, families
from armd_jax.artifacts.weights import load_ema
from armd_jax.config import MeshConfig, ModelConfig, check_streams
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import live
from armd_jax.decode.requests import Decoder, check_counts
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.families import asked
from armd_jax.flags import flag
from armd_jax.parallel import distributed, sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.OnCluster):
  workdir: str = flag('A training run, or an export.')
  streams: int = flag('S: tokens generated at once.', 4)
  steps: int = flag("Steps of a diffusion baseline's sampler; 0: one per token.", 0, at_least=0)
  sampler: str = flag("Of a diffusion baseline; left out: its family's first.", '')
  prompt: str = flag('Text to go on from.', '')
  infill: str | None = flag('Text whose gaps (___) are filled.', None)
  gap_tokens: int = flag('Tokens in every gap; 0: as many as its underscores.', 0, at_least=0)
  num_samples: int = flag('Texts to generate.', 1)
  seed: int = flag('Seed of all draws.', 0)
  temperature: float = flag('0 takes the most likely tokens.', 1.0)
  top_p: float = flag('Nucleus of the distribution to draw from.', 1.0)
  stop: str = flag('Where a text ends.', 'none', choices=('none', 'eos'))
  live: str = flag(
    'Show text as it is generated; auto: on a terminal.', 'auto', choices=('auto', 'on', 'off')
  )
  json: str | None = cli.json_file()
  mesh: MeshConfig | None = cli.mesh()


def _request(options: Options, model: ModelConfig, tokenizer: Tokenizer) -> Request:
  diffuses = bool(options.steps or options.sampler)
  asked.check_family(model, options.streams, options.infill, diffuses)
  return asked.request_of(
    options.prompt, options.infill, options.gap_tokens, options.num_samples, model.num_slots,
    tokenizer,
  )  # fmt: skip


def _is_live(options: Options) -> bool:
  # Watching is one process's own doing, and several must run the same programs.
  if jax.process_count() > 1:
    return False
  return sys.stdout.isatty() if options.live == 'auto' else options.live == 'on'


def main(options: Options) -> None:
  check_counts(options.streams, options.num_samples)
  sampling = Sampling(options.seed, options.temperature, options.top_p)
  options.start()
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(options.workdir, options.mesh)
  )
  distributed.together(lambda: check_streams(options.streams, config.model.num_slots, '--streams'))
  request = distributed.together(lambda: _request(options, config.model, tokenizer))
  family = families.of(config.model)
  watch = live.Live(tokenizer, sys.stdout) if _is_live(options) and not family.samplers else None
  start = time.perf_counter()
  if options.stop == 'eos':
    sampling = dataclasses.replace(sampling, stop=tokenizer.eos_id)
  model = families.build(config.model, tokenizer.vocab_size)
  decoder = Decoder(model, params, tokenizer, sharding.make_mesh(config.mesh))
  if family.samplers:
    sampler = distributed.together(lambda: asked.sampler_of(config.model, options.sampler))
    how = f'sampler {sampler}'
    how_many = {'steps': options.steps, 'sampler': sampler}
  else:
    how = f'S = {options.streams}'
    how_many = {'streams': options.streams, 'watch': watch}
  texts, generated = family.generate(decoder, request, sampling, **how_many)
  seconds = time.perf_counter() - start
  if not distributed.is_first():
    return
  rate = ''
  if watch:
    watch.clear()
    rate = f'{watch.tokens_per_second():.1f} tokens/s, '
  margin = float(np.min(generated.margin_B))
  for text in texts:
    print('-' * 80)
    print(text)
  print('-' * 80)
  print(
    f'{len(texts)} texts in {int(generated.steps)} steps, {how}, {rate}{seconds:.1f} s with '
    f'compilation, weights of step {step}; the closest decision by {margin:.1e} nats'
  )
  if options.json:
    numbers = {
      'texts': texts,
      'steps': int(generated.steps),
      'step': step,
      'seconds': seconds,
      'margin': margin,
    }
    cli.write_json(options.json, numbers)


if __name__ == '__main__':
  cli.run(main, Options)

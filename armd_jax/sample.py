"""Generates text: `python -m armd_jax.sample --workdir=DIR --streams=4 --prompt="Once upon"`.

With --prompt the text goes on from the prompt; with --infill every run of three or more underscores
is a gap, and the rest is kept. A diffusion baseline takes --steps in place of --streams. On a
terminal the text appears as it is generated, stream by stream.
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np
from absl import flags

from armd_jax import cli, families
from armd_jax.artifacts.weights import load_ema
from armd_jax.config import Config
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import live
from armd_jax.decode.requests import (
  Request,
  check_sampling,
  continue_prompts,
  fill_gaps,
)
from armd_jax.errors import UserError
from armd_jax.parallel import distributed


def _sampler(config: Config) -> str:
  """The sampler of a diffusion baseline that is asked for, or its family's first.

  Raises:
    UserError: the family has no such sampler.
  """
  names = families.of(config.model).samplers
  if _SAMPLER.value and _SAMPLER.value not in names:
    raise UserError(
      f'--sampler is {_SAMPLER.value!r}; for {config.model.family!r} write one of '
      f'{", ".join(map(repr, names))}'
    )
  return _SAMPLER.value or names[0]


def _request(config: Config, tokenizer: Tokenizer) -> Request:
  """What the flags ask for."""
  model = config.model
  if model.orders == 'left_to_right' and (_STREAMS.value > 1 or _INFILL.value):
    raise UserError(
      f'the model is auto-regressive ({model.family!r}); leave out --infill and write --streams=1'
    )
  if not families.of(model).samplers and (_STEPS.value or _SAMPLER.value):
    raise UserError(
      f'--steps and --sampler are for diffusion baselines; the model is {model.family!r}, write '
      '--streams'
    )
  num_slots = model.num_slots
  if _INFILL.value is None:
    return continue_prompts([_PROMPT.value] * _NUM_SAMPLES.value, num_slots, tokenizer)
  if _PROMPT.value:
    raise UserError('--prompt and --infill exclude each other; put the prompt into --infill')
  return fill_gaps(_INFILL.value, _GAP_TOKENS.value, _NUM_SAMPLES.value, num_slots, tokenizer)


def _is_live() -> bool:
  # Watching is one process's own doing, and several must run the same programs.
  if jax.process_count() > 1:
    return False
  return sys.stdout.isatty() if _LIVE.value == 'auto' else _LIVE.value == 'on'


def main() -> None:
  check_sampling(_STREAMS.value, _TEMPERATURE.value, _TOP_P.value, _NUM_SAMPLES.value)
  mesh_config = cli.mesh_of(_MESH.value)
  distributed.start(_CLUSTER())
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(_WORKDIR.value, mesh_config)
  )
  request = distributed.together(lambda: _request(config, tokenizer))
  family = families.of(config.model)
  watch = live.Live(tokenizer, sys.stdout) if _is_live() and not family.samplers else None
  start = time.perf_counter()
  options = dict(
    seed=_SEED.value, temperature=_TEMPERATURE.value, top_p=_TOP_P.value, stop=_STOP.value
  )
  if family.samplers:
    sampler = distributed.together(lambda: _sampler(config))
    how = f'sampler {sampler}'
    options |= {'steps': _STEPS.value, 'sampler': sampler}
  else:
    how = f'S = {_STREAMS.value}'
    options |= {'streams': _STREAMS.value, 'watch': watch}
  texts, generated = family.generate(config, tokenizer, params, request, **options)
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
  if _JSON.value:
    numbers = {
      'texts': texts,
      'steps': int(generated.steps),
      'step': step,
      'seconds': seconds,
      'margin': margin,
    }
    cli.write_json(_JSON.value, numbers)


if __name__ == '__main__':
  _WORKDIR = cli.workdir_flag('A training run, or an export.')
  _STREAMS = flags.DEFINE_integer('streams', 4, 'S: tokens generated at once.')
  _STEPS = flags.DEFINE_integer(
    'steps', 0, "Steps of a diffusion baseline's sampler; 0: one per token.", lower_bound=0
  )
  _SAMPLER = flags.DEFINE_string('sampler', '', "Of a diffusion baseline; '': its family's first.")
  _PROMPT = flags.DEFINE_string('prompt', '', 'Text to go on from.')
  _INFILL = flags.DEFINE_string('infill', None, 'Text whose gaps (___) are filled.')
  _GAP_TOKENS = flags.DEFINE_integer(
    'gap_tokens', 0, 'Tokens in every gap; 0: as many as its underscores.', lower_bound=0
  )
  _NUM_SAMPLES = flags.DEFINE_integer('num_samples', 1, 'Texts to generate.')
  _SEED = flags.DEFINE_integer('seed', 0, 'Seed of all draws.')
  _TEMPERATURE = flags.DEFINE_float('temperature', 1.0, '0 takes the most likely tokens.')
  _TOP_P = flags.DEFINE_float('top_p', 1.0, 'Nucleus of the distribution to draw from.')
  _STOP = flags.DEFINE_enum('stop', 'none', ['none', 'eos'], 'Where a text ends.')
  _LIVE = flags.DEFINE_enum(
    'live', 'auto', ['auto', 'on', 'off'], 'Show text as it is generated; auto: on a terminal.'
  )
  _JSON = cli.json_flag()
  _MESH = cli.mesh_flag()
  _CLUSTER = distributed.define_flags()
  cli.run(main)

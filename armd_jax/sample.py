"""Generates text: `python -m armd_jax.sample --workdir=DIR --streams=4 --prompt="Once upon"`.

With --prompt the text goes on from the prompt; with --infill every run of three or more underscores
is a gap, and the rest is kept. A diffusion baseline takes --steps in place of --streams. On a
terminal the text appears as it is generated, stream by stream.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from armd_jax import checkpoint, cli, distributed, live, sharding, standalone, training
from armd_jax.config import Config, MeshConfig
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.decode import diffusion
from armd_jax.decode.generate import Generated, generate, stream, task_of
from armd_jax.errors import UserError
from armd_jax.models.armd import BOS


@dataclasses.dataclass(frozen=True)
class Request:
  """Texts to complete, one per row.

  Attributes:
    tokens_BxN: int32 ids in text order, 0 where not given.
    given_BxN: bool, which are given.
    length_B: int32, tokens of each text; later positions stay empty.
  """

  tokens_BxN: np.ndarray
  given_BxN: np.ndarray
  length_B: np.ndarray


def load_ema(
  workdir: str | pathlib.Path, mesh_config: MeshConfig | None = None
) -> tuple[Config, Tokenizer, Any, int]:
  """Config, tokenizer, averaged parameters and step of a run's newest checkpoint, or an export's.

  Args:
    workdir: the run's, or an export's path.
    mesh_config: where the parameters shall lie; None: on the run's mesh if it makes up the devices
      that are here, else on all of them along data.
  Returns:
    The config's mesh is the one where the parameters lie.
  Raises:
    UserError: nothing is there, it is damaged or from another config, or the mesh does not make up
      the devices or cannot share the model.
  """
  export = standalone.read(workdir) if standalone.is_export(workdir) else None
  config = export.config if export else checkpoint.read_config(workdir)
  if mesh_config is None:
    fits = sharding.axis_sizes(config.mesh, jax.device_count()) is not None
    mesh_config = config.mesh if fits else MeshConfig()
  config = dataclasses.replace(config, mesh=mesh_config)
  tokenizer = get_tokenizer(config.data.tokenizer)
  mesh = sharding.make_mesh(config.mesh)
  abstract = training.abstract_state(config, tokenizer.vocab_size, mesh)
  if export:
    return config, tokenizer, standalone.parameters(workdir, abstract.ema), export.step
  state, _ = checkpoint.Checkpoints(workdir).restore(abstract)
  return config, tokenizer, state.ema, int(state.step)


def continue_prompts(prompts: list[str], num_slots: int, tokenizer: Tokenizer) -> Request:
  """Every text goes on from its prompt to the model's length.

  Raises:
    UserError: a prompt leaves no room.
  """
  request = _empty(len(prompts), num_slots)
  for b, prompt in enumerate(prompts):
    ids = tokenizer.encode(prompt)
    if len(ids) >= num_slots:
      raise UserError(
        f'the prompt has {len(ids)} tokens but the model takes {num_slots}; '
        f'shorten it to {num_slots - 1} or fewer'
      )
    request.tokens_BxN[b, : len(ids)] = ids
    request.given_BxN[b, : len(ids)] = True
  request.length_B[:] = num_slots
  return request


def fill_gaps(
  template: str, gap_tokens: int, count: int, num_slots: int, tokenizer: Tokenizer
) -> Request:
  """`count` copies of a template whose gaps, runs of three or more underscores, are to be filled.

  Args:
    template: the text around the gaps.
    gap_tokens: tokens in every gap; 0: as many as it has underscores.
    count: rows.
  Raises:
    UserError: there is no gap, or the text is longer than the model.
  """
  pieces = re.split('(_{3,})', template)
  if len(pieces) == 1:
    raise UserError('--infill has no gap; mark one by three or more underscores, like "To be ___"')
  ids, given = [], []
  for i, piece in enumerate(pieces):
    is_gap = i % 2 == 1
    new = [0] * (gap_tokens or len(piece)) if is_gap else tokenizer.encode(piece).tolist()
    ids += new
    given += [not is_gap] * len(new)
  if len(ids) > num_slots:
    raise UserError(
      f'--infill makes {len(ids)} tokens but the model takes {num_slots}; shorten the text or '
      'the gaps'
    )
  request = _empty(count, num_slots)
  request.tokens_BxN[:, : len(ids)] = ids
  request.given_BxN[:, : len(ids)] = given
  request.length_B[:] = len(ids)
  return request


def _empty(batch, num_slots):
  shape = (batch, num_slots)
  return Request(np.zeros(shape, np.int32), np.zeros(shape, bool), np.zeros(batch, np.int32))


def complete(
  config: Config,
  tokenizer: Tokenizer,
  params: Any,
  request: Request,
  *,
  streams: int,
  seed: int = 0,
  temperature: float = 1.0,
  top_p: float = 1.0,
  stop: str = 'none',
  watch: Callable[[Generated, np.ndarray], None] | None = None,
) -> tuple[list[str], Generated]:
  """Generates and decodes.

  Args:
    config, tokenizer, params: a trained model, whose parameters lie on the config's mesh.
    request: from `continue_prompts` or `fill_gaps`.
    streams: S, tokens generated at once.
    seed, temperature, top_p: see `decode.generate.generate`.
    stop: 'eos' cuts a text at its first generated EOS; 'none' runs to the end.
    watch: is called with what there is every few steps, as `decode.generate.stream` yields it; the
      texts are the same.
  Returns:
    The texts, and what the decoder returned.
  """
  first_is_given = config.model.bos == 'first_token_given'
  task = task_of(
    request.given_BxN, request.length_B, streams, tokenizer.eos_id if first_is_given else BOS
  )
  arguments = config.model, tokenizer.vocab_size, params, task, request.tokens_BxN
  options = dict(
    seed=seed,
    temperature=temperature,
    top_p=top_p,
    stop_token=tokenizer.eos_id if stop == 'eos' else None,
    mesh=sharding.make_mesh(config.mesh),
  )
  if watch is None:
    generated = jax.block_until_ready(generate(*arguments, **options))
  else:
    for generated, known_BxN in stream(*arguments, **options):
      watch(generated, known_BxN)
  rows = zip(np.asarray(generated.tokens_BxN), np.asarray(generated.length_B), strict=True)
  return [tokenizer.decode(ids_N[:length]) for ids_N, length in rows], generated


def denoise(
  config: Config,
  tokenizer: Tokenizer,
  params: Any,
  request: Request,
  *,
  steps: int,
  sampler: str,
  seed: int = 0,
  temperature: float = 1.0,
  top_p: float = 1.0,
  stop: str = 'none',
) -> tuple[list[str], diffusion.Denoised]:
  """`complete` by a diffusion baseline.

  Args:
    steps: of the sampler; 0: as many as there are tokens to generate.
    sampler: one of `decode.diffusion.SAMPLERS`.
  """
  is_free_BxN = ~request.given_BxN
  is_free_BxN &= np.arange(is_free_BxN.shape[1]) < request.length_B[:, None]
  generated = diffusion.generate(
    config.model,
    tokenizer.vocab_size,
    params,
    request.tokens_BxN,
    request.given_BxN,
    request.length_B,
    steps=steps or int(is_free_BxN.sum(axis=1).max()),
    sampler=sampler,
    seed=seed,
    first_token=tokenizer.eos_id,
    temperature=temperature,
    top_p=top_p,
    mesh=sharding.make_mesh(config.mesh),
  )
  tokens_BxN, length_B = np.asarray(generated.tokens_BxN), request.length_B
  if stop == 'eos':
    is_stop_BxN = is_free_BxN & (tokens_BxN == tokenizer.eos_id)
    length_B = np.where(is_stop_BxN.any(axis=1), is_stop_BxN.argmax(axis=1), length_B)
  texts = [tokenizer.decode(ids_N[:n]) for ids_N, n in zip(tokens_BxN, length_B, strict=True)]
  return texts, generated.replace(length_B=length_B)


def check_sampling(streams: int, temperature: float, top_p: float, num_samples: int) -> None:
  """Refuses what cannot be sampled with.

  Raises:
    UserError: naming the flag, its value and the fix.
  """
  for name, value, fine, fix in (
    ('streams', streams, streams >= 1, '1 or more'),
    ('num_samples', num_samples, num_samples >= 1, '1 or more'),
    ('temperature', temperature, temperature >= 0, '0 (most likely) or more'),
    ('top_p', top_p, 0 < top_p <= 1, 'more than 0 and at most 1'),
  ):
    if not fine:
      raise UserError(f'--{name} is {value}; write {fix}')


def _sampler(config: Config) -> str:
  """The sampler of a diffusion baseline that is asked for, or its family's first.

  Raises:
    UserError: the family has no such sampler.
  """
  names = diffusion.SAMPLERS[config.model.family]
  if _SAMPLER.value and _SAMPLER.value not in names:
    raise UserError(
      f'--sampler is {_SAMPLER.value!r}; for {config.model.family!r} write one of '
      f'{", ".join(map(repr, names))}'
    )
  return _SAMPLER.value or names[0]


def _request(config: Config, tokenizer: Tokenizer) -> Request:
  """What the flags ask for."""
  if config.model.family == 'ar' and (_STREAMS.value > 1 or _INFILL.value):
    raise UserError("the model is auto-regressive ('ar'); leave out --infill and write --streams=1")
  if config.model.family not in diffusion.SAMPLERS and (_STEPS.value or _SAMPLER.value):
    raise UserError(
      f'--steps and --sampler are for diffusion baselines; the model is {config.model.family!r}, '
      'write --streams'
    )
  num_slots = config.model.num_slots
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
  denoises = config.model.family in diffusion.SAMPLERS
  watch = live.Live(tokenizer, sys.stdout) if _is_live() and not denoises else None
  start = time.perf_counter()
  options = dict(
    seed=_SEED.value, temperature=_TEMPERATURE.value, top_p=_TOP_P.value, stop=_STOP.value
  )
  if denoises:
    sampler = distributed.together(lambda: _sampler(config))
    how = f'sampler {sampler}'
    texts, generated = denoise(
      config, tokenizer, params, request, steps=_STEPS.value, sampler=sampler, **options
    )
  else:
    how = f'S = {_STREAMS.value}'
    texts, generated = complete(
      config, tokenizer, params, request, streams=_STREAMS.value, watch=watch, **options
    )
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

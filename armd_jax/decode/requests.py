"""Texts to complete, from prompts and templates, and the texts that the decoders make of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from armd_jax.config import Config
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import diffusion
from armd_jax.decode.generate import Generated, generate, stream, task_of
from armd_jax.errors import UserError
from armd_jax.models.vocabulary import BOS
from armd_jax.objectives.diffusion import MaskedDiffusion
from armd_jax.parallel import sharding


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
  method: MaskedDiffusion,
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
    method: of the family.
    steps: of the sampler; 0: as many as there are tokens to generate.
    sampler: see `decode.diffusion`.
  """
  is_free_BxN = ~request.given_BxN
  is_free_BxN &= np.arange(is_free_BxN.shape[1]) < request.length_B[:, None]
  generated = diffusion.generate(
    method,
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

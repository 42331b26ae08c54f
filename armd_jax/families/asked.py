"""What a user asks a model to generate, held to what its family can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from armd_jax import families
from armd_jax.config import ModelConfig
from armd_jax.config_rules import check_streams
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode.requests import Request, continue_prompts, fill_gaps, heads_of
from armd_jax.decode.step import Generated
from armd_jax.errors import UserError, is_whole, quoted

# What `sample` is asked, by the names of its flags.
WORDS = (
  'workdir', 'prompt', 'infill', 'gap_tokens', 'streams', 'steps', 'sampler', 'seed',
  'temperature', 'top_p', 'stop', 'mend',
)  # fmt: skip


def sampler_of(model: ModelConfig, name: str) -> str:
  """The sampler of a diffusion baseline; '' names its family's first.

  Raises:
    UserError: the family has no such sampler.
  """
  names = families.of(model).samplers
  if name and name not in names:
    raise UserError(
      f'--sampler is {name!r}; for {model.family!r} write one of {", ".join(map(repr, names))}'
    )
  return name or names[0]


def check_family(model: ModelConfig, streams: int, infill: str | None, diffuses: bool) -> None:
  """Refuses what the family or the length of its texts cannot do.

  Args:
    model: of any family.
    streams: stride count S.
    infill: text with gaps, or None.
    diffuses: whether steps or a sampler are asked for, which only diffusion baselines have.
  Raises:
    UserError: it cannot.
  """
  check_streams(streams, model.num_slots, '--streams')
  if model.orders == 'left_to_right' and (streams > 1 or infill):
    raise UserError(
      f'the model is auto-regressive ({model.family!r}); leave out --infill and write --streams=1'
    )
  if infill and not families.of(model).infills:
    raise UserError(
      f'a model of family {model.family!r} reads nothing behind a gap; leave out --infill, and '
      'give what is before it as --prompt'
    )
  if not families.of(model).samplers and diffuses:
    raise UserError(
      f'--steps and --sampler are for diffusion baselines; the model is {model.family!r}, '
      'write --streams'
    )


def check_race(model: ModelConfig, streams: int, races: bool) -> None:
  """Refuses a race of what does not race.

  Raises:
    UserError: naming the fix.
  """
  if races and (model.orders != 'any' or streams < 2):
    raise UserError(
      f'--race shows S = 1 beside another S; the family is {model.family!r} and --streams is '
      f'{streams}, take an ARMD and 2 or more'
    )


def check_mend(model: ModelConfig, streams: int, mend: int) -> None:
  """Refuses to mend what has no junctions.

  Args:
    model: of any family.
    streams: stride count S.
    mend: tokens on either side of a junction that are written anew; 0: none.
  Raises:
    UserError: naming the fix.
  """
  if not is_whole(mend) or not 0 <= mend <= model.num_slots:
    raise UserError(f'mend is {quoted(mend)}; write a whole number from 0 to {model.num_slots}')
  if mend and (model.orders != 'any' or families.of(model).samplers or streams < 2):
    raise UserError(
      f'mend is {mend}, but only 2 or more streams of an ARMD have junctions; the family is '
      f'{model.family!r} and streams is {streams}, leave it out'
    )


def numbers(
  request: Mapping[str, Any],
  texts: Sequence[str],
  generated: Generated,
  junctions: Sequence[Sequence[int]],
  seconds: float,
) -> dict[str, Any]:
  """What `sample --json` writes: the request, texts and ids up to their ends, their junctions."""
  rows = zip(np.asarray(generated.tokens_BxN), np.asarray(generated.length_B), strict=True)
  return {
    'request': dict(request),
    'texts': list(texts),
    'ids': [ids_N[:length].tolist() for ids_N, length in rows],
    'junctions': list(junctions),
    'steps': int(generated.steps),
    'seconds': seconds,
    'margin': float(np.min(generated.margin_B)),
  }


def junctions_of(
  request: Request, streams: int, generated: Generated, tokenizer: Tokenizer
) -> list[list[int]]:
  """Of each text, the number of characters before each stream of it but the first.

  Args:
    request: what was asked.
    streams: S of the strided order that it was generated along.
    generated: what came of it.
    tokenizer: of the model.
  """
  rows = zip(np.asarray(generated.tokens_BxN), np.asarray(generated.length_B), strict=True)
  found = []
  for b, (ids_N, length) in enumerate(rows):
    heads = heads_of(request.given_BxN[b, : request.length_B[b]], streams)
    found.append([len(tokenizer.decode(ids_N[:head])) for head in heads if head < length])
  return found


def request_of(
  prompt: str,
  infill: str | None,
  gap_tokens: int,
  num_samples: int,
  num_slots: int,
  tokenizer: Tokenizer,
) -> Request:
  """Copies of one text: a prompt that is gone on with, or gaps that are filled.

  Args:
    prompt: beginning of the text, or ''.
    infill: text with gaps, or None.
    gap_tokens: tokens in every gap; 0: as many as its underscores.
    num_samples: copies.
    num_slots: of the model.
    tokenizer: of the model.
  Raises:
    UserError: both are given, or the text does not suit the model.
  """
  if infill is None:
    return continue_prompts([prompt] * num_samples, num_slots, tokenizer)
  if prompt:
    raise UserError('--prompt and --infill exclude each other; put the prompt into --infill')
  return fill_gaps(infill, gap_tokens, num_samples, num_slots, tokenizer)

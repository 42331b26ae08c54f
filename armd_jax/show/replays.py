"""How texts were generated, step by step, for the page that replays them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from armd_jax import families
from armd_jax import order as orders
from armd_jax.config import Config
from armd_jax.config_rules import check_streams
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import requests
from armd_jax.decode.generate import task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.show.report_page import Replay

_DRAWN = 16  # tokens of a drawn order


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

  Examples:
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


def steps_of(given_N: np.ndarray | jax.Array, streams: int) -> np.ndarray:
  """The step at which each token of a text is generated, int [N]; 0 where it is given.

  Examples:
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
  decoder: requests.Decoder, prompt: str, streams: Sequence[int], sampling: Sampling
) -> tuple[list[Replay], str]:
  """One text for every S; of a family with samplers, one for every K = tokens / S steps.

  Args:
    decoder: a trained model.
    prompt: what they continue.
    streams: stride counts S.
    sampling: how tokens are drawn.
  Returns:
    The texts, and how they were generated, in a sentence.
  Raises:
    UserError: the prompt leaves no room, or an S is more than the tokens.
  """
  config, tokenizer = decoder.model.config, decoder.tokenizer
  length = config.num_slots
  for count in streams:
    check_streams(count, length, '--streams')
  request = requests.continue_prompts([prompt], length, tokenizer)
  family = families.of(config)
  found = []
  for count in streams:
    if family.samplers:
      steps, generated = _in_steps(decoder, request, sampling, count)
      name = f'K = {steps}'
      step_N, heads = np.asarray(generated.step_BxN[0]), []
    else:
      _, generated = family.generate(decoder, request, sampling, streams=count)
      name, step_N = f'S = {count}', steps_of(request.given_BxN[0], count)
      heads = requests.heads_of(request.given_BxN[0], count)
    ids_N = np.asarray(generated.tokens_BxN[0])
    pieces = pieces_of(tokenizer, ids_N, step_N)
    ends = np.cumsum([tokens for _, tokens, _ in pieces])
    junctions = tuple(int(np.searchsorted(ends, head, side='right')) for head in heads)
    found.append(Replay(name, int(generated.steps), pieces, junctions))
  return found, family.shown.format(length=length)


def _in_steps(
  decoder: requests.Decoder, request: requests.Request, sampling: Sampling, streams: int
) -> tuple[int, Any]:
  """K steps that a sampler is asked for, of about so many tokens each, and what it generates.

  A sampler of blocks takes a step of each at least, however few it is asked for; then K is what it
  takes. Where a part of the text follows one by one, K is of the other part alone.
  """
  config = decoder.model.config
  steps, needed = 0, -(-int((~request.given_BxN[0]).sum()) // streams)
  while needed > steps:
    steps = needed
    _, generated = families.of(config).generate(decoder, request, sampling, steps=steps)
    if config.orders == 'none':
      needed = int(generated.steps)
  return steps, generated


def drawn_orders(config: Config, step: int) -> dict[str, orders.GenerationOrder]:
  """Small orders of the kinds that a run has been trained on by a step, by what they are called."""
  o, keys = config.order, jax.random.split(jax.random.key(config.seed), 1)
  if config.model.orders == 'none' or config.model.has_own_orders:
    return {}
  is_strided = 0 <= o.strided_start < step
  last = o.strided_start if is_strided else step
  budget = int(orders.progressive_budget(last - 1, o.ar_steps, o.perm_steps, o.max_shuffled))
  found = {'left-to-right': orders.left_to_right(_DRAWN)}
  if budget > 1:
    count = min(budget, _DRAWN // 2)
    found[f'{budget} shuffled' + _drawn_as(budget, count)] = orders.shuffled(
      keys, _DRAWN, count, o.perm_mode
    )
  if o.uniform_order_prob and last > o.ar_steps:
    if o.masking_steps:
      count = min(o.masking_steps, _DRAWN // 4)
      found[f'masked diffusion, T = {o.masking_steps}' + _drawn_as(o.masking_steps, count)] = (
        orders.masking_blocks(keys, _DRAWN, count, o.masking_schedule)
      )
    else:
      found['uniform'] = orders.uniform(keys, _DRAWN)
  for count in o.strided_streams if is_strided else ():
    if 1 < count < _DRAWN and _DRAWN % count == 0:
      found[f'strided, S = {count}'] = orders.strided(_DRAWN, count)
  return found


def _drawn_as(of_the_run: int, here: int) -> str:
  return f', here {here}' if here < of_the_run else ''

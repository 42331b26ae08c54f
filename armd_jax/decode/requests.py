"""Texts to complete, from prompts and templates, and the texts that the decoders make of them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from armd_jax import errors
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import diffusion
from armd_jax.decode.generate import generate, stream, task_of
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request, Task
from armd_jax.decode.step import Generated
from armd_jax.errors import UserError, quoted, sentence
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.denoiser import Denoiser
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import BOS
from armd_jax.order import GenerationOrder

_MOST = 2**20  # texts at a time, and streams: arrays of more do not exist


def continue_prompts(
  prompts: list[str], num_slots: int, tokenizer: Tokenizer, max_new_tokens: int | None = None
) -> Request:
  """Every text continues its prompt, to the model's length or by the given number of tokens.

  Raises:
    UserError: a prompt leaves no room, or is no text.
  """
  if max_new_tokens is not None and not (errors.is_whole(max_new_tokens) and max_new_tokens > 0):
    raise UserError(f'max_new_tokens is {quoted(max_new_tokens)}; write a whole number from 1 on')
  request = _empty(len(prompts), num_slots)
  for b, prompt in enumerate(prompts):
    check_text('the prompt', prompt)
    ids = tokenizer.encode(prompt)
    if len(ids) >= num_slots:
      raise UserError(
        f'the prompt has {len(ids)} tokens but the model takes {num_slots}; '
        f'shorten it to {num_slots - 1} or fewer'
      )
    if max_new_tokens is not None and len(ids) + max_new_tokens > num_slots:
      raise UserError(
        f'the prompt has {len(ids)} tokens and max_new_tokens is {quoted(max_new_tokens)}, but the '
        f'model takes {num_slots}; write at most {num_slots - len(ids)}'
      )
    request.tokens_BxN[b, : len(ids)] = ids
    request.given_BxN[b, : len(ids)] = True
    request.length_B[b] = num_slots if max_new_tokens is None else len(ids) + max_new_tokens
  return request


def fill_gaps(
  template: str, gap_tokens: int, count: int, num_slots: int, tokenizer: Tokenizer
) -> Request:
  """`count` copies of a template whose gaps, three or more underscores in a row, are to be filled.

  Args:
    template: the text around the gaps.
    gap_tokens: tokens in every gap; 0: as many as it has underscores.
    count: rows.
  Raises:
    UserError: there is no gap, or the text is longer than the model.
  """
  check_text('--infill', template)
  if not errors.is_whole(gap_tokens) or not 0 <= gap_tokens <= num_slots:
    raise UserError(
      f'--gap_tokens is {quoted(gap_tokens)}; write 0 to the {num_slots} tokens that the model '
      'takes'
    )
  pieces = re.split('(_{3,})', template)
  if len(pieces) == 1:
    raise UserError('--infill has no gap; mark one by three or more underscores, like "To be ___"')
  ids, given = [], []  # type: list[int], list[bool]
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


def heads_of(given_N: np.ndarray | jax.Array, streams: int) -> list[int]:
  """Positions in a text at which its second and further streams begin.

  Args:
    given_N: bool, the tokens of the text that are not generated.
    streams: S.

  Examples:
    >>> heads_of(np.arange(8) < 2, 3)
    [4, 6]
  """
  free = np.flatnonzero(~np.asarray(given_N))
  return [int(run[0]) for run in np.array_split(free, streams)[1:] if len(run)]


def _near_junctions(request: Request, streams: int, generated: Generated, width: int) -> Request:
  """The generated texts, without the tokens near the junctions of their streams."""
  length_B = np.asarray(generated.length_B)
  given_BxN = np.ones(request.given_BxN.shape, bool)
  for b, length in enumerate(length_B):
    for head in heads_of(request.given_BxN[b, : request.length_B[b]], streams):
      given_BxN[b, max(0, head - width) : min(head + width, length)] = False
  given_BxN |= np.asarray(request.given_BxN)
  return Request(
    np.asarray(generated.tokens_BxN),  # type: ignore[arg-type]
    given_BxN,  # type: ignore[arg-type]
    length_B,  # type: ignore[arg-type]
  )


def check_text(what: str, text: Any) -> None:
  """Refuses what is no text, or holds half a character.

  Raises:
    UserError: it is none.
  """
  if not isinstance(text, str):
    raise UserError(f'{what} is {text!r}; write a text')
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    raise UserError(f'{what} holds half a character ({sentence(error)}); write another') from None


def _empty(batch: int, num_slots: int) -> Request:
  shape = (batch, num_slots)
  return Request(  # of numpy, which is filled in
    np.zeros(shape, np.int32),  # type: ignore[arg-type]
    np.zeros(shape, bool),  # type: ignore[arg-type]
    np.zeros(batch, np.int32),  # type: ignore[arg-type]
  )


@dataclasses.dataclass(frozen=True)
class Decoder:
  """A trained model, which completes texts.

  Attributes:
    model, params: as trained; the parameters are on the mesh.
    tokenizer: text to ids and back.
    mesh: made once by the program.
  """

  model: ARMD | AR | Denoiser
  params: Params
  tokenizer: Tokenizer
  mesh: Mesh | None

  def complete(
    self,
    request: Request,
    streams: int,
    sampling: Sampling,
    watch: Callable[[Generated, np.ndarray], None] | None = None,
    order: GenerationOrder | None = None,
  ) -> tuple[list[str], Generated]:
    """Generates along a strided order, or another one.

    Args:
      request: from `continue_prompts` or `fill_gaps`.
      streams: S, tokens generated at once.
      sampling: how tokens are drawn and where a text ends.
      watch: is called with what there is every few steps, as `decode.generate.stream` yields it;
        the texts are the same.
      order: of the tokens that are not given, `[1, n]`, in place of a strided one.
    Returns:
      The texts, and what was generated.
    """
    if watch is None:
      arguments = self._arguments(request, streams, sampling, order)
      generated = jax.block_until_ready(generate(*arguments, mesh=self.mesh))
    else:
      chunk = getattr(watch, 'chunk', 8)
      for generated, known_BxN in self.parts(request, streams, sampling, order=order, chunk=chunk):
        watch(generated, known_BxN)
    return self._texts(generated), generated

  def mend(
    self, request: Request, streams: int, sampling: Sampling, generated: Generated, width: int
  ) -> tuple[list[str], Generated]:
    """Writes the tokens near the junctions of streams anew, all junctions in parallel.

    The first tokens of a stream were drawn before those to their left were there, and the last ones
    of the stream before it without regard to them; here both are drawn once more, given all tokens
    that are not near a junction. Texts are then no draws from the model along one order any more.

    Args:
      request, streams, sampling: as of `complete`.
      generated: what it returned.
      width: tokens on either side of each junction.
    Returns:
      The texts, and what was generated, with the steps of both passes.
    """
    again = _near_junctions(request, streams, generated, width)
    if np.asarray(again.given_BxN).all():
      return self._texts(generated), generated
    batch = len(again.given_BxN)
    arguments = self._arguments(again, streams - 1, sampling, None)
    # Draws of their own: the noise of a draw follows from its sequence and slot.
    fresh_B: Any = _MOST + np.arange(batch)
    mended = jax.block_until_ready(generate(*arguments, sequence_B=fresh_B, mesh=self.mesh))
    mended = mended.replace(
      steps=generated.steps + mended.steps,
      margin_B=np.minimum(generated.margin_B, mended.margin_B),
    )
    return self._texts(mended), mended

  def parts(
    self,
    request: Request,
    streams: int,
    sampling: Sampling,
    *,
    order: GenerationOrder | None = None,
    chunk: int = 8,
  ) -> Iterator[tuple[Generated, np.ndarray]]:
    """What `complete` generates, every `chunk` steps; see `decode.generate.stream`."""
    arguments = self._arguments(request, streams, sampling, order)
    return stream(*arguments, chunk=chunk, mesh=self.mesh)

  def along(
    self, order: GenerationOrder, request: Request, sampling: Sampling
  ) -> tuple[list[str], Generated]:
    """Generates along an order of each text's own, drawn by chance.

    Args:
      order: `[B, N]`; what the request gives comes first, a token at a time, and what is behind a
        text's end last (`order.with_given`).
      request, sampling: as of `complete`.
    """
    is_given_BxN = request.given_BxN & (
      np.arange(order.num_slots) < np.asarray(request.length_B)[:, None]
    )
    count_B, first_B = is_given_BxN.sum(axis=1), np.full(len(is_given_BxN), self._first_token)
    ints: Any = [np.asarray(x, np.int32) for x in (count_B, request.length_B, first_B)]
    task = Task.of(order, *ints)
    arguments = self.model, self.params, task, request.tokens_BxN, sampling
    generated = generate(*arguments, mesh=self.mesh, by_chance=True)  # type: ignore[arg-type]
    return self._texts(generated), generated

  @property
  def _first_token(self) -> int:
    return self.tokenizer.eos_id if self.model.config.first_token == 'given' else BOS

  def _arguments(
    self, request: Request, streams: int, sampling: Sampling, order: GenerationOrder | None
  ) -> Any:
    task = task_of(request.given_BxN, request.length_B, streams, self._first_token, order)
    return self.model, self.params, task, request.tokens_BxN, sampling

  def denoise(
    self,
    request: Request,
    sampling: Sampling,
    plan: Any,
    run: Callable[..., diffusion.Denoised] = diffusion.sample,
  ) -> tuple[list[str], diffusion.Denoised]:
    """Generates by masked diffusion.

    Args:
      request: from `continue_prompts` or `fill_gaps`.
      sampling: how tokens are drawn and where a text ends.
      plan: of the sampler.
      run: the sampler, `sample` of `decode.diffusion` or of another module.
    Returns:
      The texts, and what was generated.
    """
    is_free_BxN = ~request.given_BxN
    is_free_BxN &= np.arange(is_free_BxN.shape[1]) < request.length_B[:, None]
    if self.model.config.first_token == 'given':
      first_B: Any = np.full(len(request.length_B), self.tokenizer.eos_id, np.int32)
      request = request.replace(first_B=first_B)
    generated = diffusion.generate(
      self.model,  # type: ignore[arg-type]
      self.params,
      request,
      sampling,
      plan,
      run=run,
    )
    if sampling.stop is not None:
      is_stop_BxN = is_free_BxN & (np.asarray(generated.tokens_BxN) == sampling.stop)
      stop_B = is_stop_BxN.argmax(axis=1)
      generated = generated.replace(
        length_B=np.where(  # type: ignore[arg-type]
          is_stop_BxN.any(axis=1), stop_B, request.length_B
        )
      )
    return self._texts(generated), generated

  def _texts(self, generated: Generated | diffusion.Denoised) -> list[str]:
    rows = zip(np.asarray(generated.tokens_BxN), np.asarray(generated.length_B), strict=True)
    return [self.tokenizer.decode(ids_N[:length]) for ids_N, length in rows]


def check_counts(streams: int, num_samples: int) -> None:
  """Refuses what is no whole number, or less than one.

  Raises:
    UserError: naming the value and the fix.
  """
  for name, value in (('streams', streams), ('num_samples', num_samples)):
    if not errors.is_whole(value) or not 1 <= value <= _MOST:
      raise UserError(f'{name} is {quoted(value)}; write a whole number from 1 to {_MOST}')

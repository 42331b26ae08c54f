"""A trained model, in a few lines of Python."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from armd_jax import families, orders
from armd_jax.artifacts import hub, pack, weights
from armd_jax.config import Config
from armd_jax.config_rules import check_streams
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.errors import UserError, is_whole, quoted
from armd_jax.evaluation import tokens
from armd_jax.evaluation.tokens import TokenScore
from armd_jax.families import asked
from armd_jax.models.params import Params
from armd_jax.order import GenerationOrder
from armd_jax.parallel import ambient, sharding
from armd_jax.show.columns import num_parameters


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A trained network and its vocabulary.

  Attributes:
    config: of its run.
    tokenizer: text to ids and back.
    params: float32.
    step: of training.
    mesh: where the parameters are.
  """

  config: Config
  tokenizer: Tokenizer
  params: Params
  step: int
  mesh: Mesh

  def __repr__(self) -> str:
    model = self.config.model
    return (
      f'<armd_jax model: {model.family}, {num_parameters(self.params) / 1e6:.2f}M parameters, '
      f'{model.num_layers} layers x {model.embed_dim}, {model.length} tokens of '
      f'{self.tokenizer.name!r}, step {self.step}>'
    )

  @ambient.settled()
  def generate(
    self,
    prompt: str | Sequence[str] = '',
    *,
    streams: int = 1,
    order: GenerationOrder | None = None,
    max_new_tokens: int | None = None,
    count: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = 'none',
    mend: int = 0,
  ) -> str | list[str]:
    """Text that continues the prompt, the prompt included.

    Args:
      prompt: may be empty; of a list, every text is continued.
      streams: S, tokens generated at once; with a sampler, on average in a step.
      order: of the new tokens, from `armd_jax.orders`, in place of streams.
      max_new_tokens: None: as many as the order has, or up to the model's length.
      count: how many texts; a list of them if it is more than one.
      seed: of all draws; the same text every time.
      temperature: 0 takes the most likely tokens.
      top_p: nucleus of the distribution to draw from.
      stop: 'eos' cuts a text at its first generated EOS, a list of texts before the first of them
        that was generated; 'none' does not.
      mend: tokens on either side of each junction of streams that are written anew once all
        others are there.
    Returns:
      A text, or a list where a list is given or `count` is more than one.
    Raises:
      UserError: something cannot be sampled with, or the prompt leaves no room.
    """
    prompts = self._prompts(prompt, count)
    request = self._continued(prompts, order, max_new_tokens)
    sampling = self._sampling(seed, temperature, top_p, stop)
    texts = self._complete(request, streams, order, sampling, mend)
    texts = [self._cut(text, start, stop) for text, start in zip(texts, prompts, strict=True)]
    return texts[0] if isinstance(prompt, str) and count == 1 else texts

  def stream(
    self,
    prompt: str = '',
    *,
    streams: int = 1,
    order: GenerationOrder | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: str = 'none',
    every: int = 8,
  ) -> Iterator[str]:
    """The text of `generate` while it grows, with `_` for each token that is still missing before
    others. A diffusion baseline, whose sampler is one compiled loop, yields only the whole text.

    Args:
      every: steps between two texts.
      prompt, streams, order, max_new_tokens, seed, temperature, top_p: as of `generate`.
      stop: 'none' or 'eos'.
    Yields:
      What there is; the last one is what `generate` returns.
    Raises:
      UserError: as `generate`.
    """
    if not isinstance(stop, str):
      raise UserError(f"stop is {stop!r}; a text that is shown as it grows takes 'none' or 'eos'")
    if not is_whole(every) or every < 1:
      raise UserError(f'every is {quoted(every)}; write a whole number from 1 on')
    with ambient.settled():
      request = self._continued([_text(prompt)], order, max_new_tokens)
      sampling = self._sampling(seed, temperature, top_p, stop)
      self._check(streams, order)
      family = families.of(self.config.model)
      decoder = self._decoder()
    if family.samplers:
      yield from self._complete(request, streams, order, sampling)
      return
    parts = decoder.parts(request, streams, sampling, order=order, chunk=every)
    last = None
    while True:
      with ambient.settled():  # not while the caller looks at what there is
        if (part := next(parts, None)) is None:
          return
        generated, known_BxN = part
        length = int(np.asarray(generated.length_B)[0])
        text = self._so_far(np.asarray(generated.tokens_BxN)[0, :length], known_BxN[0, :length])
      if text != last:
        yield text
      last = text

  @ambient.settled()
  def infill(
    self,
    template: str,
    *,
    gap_tokens: int = 0,
    streams: int = 1,
    order: GenerationOrder | None = None,
    count: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
  ) -> str | list[str]:
    """A text whose gaps, three or more underscores in a row, are filled.

    Args:
      template: the text around the gaps.
      gap_tokens: in every gap; 0: as many as it has underscores.
      streams: S, tokens generated at once.
      order: of all missing tokens, numbered as in the text, in place of streams.
      count, seed, temperature, top_p: as of `generate`.
    Raises:
      UserError: there is no gap, the text is too long, or the model reads nothing behind a gap.
    """
    requests.check_counts(streams, count)
    slots = self.config.model.num_slots
    if not families.of(self.config.model).infills:
      raise UserError(
        f'a model of family {self.config.model.family!r} reads nothing behind a gap and cannot '
        'fill it; take one of another family'
      )
    request = requests.fill_gaps(template, gap_tokens, count, slots, self.tokenizer)
    sampling = self._sampling(seed, temperature, top_p, 'none')
    texts = self._complete(request, streams, order, sampling)
    return texts if count > 1 else texts[0]

  @ambient.settled()
  def logprobs(
    self, text: str, *, streams: int = 1, order: GenerationOrder | None = None
  ) -> list[TokenScore]:
    """The log-probability of every token of a text, and which tokens it was predicted from.

    Args:
      text: of at most the model's length.
      streams: S of a strided order.
      order: of the text's tokens, in place of streams.
    Returns:
      The tokens in the order of the text. Their sum is the text's exact log-likelihood along the
      order.
    Raises:
      UserError: the text is empty or too long, or the model does not support the order, or reads
        nothing behind a token, as the order would have it.
    """
    ids_n = self._ids(text)
    slots = self.config.model.num_slots
    if not 0 < len(ids_n) <= slots:
      raise UserError(f'the text has {len(ids_n)} tokens; give one of 1 to {slots}')
    self._check(streams, order)
    if order is None:
      order = orders.strided(len(ids_n), min(streams, len(ids_n)))
    is_ascending = bool((np.diff(np.asarray(order.position_BxN)) > 0).all())
    if not is_ascending and not families.of(self.config.model).infills:
      raise UserError(
        f'a model of family {self.config.model.family!r} reads nothing behind a token; write '
        'streams=1, and an order from left to right or none'
      )
    model = families.build(self.config.model, self.tokenizer.vocab_size)
    return tokens.scores(model, self.params, self.tokenizer, ids_n, order, self.mesh)

  @ambient.settled()
  def perplexity(self, text: str, *, streams: int = 1) -> float:
    """Per token, of a text of any length: exact, left-to-right or with so many streams in windows
    of the model's length; of a diffusion baseline its bound.

    Raises:
      UserError: the text is empty, or shorter than a window where one is needed.
    """
    self._check(streams, None)
    model = families.build(self.config.model, self.tokenizer.vocab_size)
    ids_n = self._ids(text)
    return tokens.perplexity(model, self.params, self.tokenizer, ids_n, streams, self.mesh)

  # ----- what these share

  def _decoder(self) -> requests.Decoder:
    model = families.build(self.config.model, self.tokenizer.vocab_size)
    return requests.Decoder(model, self.params, self.tokenizer, self.mesh)

  def _prompts(self, prompt: str | Sequence[str], count: int) -> list[str]:
    requests.check_counts(1, count)
    if isinstance(prompt, str):
      return [prompt] * count
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray)
    if not is_list or not prompt or count != 1:
      raise UserError(f'prompt is {prompt!r}; write a text, or a list of texts without count')
    return [_text(one) for one in prompt]

  def _continued(
    self, prompts: list[str], order: GenerationOrder | None, max_new_tokens: int | None
  ) -> Request:
    if order is not None and max_new_tokens is None:
      max_new_tokens = len(orders.check(order)[0])
    slots = self.config.model.num_slots
    return requests.continue_prompts(prompts, slots, self.tokenizer, max_new_tokens)

  def _complete(
    self,
    request: Request,
    streams: int,
    order: GenerationOrder | None,
    sampling: Sampling,
    mend: int = 0,
  ) -> list[str]:
    self._check(streams, order)
    asked.check_mend(self.config.model, streams, mend)
    family = families.of(self.config.model)
    how: dict[str, Any] = {} if family.samplers else {'mend': mend}
    if self.config.model.orders != 'none':
      how['order'] = order
    elif order is not None:
      raise UserError(
        f'there is an order, but a model of family {self.config.model.family!r} generates along '
        'none; leave it out'
      )
    texts, _ = family.generate(self._decoder(), request, sampling, streams=streams, **how)
    return texts

  def _check(self, streams: int, order: GenerationOrder | None) -> None:
    """Refuses streams and orders that the family cannot follow."""
    model = self.config.model
    requests.check_counts(streams, 1)
    check_streams(streams, model.num_slots, 'streams')
    if order is not None:
      orders.check(order)
    if order is not None and streams > 1:
      raise UserError(f'streams is {streams} and there is an order; give one of them')
    if model.orders == 'left_to_right' and (streams > 1 or order is not None):
      raise UserError(
        f'the model is auto-regressive ({model.family!r}); write streams=1 and no order'
      )

  def _sampling(self, seed: int, temperature: float, top_p: float, stop: Any) -> Sampling:
    texts = [stop] if isinstance(stop, str) else stop
    if isinstance(stop, str) and stop not in ('none', 'eos'):
      raise UserError(f"stop is {stop!r}; write 'none', 'eos', or a list of texts")
    if not isinstance(texts, Sequence) or not all(isinstance(x, str) and x for x in texts):
      raise UserError(f"stop is {stop!r}; write 'none', 'eos', or a list of texts")
    return Sampling(seed, temperature, top_p, self.tokenizer.eos_id if stop == 'eos' else None)

  def _cut(self, text: str, prompt: str, stop: str | Sequence[str]) -> str:
    if isinstance(stop, str):
      return text
    start = len(self.tokenizer.decode(self.tokenizer.encode(prompt)))
    found = [at for one in stop if (at := text.find(one, start)) >= 0]
    return text[: min(found)] if found else text

  def _so_far(self, ids_n: np.ndarray, known_n: np.ndarray) -> str:
    edges = [0, *(np.flatnonzero(np.diff(known_n)) + 1).tolist(), len(known_n)]
    runs = [slice(*pair) for pair in itertools.pairwise(edges)]
    pieces = [
      self.tokenizer.decode(ids_n[run]) if known_n[run].all() else '_' * (run.stop - run.start)
      for run in runs
    ]
    return ''.join(pieces if known_n[-1:].all() else pieces[:-1])

  def _ids(self, text: str) -> np.ndarray:
    return np.asarray(self.tokenizer.encode(_text(text)))


def _text(text: Any) -> str:
  if not isinstance(text, str):
    raise UserError(f'the text is {text!r}; write a text')
  requests.check_text('the text', text)
  return text


@ambient.settled()
def load(path: str | pathlib.Path) -> Model:
  """See `armd_jax.load`."""
  is_open = hub.is_open(path)
  config, tokenizer, params, step = hub.load(path) if is_open else weights.load_ema(pack.find(path))
  return Model(config, tokenizer, params, step, sharding.make_mesh(config.mesh))

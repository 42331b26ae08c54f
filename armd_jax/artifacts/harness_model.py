"""A model of this package for EleutherAI's evaluation harness; see `armd_jax.artifacts.harness`.

Log-likelihoods are exact, in one pass: left to right, or, with `order=strided`, along the order in
which S = `streams` tokens of the continuation are generated at once, which is how texts are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lm_eval.models  # noqa: F401  its own models, which it looks for only where none is known
import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from armd_jax.artifacts import loaded
from armd_jax.artifacts.loaded import Model
from armd_jax.config import ModelConfig
from armd_jax.config_rules import check_streams
from armd_jax.decode.generate import generate, prepare, task_of
from armd_jax.decode.network import Network
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.families import build
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import BOS
from armd_jax.order import given_first, to_generation
from armd_jax.parallel import ambient

Array = jax.Array

NAME = 'armd_jax'
_ORDERS = ('left_to_right', 'strided')
_FEWEST = 16  # tokens of a program; others are of twice as many
# What lm_eval gives every model: jax settles the devices, and no code of others is run here.
_UNUSED = {'device', 'max_batch_size', 'trust_remote_code'}


@register_model(NAME)
class HarnessModel(TemplateLM):
  """A model of lm_eval.

  Args:
    path: a run or an export.
    streams: S, of `generate_until`, and of log-likelihoods if their order is strided.
    order: 'left_to_right' or 'strided', of log-likelihoods.
    batch_size: texts at a time.
    max_gen_toks: most tokens to generate, unless a task has its own limit.
  Raises:
    UserError: an argument is missing, unknown or wrong, or the model predicts along no such order.
  """

  @ambient.settled()
  def __init__(
    self,
    path: str = '',
    streams: int = 1,
    order: str = _ORDERS[0],
    batch_size: int | str = 8,
    max_gen_toks: int = 64,
    **others: Any,
  ):
    super().__init__()
    if unknown := sorted(others.keys() - _UNUSED):
      raise UserError(
        f'the model {NAME} has no argument {unknown[0]!r}; write path, streams, order, batch_size '
        'or max_gen_toks'
      )
    if not path:
      raise UserError(f'the model {NAME} needs a path; write path=RUN')
    self._streams = _whole('streams', streams)
    self._batch_size = 8 if str(batch_size).startswith('auto') else _whole('batch_size', batch_size)
    self.max_gen_toks = _whole('max_gen_toks', max_gen_toks)
    if order not in _ORDERS:
      raise UserError(f'order is {order!r}; write one of {", ".join(map(repr, _ORDERS))}')
    self._model: Model = loaded.load(path)
    config = self._model.config.model
    if config.orders == 'none' or (config.orders == 'left_to_right' and self._streams > 1):
      raise UserError(
        f'the model is of family {config.family!r}; streams is {streams}, but it has '
        f'{config.orders.replace("_", "-")} orders'
      )
    check_streams(self._streams, config.num_slots, 'streams')
    self._scored_streams = self._streams if order == 'strided' else 1
    # One less than the model takes, so that a window may have a token of context (rolling).
    self.max_length = config.num_slots - 1
    self._network: Network = prepare(self._decoder, self._model.params)

  @property
  def _decoder(self) -> Any:
    return build(self._model.config.model, self._model.tokenizer.vocab_size)

  @property
  def eot_token_id(self) -> int:
    return self._model.tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int:
    """BOS, which is a row of the model's own and no id."""
    return BOS

  @property
  def tokenizer_name(self) -> str:
    return self._model.tokenizer.name

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    del add_special_tokens, kwargs
    return self._model.tokenizer.encode(string).tolist()

  # ----- log-likelihoods

  @ambient.settled()
  def _loglikelihood_tokens(
    self, requests: Sequence[Any], **kwargs: Any
  ) -> list[tuple[float, bool]]:
    del kwargs
    results: list[Any] = [None] * len(requests)
    longest = max((len(ids) for _, _, ids in requests), default=0)
    if longest > self.max_length + 1:
      raise UserError(
        f'a task scores {longest} tokens at once but the model takes {self.max_length + 1}; leave '
        'that example out, or give a longer model'
      )
    plain = [_plain(context, ids, self.max_length + 1) for _, context, ids in requests]
    by_size = sorted(range(len(plain)), key=lambda n: len(plain[n][0]))
    for first in range(0, len(by_size), self._batch_size):
      batch = by_size[first : first + self._batch_size]
      rows = [plain[n] for n in batch]
      for n, result in zip(batch, self._scores(rows), strict=True):
        results[n] = result
        if requests[n][0] is not None:  # a window is no request of a task
          self.cache_hook.add_partial('loglikelihood', requests[n][0], result)
    return results

  def _scores(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
    """Of every row, ids of which the first are given, the log-likelihood of the others in nats, and
    whether each of them is the most likely."""
    most, room = max(len(ids) for ids, _ in rows), self._model.config.model.num_slots
    size = _FEWEST
    while size < most:
      size *= 2
    shape = self._batch_size, min(size, room)
    tokens_BxN, given_BxN = np.zeros(shape, np.int32), np.zeros(shape, bool)
    length_B = np.zeros(shape[0], np.int32)
    for b, (ids, given) in enumerate(rows):
      tokens_BxN[b, : len(ids)] = ids
      given_BxN[b, :given] = True
      length_B[b] = len(ids)
    config, params = self._model.config.model, self._model.params
    first = self.eot_token_id if config.first_token == 'given' else BOS
    nats_B, is_greedy_B = _score(
      config, self._model.tokenizer.vocab_size, params, tokens_BxN, given_BxN, length_B,
      self._scored_streams, first,
    )  # fmt: skip
    found = zip(np.asarray(nats_B), np.asarray(is_greedy_B), strict=True)
    return [(-float(nats), bool(greedy)) for nats, greedy in found][: len(rows)]

  def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
    """Of whole texts, cut into windows that have a token of context."""
    windows, owner = [], []
    for number, request in enumerate(requests):
      (text,) = request.args
      for window in utils.get_rolling_token_windows(
        self.tok_encode(text), self.prefix_token_id, self.max_length, 1
      ):
        windows.append((None, *utils.make_disjoint_window(window)))
        owner.append(number)
    totals = [0.0] * len(requests)
    for number, (log_p, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
      totals[number] += log_p
    return totals

  # ----- texts

  @ambient.settled()
  def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
    """Most likely tokens, unless a task asks for draws; S at a time."""
    results: list[Any] = [None] * len(requests)
    groups: dict[tuple[int, float], list[int]] = {}
    for number, request in enumerate(requests):
      options = request.args[1]
      count = int(options.get('max_gen_toks', self.max_gen_toks))
      if not 0 < count <= self.max_length:
        raise UserError(
          f'a task asks for {count} tokens but the model takes {self.max_length}; set max_gen_toks'
        )
      warm = float(options.get('temperature', 1.0)) if options.get('do_sample') else 0.0
      groups.setdefault((count, warm), []).append(number)
    for (count, warm), numbers in groups.items():
      for first in range(0, len(numbers), self._batch_size):
        batch = numbers[first : first + self._batch_size]
        contexts = [requests[number].args[0] for number in batch]
        for number, text in zip(batch, self._continued(contexts, batch, count, warm), strict=True):
          ends = requests[number].args[1].get('until') or []
          for end in [ends] if isinstance(ends, str) else ends:
            text = text.split(end)[0] if end else text
          results[number] = text
          self.cache_hook.add_partial('generate_until', requests[number].args, text)
    return results

  def _continued(
    self, contexts: Sequence[str], numbers: Sequence[int], count: int, temperature: float
  ) -> list[str]:
    """What follows each context.

    Args:
      contexts: texts.
      numbers: of their requests, each of which has draws of its own, equal ones too.
      count: tokens.
      temperature: of draws.
    """
    model, config = self._model, self._model.config.model
    shape = self._batch_size, config.num_slots
    tokens_BxN, given_BxN = np.zeros(shape, np.int32), np.zeros(shape, bool)
    length_B, begin_B = np.full(shape[0], count), np.zeros(shape[0], int)
    for b, context in enumerate(contexts):
      ids = self.tok_encode(context)[-(config.num_slots - count) :]
      tokens_BxN[b, : len(ids)] = ids
      given_BxN[b, : len(ids)] = True
      begin_B[b], length_B[b] = len(ids), len(ids) + count
    first = self.eot_token_id if config.first_token == 'given' else BOS
    task = task_of(given_BxN, length_B, self._streams, first)
    sampling = Sampling(temperature=temperature, stop=self.eot_token_id)
    sequence_B: Any = np.resize(numbers, shape[0])
    found = generate(
      self._decoder, self._network, task, tokens_BxN, sampling, sequence_B=sequence_B
    )
    rows = zip(np.asarray(found.tokens_BxN), begin_B, np.asarray(found.length_B), strict=True)
    return [model.tokenizer.decode(ids[a:b]) for ids, a, b in rows][: len(contexts)]


def _plain(context: list[int], ids: list[int], most: int) -> tuple[list[int], int]:
  """The latest ids that a model takes, without BOS, and how many of them are given."""
  whole = [*(number for number in context if number != BOS), *ids][-most:]
  return whole, len(whole) - len(ids)


def _whole(name: str, value: Any) -> int:
  """An argument that is a whole number from 1 on."""
  if not str(value).isdecimal() or int(value) < 1:
    raise UserError(f'{name} is {value!r}; write a whole number from 1 on')
  return int(value)


@functools.partial(jax.jit, static_argnames=('config', 'vocab_size', 'streams', 'first'))
def _score(
  config: ModelConfig,
  vocab_size: int,
  params: Params,
  tokens_BxN: Array,
  given_BxN: Array,
  length_B: Array,
  streams: int,
  first: int,
) -> tuple[Array, Array]:
  """float32 [B], nats of what is not given, and bool [B], whether all of it is most likely."""
  order = given_first(given_BxN, length_B, streams)
  model: Any = build(config, vocab_size)
  tokens_BxN = to_generation(tokens_BxN, order)
  hidden_BxNxE = model.apply(
    {'params': params}, tokens_BxN, order, jnp.full(len(tokens_BxN), first)
  )

  def of_text(row: tuple[Array, Array]) -> tuple[Array, Array]:
    # A text at a time: logits of a batch need the memory of a model.
    hidden_NxE, tokens_N = row
    logits_NxV = model.apply({'params': params}, hidden_NxE[None], method='logits')[0]
    log_p_NxV = jax.nn.log_softmax(logits_NxV)
    chosen_N = jnp.take_along_axis(log_p_NxV, tokens_N[:, None], axis=1)[:, 0]
    return chosen_N, jnp.argmax(logits_NxV, axis=1) == tokens_N

  log_p_BxN, is_best_BxN = jax.lax.map(of_text, (hidden_BxNxE, tokens_BxN))
  slot_N, given_B = jnp.arange(tokens_BxN.shape[1]), jnp.sum(given_BxN, axis=1)
  is_scored_BxN = (slot_N >= given_B[:, None]) & (slot_N < length_B[:, None])
  nats_B = -jnp.sum(jnp.where(is_scored_BxN, log_p_BxN, 0), axis=1)
  return nats_B, jnp.all(is_best_BxN | ~is_scored_BxN, axis=1)

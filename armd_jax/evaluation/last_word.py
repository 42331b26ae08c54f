"""LAMBADA's own measure: is the last word of a passage the likeliest one, given all before it?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax.config import ModelConfig
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.params import Params
from armd_jax.order import left_to_right
from armd_jax.parallel import axes, sharding

_MULTIPLE = 128  # windows are cut to one of it, which attention kernels divide well


@dataclasses.dataclass(frozen=True)
class Passages:
  """Passages of one window each, and the places of their last words.

  Attributes:
    text_WxN: int32 ids in text order, padding behind them; N is at most the model's length, and
      little more than the longest passage.
    first_W: int32, the slot where the last word begins.
    count_W: int32, its tokens.
    cut: how many passages lost their beginning.
  """

  text_WxN: np.ndarray
  first_W: np.ndarray
  count_W: np.ndarray
  cut: int


def describe(length: int) -> str:
  """One line that is printed with the result."""
  return (
    'protocol lambada: passages as they are, each alone; the word after the last space is right if '
    'each of its tokens is the likeliest, left-to-right, given all tokens before it; no stop words '
    f'filtered; of a passage longer than {length} tokens the last {length}'
  )


def passages(rows: Sequence[str], tokenizer: Tokenizer, config: ModelConfig) -> Passages:
  """The windows of passages.

  Args:
    rows: passages, the word in question at the end of each.
    tokenizer: gives the ids; the space before the last word belongs to that word's.
    config: of the model; where it is given a first token, that is EOS.
  Raises:
    UserError: a passage is one word, or a last word leaves no room for anything before it.
  """
  given = config.length - config.num_slots
  kept, first, count, cut = [], [], [], 0
  for number, row in enumerate(rows):
    before, space, word = row.rstrip().rpartition(' ')
    word_ids = tokenizer.encode(space + word)
    if not before or len(word_ids) >= config.num_slots:
      raise UserError(
        f'passage {number + 1} ends with {word[:40]!r} and has no room for words before it; '
        'leave it out, or take a longer model'
      )
    ids = np.concatenate([tokenizer.encode(before), word_ids])
    cut += len(ids) > config.num_slots
    kept.append(ids[-config.num_slots :])
    first.append(len(kept[-1]) - len(word_ids))
    count.append(len(word_ids))
  longest = given + max(map(len, kept))
  length = min(config.length, -(-longest // _MULTIPLE) * _MULTIPLE)
  text_WxN = np.zeros((len(rows), length), np.int32)
  text_WxN[:, :given] = tokenizer.eos_id
  for text_N, ids in zip(text_WxN, kept, strict=True):
    text_N[given : given + len(ids)] = ids
  return Passages(text_WxN, np.array(first, np.int32), np.array(count, np.int32), cut)


def score(
  model: ARMD | AR,
  params: Params,
  passages: Passages,
  mesh: Mesh,
  *,
  batch_size: int,
  start: int = 0,
) -> Iterator[np.ndarray]:
  """Whether each last word is predicted, and its cost, batch by batch.

  Args:
    model, params: as trained; a network that can run left-to-right.
    passages: from `passages`.
    mesh: where; `batch_size` is a multiple of its data-parallel size.
    batch_size: passages per call; the last batch is filled up.
    start: passages to leave out, at the beginning.
  Yields:
    [B, 2]: 1 or 0; nats of the word.
  """
  most = int(passages.count_W.max())
  run = _run(model, mesh, most)
  rows = sharding.batch_sharding(mesh)
  arrays = passages.text_WxN, passages.first_W, passages.count_W

  def dispatched():
    for first in range(start, len(passages.text_WxN), batch_size):
      batch = [x[first : first + batch_size] for x in arrays]
      pad = lambda x: np.pad(x, [(0, batch_size - len(x)), *[(0, 0)] * (x.ndim - 1)])
      yield run(params, *(sharding.put(pad(x), rows) for x in batch)), len(batch[0])

  for found_Bx2, count in likelihood.pulled_ahead(dispatched(), likelihood.AHEAD):
    yield np.asarray(found_Bx2)[:count]


@functools.lru_cache(maxsize=8)
def _run(model, mesh, most):
  """Logits are computed only for the `most` slots in which a last word may be."""

  def run(params: Params, text_BxN: jax.Array, first_B: jax.Array, count_B: jax.Array) -> jax.Array:
    given = model.config.length - model.config.num_slots
    first_token_B = text_BxN[:, 0] if given else None
    tokens_BxN = text_BxN[:, given:]
    num_slots = tokens_BxN.shape[1]
    variables = {'params': params}
    # Padding comes last: left-to-right, no row of the passage attends to it.
    slot_M = jnp.arange(most)
    slot_BxM = jnp.minimum(first_B[:, None] + slot_M, num_slots - 1)
    with axes.on(mesh):
      hidden_BxNxE = model.apply(variables, tokens_BxN, left_to_right(num_slots), first_token_B)
      hidden_BxMxE = jnp.take_along_axis(hidden_BxNxE, slot_BxM[..., None], axis=1)
      logits_BxMxV = model.apply(variables, hidden_BxMxE, method='logits')
    target_BxM = jnp.take_along_axis(tokens_BxN, slot_BxM, axis=1)
    is_word_BxM = slot_M < count_B[:, None]
    right_BxM = jnp.argmax(logits_BxMxV, axis=-1) == target_BxM
    log_p_BxMxV = jax.nn.log_softmax(logits_BxMxV)
    nats_BxM = -jnp.take_along_axis(log_p_BxMxV, target_BxM[..., None], axis=-1)[..., 0]
    right_B = jnp.all(right_BxM | ~is_word_BxM, axis=1)
    return jnp.stack([right_B, jnp.sum(jnp.where(is_word_BxM, nats_BxM, 0), axis=1)], axis=1)

  rows = sharding.batch_sharding(mesh)
  return jax.jit(
    run, in_shardings=(None, rows, rows, rows), out_shardings=sharding.replicated(mesh)
  )

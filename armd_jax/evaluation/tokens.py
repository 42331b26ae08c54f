"""The likelihood of every token of a text, along an order of one's choice, with what it was
predicted from."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax import families, orders
from armd_jax.config import ModelConfig
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.evaluation import scores as scores_lib
from armd_jax.models.denoiser import MASK
from armd_jax.models.params import Params
from armd_jax.order import GenerationOrder
from armd_jax.parallel import axes, sharding

Array = jax.Array

_AT_ONCE = 8  # sequences of a forward pass, of long texts


@dataclasses.dataclass(frozen=True, slots=True)
class _First:
  """So many of the tokens that are generated first."""

  count: int
  position_n: np.ndarray  # of all tokens as they are generated, which those of a text share


class _Saw:
  """The field `saw`, of which a `_First` is kept: tuples of all tokens together would take memory
  that grows with the square of the text."""

  def __get__(self, token: Any, owner: type | None = None) -> Any:
    if token is None:
      return self
    first = vars(token)['saw']
    return tuple(np.sort(first.position_n[: first.count]).tolist())

  def __set__(self, token: Any, value: Any) -> None:
    is_first = isinstance(value, _First)
    vars(token)['saw'] = value if is_first else _First(len(value), np.array(value, np.int64))


@dataclasses.dataclass(frozen=True)
class TokenScore:
  """One token of a text.

  Attributes:
    text: of the token.
    id: in the vocabulary.
    position: in the text, from 1.
    block: in which it is predicted, from 1; tokens of a block are predicted together.
    logprob: nats, natural logarithm of its probability.
    saw: positions of the tokens that it is predicted from, in the order of the text; made as it is
      asked for.
  """

  text: str
  id: int
  position: int
  block: int
  logprob: float
  saw: tuple[int, ...] = dataclasses.field(repr=False)


# Behind the decorator, which would take it for a default.
TokenScore.saw = _Saw()  # type: ignore[assignment]


def scores(
  model: Any,
  params: Params,
  tokenizer: Tokenizer,
  ids_n: np.ndarray,
  order: GenerationOrder,
  mesh: Mesh,
) -> list[TokenScore]:
  """The tokens of a text of at most the model's length, in the order of the text.

  A diffusion baseline has no order of its own: each block is predicted by a pass in which it and
  all later ones are masked, which is what a sampler that reveals the text in this order does.

  Args:
    model, params: as trained.
    tokenizer: of the ids.
    ids_n: the text.
    order: of its tokens, `[1, n]`.
    mesh: where.
  """
  score = _denoised if families.of(model.config).method else _along
  nll_n = score(model, params, tokenizer, ids_n, order, mesh)
  position_n, block_n = np.asarray(order.position_BxN[0]), np.asarray(order.block_BxN[0])
  number_n = np.unique(block_n, return_inverse=True)[1] + 1
  by_block = np.argsort(number_n, kind='stable')
  generated_n = position_n[by_block]
  before_n = np.searchsorted(number_n[by_block], number_n)  # tokens of earlier blocks
  found = []
  for slot in np.argsort(position_n):
    at = int(position_n[slot])
    token = int(ids_n[at - 1])
    logprob = -float(nll_n[at - 1])
    text = tokenizer.decode(np.array([token]))
    saw: Any = _First(int(before_n[slot]), generated_n)
    found.append(TokenScore(text, token, at, int(number_n[slot]), logprob, saw))
  return found


def perplexity(
  model: Any, params: Params, tokenizer: Tokenizer, ids_n: np.ndarray, streams: int, mesh: Mesh
) -> float:
  """Per token, of a text of any length in windows of the model's length, BOS before each.

  The last window may be shorter. A family that has a bound of its own is measured by it, which is
  one of whole windows: what is left over is not scored. Along orders, streams may be asked for.
  Infinite above what float64 holds, 709 nats per token.

  Raises:
    UserError: there is no token, or no whole window where one is needed.
  """
  config, slots = model.config, model.config.num_slots
  if not len(ids_n):
    raise UserError('the text is empty; give one with at least one token')
  whole, rest_n = len(ids_n) // slots, ids_n[len(ids_n) // slots * slots :]
  total, count = 0.0, 0
  if families.of(config).bound and (streams == 1 or config.orders == 'none'):
    if not whole:
      raise UserError(
        f'the text has {len(ids_n)} tokens, but the bound of family {config.family!r} is one of '
        f'windows of {slots}; give a text of that many'
      )
    protocol, rest_n = likelihood.DENOISING, rest_n[:0]
  elif streams == 1:
    protocol = likelihood.LEFT_TO_RIGHT
  else:
    protocol = likelihood.strided_protocols(streams)[0]
  if whole:
    windows_WxN = _with_first(ids_n[: whole * slots].reshape(whole, slots), config, tokenizer)
    parts = sharding.batch_parts(mesh)
    batch_size = parts * (-(-_AT_ONCE // parts) if whole > 1 else 1)
    nll = likelihood.nll(model, params, windows_WxN, protocol, mesh, batch_size=batch_size)
    nats, count = likelihood.mean_nats(nll)
    total = nats * count
  if len(rest_n):
    order = orders.strided(len(rest_n), min(streams, len(rest_n)))
    total += float(_along(model, params, tokenizer, rest_n, order, mesh).sum(dtype=np.float64))
    count += len(rest_n)
  return scores_lib.perplexity(total / count)


def _along(model, params, tokenizer, ids_n, order, mesh) -> np.ndarray:
  """Nats of every token, float32 [n] in text order: one pass, the text filled up behind."""
  slots, count = model.config.num_slots, len(ids_n)
  text_1xN = np.zeros((1, slots), np.int32)
  text_1xN[0, :count] = ids_n
  whole = orders.around(np.zeros((1, slots), bool), np.array([count]), order)
  text_1xM = _with_first(text_1xN, model.config, tokenizer)
  put = lambda x: sharding.put(
    sharding.filled_up(np.asarray(x), mesh), sharding.batch_sharding(mesh)
  )
  score = likelihood.scorer(model, mesh)
  nll_N = np.asarray(score(params, put(text_1xM), jax.tree.map(put, whole)))[0]
  text_N = np.empty(slots, np.float32)
  text_N[np.asarray(whole.position_BxN[0]) - 1] = nll_N
  return text_N[:count]


def _denoised(model, params, tokenizer, ids_n, order, mesh) -> np.ndarray:
  """Nats of every token, float32 [n] in text order: a pass for every block."""
  slots, count = model.config.num_slots, len(ids_n)
  position_n, block_n = np.asarray(order.position_BxN[0]), np.asarray(order.block_BxN[0])
  block_of_n = np.empty(count, np.int32)
  block_of_n[position_n - 1] = np.unique(block_n, return_inverse=True)[1]
  text_N = np.zeros(slots, np.int32)
  text_N[:count] = ids_n
  parts = sharding.batch_parts(mesh)
  batch = parts * -(-_AT_ONCE // parts)
  put = lambda x: sharding.put(np.asarray(x), sharding.batch_sharding(mesh))
  score, nll_n = _mask_scorer(model, mesh), np.empty(count, np.float32)
  last = int(block_of_n.max())
  for first in range(0, last + 1, batch):
    block_B = np.minimum(np.arange(first, first + batch), last)
    masked_BxN = np.zeros((batch, slots), bool)
    masked_BxN[:, :count] = block_of_n >= block_B[:, None]
    text_BxN = np.broadcast_to(text_N, (batch, slots))
    first_B, length_B = np.full(batch, tokenizer.eos_id, np.int32), np.full(batch, count, np.int32)
    arguments = map(put, (text_BxN, masked_BxN, first_B, length_B))
    nll_BxN = np.asarray(score(params, *arguments))
    for row, block in enumerate(block_B):
      nll_n[block_of_n == block] = nll_BxN[row, :count][block_of_n == block]
  return nll_n


@functools.lru_cache(maxsize=8)
def _mask_scorer(model, mesh):
  """Compiled: the nats of all tokens of texts of which some are masked; `[B, N]`."""
  config = model.config
  method: Any = families.of(config).method

  def score(
    params: Params, text_BxN: Array, masked_BxN: Array, first_B: Array, length_B: Array
  ) -> Array:
    share_B = jnp.sum(masked_BxN, axis=1) / length_B
    noise_B = method.noise(config.diffusion, method.schedule(config.diffusion).time(share_B))
    first = first_B if config.first_token == 'given' else None
    with axes.on(mesh):
      tokens_BxN = jnp.where(masked_BxN, MASK, text_BxN)
      hidden_BxNxE = model.apply({'params': params}, tokens_BxN, noise_B, first, length_B)

      def slot(inputs: tuple[Array, Array]) -> Array:
        hidden_BxE, ids_B = inputs
        logits_BxV = model.apply({'params': params}, hidden_BxE, method='logits')
        return -jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), ids_B[:, None], axis=1)[:, 0]

      inputs = jnp.moveaxis(hidden_BxNxE, 1, 0), text_BxN.T
      return jax.lax.map(slot, inputs, batch_size=64).T

  rows = sharding.batch_sharding(mesh)
  return jax.jit(
    score, in_shardings=(None, rows, rows, rows, rows), out_shardings=sharding.replicated(mesh)
  )


def _with_first(text_BxN: np.ndarray, config: ModelConfig, tokenizer: Tokenizer) -> np.ndarray:
  """With EOS in front, where the network is given a first token."""
  if config.first_token != 'given':
    return text_BxN
  return np.pad(text_BxN, ((0, 0), (1, 0)), constant_values=tokenizer.eos_id)

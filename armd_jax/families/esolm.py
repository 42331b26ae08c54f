"""Eso-LM: masked diffusion of a share of the tokens, then left to right, with one causal cache."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import orders
from armd_jax.data import documents
from armd_jax.decode.diffusion import Denoised
from armd_jax.decode.requests import Decoder, Request
from armd_jax.decode.sampling import Sampling
from armd_jax.families.family import Draws, Family
from armd_jax.models.armd import ARMD
from armd_jax.models.params import Params
from armd_jax.objectives import esolm
from armd_jax.objectives.armd import ORDER_KINDS
from armd_jax.order import GenerationOrder, with_given

Array = jax.Array

SHOWN = (
  'Some of the {length:,} tokens of a text appear anywhere in it in K steps, then all others one '
  'by one, from left to right.'
)
_OF_ORDERS = 2**31 - 1  # beyond the index of every sequence, by which tokens are drawn


def _loss(
  model: Any, params: Params, text_MxN: Array, draws: Draws, **options
) -> tuple[Array, Array]:
  document = None
  if draws.scored is not None:
    read, slots = documents.read(text_MxN), model.config.num_slots
    text_MxN, length_M = read.ids_BxN, jnp.sum(read.is_real_BxN[:, -slots:], axis=1)
    document = read.is_given_BxN[:, -slots:], length_M
  keys = draws.keys_M, draws.count, draws.index_M
  total, _ = esolm.loss(
    model, params, text_MxN, *keys, document=document, scored=draws.scored, **options
  )
  return total, jnp.zeros((2, len(ORDER_KINDS)))


def generate(
  decoder: Decoder,
  request: Request,
  sampling: Sampling,
  *,
  streams: int = 1,
  steps: int = 0,
  sampler: str = '',
  diffused: float | None = None,
  order: GenerationOrder | None = None,
) -> tuple[list[str], Denoised]:
  """Both phases along one order, by the decoder of all orders; see `objectives.esolm`.

  What is given comes first, in text order, so that prompts and gaps are one code path.

  Args:
    decoder, request, sampling: as of all families.
    streams: S, in place of `steps`: K is what there is to generate, over S.
    steps: K, of the diffusion phase, T in the paper, which reveals a share alpha_0 of the tokens;
      steps that reveal none take no pass.
    sampler: 'ancestral', the only one.
    diffused: alpha_0 of the sampler, which need not be that of training; None: it is.
    order: of the tokens that are not given, `[1, n]`, in place of the sampler's.
  Returns:
    The texts, and what was generated: draws of order and tokens depend on (seed, index, K) alone.
  """
  del sampler
  config = decoder.model.config
  share = config.diffusion.esolm_diffused if diffused is None else diffused
  given_BxN, length_B = np.asarray(request.given_BxN), np.asarray(request.length_B)
  is_free_BxN = ~given_BxN & (np.arange(config.num_slots) < length_B[:, None])
  if order is not None:
    order = jax.tree.map(
      lambda x: np.broadcast_to(x, given_BxN.shape), orders.around(given_BxN, length_B, order)
    )
  else:
    free = int(is_free_BxN.sum(axis=1).max())
    steps = steps or max(1, -(-free // streams))
    key = jax.random.fold_in(jax.random.key(np.uint32(sampling.seed)), _OF_ORDERS)
    order = _sampler_order(key, given_BxN, length_B.astype(np.int32), steps, share)
  texts, generated = decoder.along(order, request, sampling)
  step_BxN = _steps(jax.tree.map(np.asarray, order), is_free_BxN)
  fields = (generated.tokens_BxN, generated.length_B, generated.steps, generated.margin_B)
  return texts, Denoised(*fields, step_BxN)  # type: ignore[arg-type]


def _steps(order: GenerationOrder, is_free_BxN: np.ndarray) -> np.ndarray:
  """At which pass each token appears, int32 [B, N]: each generates a block; 0 of other tokens."""
  step_BxN = np.zeros(is_free_BxN.shape, np.int32)
  rows = zip(order.position_BxN, order.block_BxN, strict=True)
  for b, (position_N, block_N) in enumerate(rows):
    is_free_N = is_free_BxN[b, position_N - 1]
    number_n = np.unique(block_N[is_free_N], return_inverse=True)[1] + 1
    step_BxN[b, position_N[is_free_N] - 1] = number_n
  return step_BxN


@jax.jit
def _sampler_order(key, given_BxN, length_B, steps, share):
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(given_BxN)))
  order = esolm.sampler_order(keys_B, given_BxN.shape[1], share, steps)
  return with_given(order, given_BxN, length_B)


FAMILY = Family(
  network=ARMD,
  loss=_loss,
  generate=generate,
  shown=SHOWN,
  bound=esolm.bound,
  samplers=('ancestral',),
)

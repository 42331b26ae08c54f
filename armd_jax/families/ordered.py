"""What families that predict along generation orders share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.data import documents
from armd_jax.decode.requests import Decoder, Request
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.step import Generated
from armd_jax.families.family import Draws
from armd_jax.models.params import Params
from armd_jax.objectives import armd
from armd_jax.order import GenerationOrder, to_generation

Array = jax.Array

SHOWN = 'S streams of a text of {length:,} tokens grow at once, a token of each in every step.'


def loss(
  model: Any, params: Params, text_MxN: Array, draws: Draws, **options
) -> tuple[Array, Array]:
  """The loss under the orders that the step draws; see `Family`."""
  slots, document = model.config.num_slots, None
  if draws.scored is not None:
    read = documents.read(text_MxN)
    text_MxN, is_scored_MxN = read.ids_BxN, read.is_scored_BxN[:, -slots:]
    document = read.is_given_BxN[:, -slots:], jnp.sum(read.is_real_BxN[:, -slots:], axis=1)
  order, kind_M = armd.training_order(
    draws.orders, slots, draws.step, draws.step_key, draws.keys_M, document
  )
  # A share of the whole batch's mean, so that gradients of micro-batches only have to be added.
  if draws.scored is None:
    weights_MxN = jnp.full((text_MxN.shape[0], slots), 1 / (draws.count * slots), jnp.float32)
  else:
    is_scored_MxN = to_generation(is_scored_MxN, order)
    weights_MxN = jnp.where(is_scored_MxN, 1 / jnp.maximum(draws.scored, 1), 0)
  total, nll_MxN = armd.nll(
    model, params, text_MxN, order, weights_MxN, index_B=draws.index_M, **options
  )
  is_kind_MxK = jax.nn.one_hot(kind_M, len(armd.ORDER_KINDS))
  if draws.scored is None:
    nats_M = jnp.mean(nll_MxN, axis=1)
  else:
    count_M = jnp.sum(is_scored_MxN, axis=1)
    nats_M = jnp.sum(jnp.where(is_scored_MxN, nll_MxN, 0), axis=1) / jnp.maximum(count_M, 1)
  nats_MxK = nats_M[:, None] * is_kind_MxK
  return total, jnp.stack([jnp.sum(nats_MxK, axis=0), jnp.sum(is_kind_MxK, axis=0)])


def generate(
  decoder: Decoder,
  request: Request,
  sampling: Sampling,
  *,
  streams: int = 1,
  watch: Callable[..., None] | None = None,
  order: GenerationOrder | None = None,
  mend: int = 0,
) -> tuple[list[str], Generated]:
  """Along a strided order of so many streams, or another; see `Decoder.complete`. With `mend`, the
  junctions of streams are written twice; see `Decoder.mend`."""
  texts, generated = decoder.complete(request, streams, sampling, watch, order)
  return decoder.mend(request, streams, sampling, generated, mend) if mend else (texts, generated)

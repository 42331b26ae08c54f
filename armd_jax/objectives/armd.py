"""The ARMD objective: mean negative log-likelihood under drawn generation orders (paper eq. 2).

Weight 1 per slot. With singleton orders it is an exact log-likelihood; with blocks drawn from a
masking process, weight 1 is the bound's own weight, so one pass is an unbiased estimate of it all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import OrderConfig
from armd_jax.models.params import Params
from armd_jax.objectives.cross_entropy import weighted_nll
from armd_jax.order import (
  GenerationOrder,
  given_first,
  masking_blocks,
  one_by_one,
  progressive_budget,
  segments,
  select,
  shuffled,
  strided,
  to_generation,
  uniform,
  with_given,
)

Array = jax.Array
Document = tuple[Array, Array]  # given_BxN and length_B of `order.with_given`

# What a sequence's order may be in training; their losses are logged separately.
ORDER_KINDS = ('left_to_right', 'shuffled', 'uniform', 'segments', 'strided')
_LEFT_TO_RIGHT, _SHUFFLED, _UNIFORM, _SEGMENTS, _STRIDED = range(len(ORDER_KINDS))


def training_order(
  config: OrderConfig,
  num_slots: int,
  step: Array,
  step_key: Array,
  keys_B: Array,
  document: Document | None = None,
) -> tuple[GenerationOrder, Array]:
  """The orders of one training step (paper sections 3.1 and 5).

  Left-to-right, then progressively shuffled, with a share of `uniform_order_prob` in random order
  (singletons, or the blocks of a `masking_steps`-step masking process, paper section 2); then, from
  `strided_start` on, strided with S drawn uniformly from `strided_streams`, once per step, as in
  the paper, or per sequence (which tokens are shuffled is drawn per sequence); a share of
  `strided_one_by_one` of the sequences takes the strided order one token at a time (our choice).
  From `ar_steps` on, to the end, a share of `segments_prob` of the sequences is cut into segments
  instead (our choice), which has many more junctions than strided orders have, at places that
  differ.

  Args:
    num_slots: N.
    step: int32 scalar, traced.
    step_key: one key for the step.
    keys_B: one key per sequence.
    document: what of every sequence is given, and how long it is; None: nothing is, and N tokens.
      Of an order that is drawn the rest stays; streams are those of the tokens that are not given.
  Returns:
    The order, `[B, N]`, and kind_B, int32 indices into `ORDER_KINDS`. With one token shuffled, or
    one stream, an order is left-to-right.
  """
  # The step is traced, so that one program serves the whole run: all orders that the config allows
  # are made, and selected from.
  budget = progressive_budget(step, config.ar_steps, config.perm_steps, config.max_shuffled)
  order = shuffled(keys_B, num_slots, budget, config.perm_mode)
  kind_B = jnp.full(keys_B.shape, jnp.where(budget > 1, _SHUFFLED, _LEFT_TO_RIGHT), jnp.int32)
  if config.uniform_order_prob:
    coin_keys_B, order_keys_B = _split(keys_B)
    is_uniform_B = jax.vmap(jax.random.bernoulli, (0, None))(coin_keys_B, config.uniform_order_prob)
    # The first phase is purely left-to-right in the paper, whatever is mixed in later.
    is_uniform_B &= step >= config.ar_steps
    if config.masking_steps:
      random = masking_blocks(
        order_keys_B, num_slots, config.masking_steps, config.masking_schedule
      )
    else:
      random = uniform(order_keys_B, num_slots)
    order = select(is_uniform_B, random, order)
    kind_B = jnp.where(is_uniform_B, _UNIFORM, kind_B)
  if config.strided_start >= 0:
    is_strided = jnp.reshape(step >= config.strided_start, 1)
    streams_B = _draw_streams(config, step_key, keys_B)
    if document is None:
      stride = jax.vmap(lambda streams: strided(num_slots, streams))(streams_B)
    else:
      given_Bx1xN, length_Bx1 = (x[:, None] for x in document)
      stride = jax.vmap(given_first)(given_Bx1xN, length_Bx1, streams_B)
    stride = jax.tree.map(lambda x: x[:, 0], stride)
    if config.strided_one_by_one:
      coin_B = jax.vmap(jax.random.bernoulli, (0, None))(keys_B, config.strided_one_by_one)
      stride = select(coin_B, one_by_one(stride), stride)
    order = select(is_strided, stride, order)
    kind_B = jnp.where(is_strided, jnp.where(streams_B > 1, _STRIDED, _LEFT_TO_RIGHT), kind_B)
  if config.segments_prob:
    # Keys of their own: the sequences of other kinds are as they would be without segments.
    coin_keys_B, order_keys_B = _split(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1))
    is_cut_B = jax.vmap(jax.random.bernoulli, (0, None))(coin_keys_B, config.segments_prob)
    is_cut_B &= step >= config.ar_steps
    order = select(is_cut_B, segments(order_keys_B, num_slots, config.segments_cuts), order)
    kind_B = jnp.where(is_cut_B, _SEGMENTS, kind_B)
  return order if document is None else with_given(order, *document), kind_B


def _draw_streams(config, step_key, keys_B):
  """S of every sequence."""
  streams = jnp.array(config.strided_streams, jnp.int32)
  if config.strided_draw == 'step':
    return jnp.broadcast_to(jax.random.choice(step_key, streams), keys_B.shape)
  keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, 2)
  return jax.vmap(jax.random.choice, (0, None))(keys_B, streams)


def _split(keys_B):
  """Two keys per sequence."""
  return jax.vmap(jax.random.split, out_axes=1)(keys_B)


def nll(
  model: Any,
  params: Params,
  text_BxN: Array,
  order: GenerationOrder,
  weights_BxN: Array,
  *,
  loss_chunk: int,
  dropout_key: Array | None = None,
  index_B: Array | None = None,
) -> tuple[Array, Array]:
  """Weighted negative log-likelihood of texts under an order.

  Args:
    model, params: the network.
    text_BxN: int32 ids in text order; with `first_token='given'` the first one is given and
      not scored, so that the order has one slot less.
    order: `[B or 1, slots]`.
    weights_BxN: float32 per slot, in generation order.
    loss_chunk: slots per sequence whose logits exist at once.
    dropout_key: turns dropout on.
    index_B: int32, index of each sequence in the whole batch, which its dropout depends on; 0.. if
      None.
  Returns:
    The weighted sum in nats, and nll_BxN per slot, in generation order.
  """
  first_B = None
  if model.config.first_token == 'given':
    # Input only, in all families, so that all of them score the same tokens.
    first_B, text_BxN = text_BxN[:, 0], text_BxN[:, 1:]
  # From here on everything is in generation order; only positions remember the text.
  tokens_BxN = to_generation(text_BxN, order)
  rngs = None if dropout_key is None else {'dropout': dropout_key}
  hidden_BxNxE = model.apply({'params': params}, tokens_BxN, order, first_B, index_B, rngs=rngs)
  # The matrix and not the logits: all of them at once would be the step's largest array.
  embedding_VxE = model.apply({'params': params}, method='embedding')
  return weighted_nll(
    hidden_BxNxE, embedding_VxE, tokens_BxN, weights_BxN, model.vocab_size, loss_chunk
  )

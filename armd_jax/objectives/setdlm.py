"""SetDLM: diffusion over sets of tokens in a drawn order (Arriola et al. 2026, arXiv 2607.01775).

A text is generated set by set, in an order that a policy draws:

  p(x) = sum over orders s of  policy(s)  prod_n p(x_{s_n} | x_{s_<n})

Every token has a noise schedule of its own, which masks it at a random time; the order is that of
falling times. In continuous time no two tokens have the same, sets are single tokens, and the bound

  -log p(x)  <=  E_s sum over n of -log p(x_{s_n} | x_{s_<n})
             =   integral over t of  sum over tokens i of  -alpha_i'(t) / (1 - alpha_i(t))
                                     E[ -log p(x_i | tokens not masked) 1(i is masked) ]

has weight 1 for every token: one pass is an unbiased estimate of it all, as in the released code,
which trains on it too. That is ARMD's objective (`objectives.armd`, its paper's eq. 2) with orders
of the policy in place of its own, and a network whose query rows are masks that see themselves.

Policies (the released code's noise schedules):

  staggered   1 - alpha_i(t) = 1 - (1 - (t - l_i) / b)^k, l_i from 1 - b of the first token, evenly,
              to 0 of the last: times that overlap for neighbours within s_max = `set_reach`
              positions, and b and k such that d = `set_size` tokens are in motion on average. With
              d = 1 the order is left to right.
  blocks      those of BD3-LM: blocks of `block_length` from left to right, evenly within a block.
              The bound is then BD3-LM's, of a network that sees no masks; one block for the whole
              text is the any-order model.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.models.params import Params
from armd_jax.objectives import masking
from armd_jax.objectives.cross_entropy import weighted_nll
from armd_jax.objectives.diffusion import MaskedDiffusion
from armd_jax.order import GenerationOrder, one_by_one, to_generation, with_given

Array = jax.Array


def stagger(settings: DiffusionConfig, num_slots: int) -> tuple[float, float]:
  """b, in steps between two neighbours' l_i, and k of the staggered schedule.

  In time a step is (1 - b) / (N - 1). The area that a token's 1 - alpha leaves out is d / (2 N).
  """
  size, reach = settings.set_size, settings.set_reach
  area = size / (2 * num_slots)
  if size in (1, reach):
    width, power = 2 * area, 1.0
  else:
    width = reach / (num_slots + reach - 1)
    power = area / (width - area)
  return width * (num_slots - 1) / max(1 - width, 1e-6), power


def draw_order(settings: DiffusionConfig, keys_B: Array, num_slots: int) -> GenerationOrder:
  """An order of the policy for every key, single tokens, `[B, N]`.

  Args:
    settings: the policy.
    keys_B: one key per sequence.
    num_slots: N.
  """
  u_BxN = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)
  slot_N = jnp.arange(num_slots)
  if settings.set_policy == 'blocks':
    given = -num_slots % settings.block_length  # the first token of its block
    time_BxN = u_BxN - (slot_N + given) // settings.block_length
  else:
    width, power = stagger(settings, num_slots)
    # Where 1 - alpha is u: how far a token's own time is, from the last one's l.
    time_BxN = num_slots - 1 - slot_N - width * jnp.expm1(jnp.log1p(-u_BxN) / power)
  position_BxN = (jnp.argsort(-time_BxN, axis=1) + 1).astype(jnp.int32)
  return one_by_one(GenerationOrder(position_BxN, position_BxN))


class SetDLM(MaskedDiffusion):
  """Reads `set_policy`, and what the policy reads."""

  def schedule(self, settings: DiffusionConfig) -> masking.Schedule:
    """Of a token, between its own ends; all are masked at the end."""
    return masking.Schedule('log_linear', epsilon=0.0)

  def shown_at_the_end(self, settings: DiffusionConfig) -> float:
    """All are masked."""
    return 0.0

  def objective(  # type: ignore[override]  # which options there are
    self,
    model: Any,
    params: Params,
    text_BxN: Array,
    u_B: Array,
    keys_B: Array,
    settings: DiffusionConfig,
    is_free_BxN: Array | None = None,
    *,
    scale: float,
    loss_chunk: int,
    length_B: Array | None = None,
    dropout_key: Array | None = None,
    index_B: Array | None = None,
  ) -> tuple[Array, Array]:
    """The bound along one order per sequence; see `MaskedDiffusion.objective`.

    There is no time: one order represents all of them. What is given comes first, in text order.
    """
    del u_B
    first_B = None
    if model.config.first_token == 'given':
      first_B, text_BxN = text_BxN[:, 0], text_BxN[:, 1:]
    batch, slots = text_BxN.shape
    order = draw_order(settings, keys_B, slots)
    if is_free_BxN is not None:
      length_B = jnp.full(batch, slots) if length_B is None else length_B
      order = with_given(order, ~is_free_BxN & (jnp.arange(slots) < length_B[:, None]), length_B)
    tokens_BxN = to_generation(text_BxN, order)
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    hidden_BxNxE = model.apply(
      {'params': params}, tokens_BxN, None, first_B, None, index_B, order.position_BxN, rngs=rngs
    )
    embedding_VxE = model.apply({'params': params}, method='embedding')
    weights_BxN = jnp.ones((batch, slots), jnp.float32)
    if is_free_BxN is not None:
      weights_BxN *= to_generation(is_free_BxN, order)
    total, nll_BxN = weighted_nll(
      hidden_BxNxE, embedding_VxE, tokens_BxN, weights_BxN * scale, model.vocab_size, loss_chunk
    )
    return total, jnp.sum(weights_BxN * nll_BxN, axis=1)

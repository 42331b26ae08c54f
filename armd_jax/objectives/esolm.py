"""Eso-LM (B): masked diffusion, then left to right, one causal cache (Sahoo et al. 2025, arXiv
2506.01928; ICML 2026).

The diffusion phase reveals a share alpha_0 of the tokens, anywhere in the text, and the sequential
phase the others one by one, from what it revealed and all that is to their left. With alpha_t =
alpha_0 (1 - t), or another schedule, x_t masks each token with probability 1 - alpha_t, and the
bound (the paper's NELBO: AR loss plus MDM loss) is

    E over x_0 of  sum over masked n of  -log p(x_n | x_0, tokens before n)
  + integral over t in (0, 1) of  -alpha'_t / (1 - alpha_t)  E over x_t of
                                       sum over masked n of  -log p(x_n | x_t)

Its attention is causal over a shuffled sequence, in which tokens that are not masked come first, in
random order in the diffusion phase. That is a generation order, and the network is `ARMD` along it:
content rows are clean tokens, query rows masks in all layers (`query_seed='mask_embedding'`), and a
content row sees what came before it (`content_mask='row'`). A phase is an order with a weight:

  diffusion   clean tokens one by one, then all others as one block, of weight -alpha' / (1 - alpha)
  sequential  clean tokens one by one, then the others left to right, of weight 1

Since a conditional depends on the clean tokens before it and on their order alone, the integral is
a mean over the step at which a token is revealed, and the bound is the mean of exact negative
log-likelihoods along orders (`any_order`): a random alpha_0 of the tokens in random order, then the
rest left to right. With alpha_0 = 0 it is the AR likelihood, with 1 that of uniform orders.

The released network differs in what a mask sees beside clean tokens: itself and, in the diffusion
phase, the masks before it in the shuffled sequence, which hold positions alone; here it is BOS, as
in ARMD. Its blocks also shift, scale and gate by a condition that is always the same; these do not.
All layers have two streams, for sequences of both phases: at GPT-2 small's size a training step has
1.52 times an AR model's FLOPs. Released training runs no content rows in the diffusion phase.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.models.params import Params
from armd_jax.objectives import armd, masking
from armd_jax.order import GenerationOrder, to_generation, with_given

Array = jax.Array


def order_of(v_BxN: Array, shown_B: Array, together_B: Array) -> GenerationOrder:
  """Some tokens in random order, then the others.

  Args:
    v_BxN: float32 in [0, 1), uniform, by text position.
    shown_B: float32, share of the tokens that come first: those whose `v` is less.
    together_B: bool, whether the others are one block; else they are left to right, one by one.

  Examples:
    >>> v = jnp.array([[0.9, 0.3, 0.1, 0.5]])
    >>> order = order_of(v, jnp.array([0.4]), jnp.array([True]))
    >>> order.position_BxN.tolist(), order.block_BxN.tolist()
    ([[3, 2, 1, 4]], [[1, 2, 3, 3]])
  """
  is_shown_BxN = v_BxN < shown_B[:, None]
  slot_BxN = jnp.argsort(jnp.where(is_shown_BxN, v_BxN, 1.0), axis=1, stable=True)
  number_N = jnp.arange(1, v_BxN.shape[1] + 1)
  most_B = jnp.where(together_B, jnp.sum(is_shown_BxN, axis=1) + 1, v_BxN.shape[1])
  block_BxN = jnp.minimum(number_N, most_B[:, None])
  return GenerationOrder((slot_BxN + 1).astype(jnp.int32), block_BxN.astype(jnp.int32))


def draw(
  settings: DiffusionConfig, u_B: Array, v_BxN: Array
) -> tuple[GenerationOrder, Array, Array]:
  """One draw of the training objective per sequence.

  Args:
    settings: of the process; `esolm_loss` may be
      elbo          each sequence trains one phase, a share `esolm_split` of them diffusion
      low_variance  the same, masks of the diffusion phase with weight 1, as the paper trains
                    alpha_0 = 1: no bound any more
      orders        each sequence trains both phases along an order of `any_order` (our choice)
    u_B: float32 in (0, 1], uniform; the least ones train diffusion, at times that they give.
    v_BxN: float32 in [0, 1), uniform, by text position.
  Returns:
    The order, weights_BxN by text position, and whether each sequence trains diffusion, bool [B].
    The mean over draws of the weighted nats is the bound, but for the first thousandth of time.
  """
  share, kind = settings.esolm_diffused, settings.esolm_loss
  if kind == 'orders':
    never_B = jnp.zeros(len(u_B), bool)
    return order_of(v_BxN, jnp.full(len(u_B), share), never_B), jnp.ones_like(v_BxN), never_B
  # Where one phase is all there is, all sequences train it.
  split = settings.esolm_split if 0 < share < 1 else share
  is_diffusion_B = u_B <= split
  process = masking.Schedule(settings.schedule)
  # As in training by other methods of continuous time, the first thousandth is left out.
  within_B = jnp.minimum(u_B / (split or 1.0), 1)
  t_B = masking.EPSILON + (1 - masking.EPSILON) * within_B
  alpha_B = share * (1 - process.masked(t_B))
  weight_B = jnp.full(len(u_B), 1.0) if kind == 'low_variance' else share * process.rate(t_B)
  if kind == 'elbo':
    # 1 - alpha, without its rounding errors where alpha_0 is 1 and t is near 0.
    weight_B /= 1 - share + share * process.masked(t_B)
  weight_B = jnp.where(is_diffusion_B, weight_B / (split or 1.0), 1 / ((1 - split) or 1.0))
  shown_B = jnp.where(is_diffusion_B, alpha_B, share)
  weights_BxN = jnp.where(v_BxN < shown_B[:, None], 0, weight_B[:, None])
  return order_of(v_BxN, shown_B, is_diffusion_B), weights_BxN, is_diffusion_B


def loss(
  model: Any,
  params: Params,
  text_BxN: Array,
  keys_B: Array,
  count: int,
  index_B: Array,
  *,
  document: armd.Document | None = None,
  scored: Array | None = None,
  **options,
) -> tuple[Array, Array]:
  """The training loss of some of a batch's sequences.

  Args:
    model, params, text_BxN: an `ARMD` and token ids.
    keys_B: one key per sequence.
    count: sequences of the whole batch, which have low-discrepancy times together; a share
      `esolm_split` of them trains diffusion, as in the paper.
    index_B: int32, which sequence of the whole batch each is.
    document: is_given_BxN and length_B of texts of which a part is given; None: nothing is.
    scored: float32 scalar, tokens of the whole batch that are not given; None: all are scored.
    **options: `loss_chunk` and `dropout_key` of `armd.nll`.
  Returns:
    Their share of the whole batch's mean nats per token, and nats_B of each, without its gradient.
  """
  slots = model.config.num_slots
  time_keys_B, order_keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)
  u_B = masking.times(time_keys_B, index_B, count, least=0.0)
  order, weights_BxN, _ = draw(model.config.diffusion, u_B, uniforms(order_keys_B, slots))
  order, is_free_BxN = _around(order, document)
  weights_BxN = to_generation(jnp.where(is_free_BxN, weights_BxN, 0), order)
  scored = count * slots if scored is None else jnp.maximum(scored, 1)
  total, nll_BxN = armd.nll(
    model, params, text_BxN, order, weights_BxN / scored, index_B=index_B, **options
  )
  return total, jnp.sum(weights_BxN * nll_BxN, axis=1)


def _around(
  order: GenerationOrder, document: armd.Document | None
) -> tuple[GenerationOrder, Array]:
  """The order with what is given first, and by text position which tokens are left, bool [B, N]."""
  if document is None:
    return order, jnp.ones(order.position_BxN.shape, bool)
  is_given_BxN, length_B = document
  is_free_BxN = ~is_given_BxN & (jnp.arange(order.num_slots) < length_B[:, None])
  return with_given(order, is_given_BxN, length_B), is_free_BxN


def uniforms(keys_B: Array, num_slots: int) -> Array:
  """v_BxN of `order_of`, one key per sequence."""
  return jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)


def any_order(keys_B: Array, num_slots: int, settings: DiffusionConfig) -> GenerationOrder:
  """Orders along which the exact negative log-likelihood is, in the mean, the bound."""
  count = len(keys_B)
  shown_B = jnp.full(count, settings.esolm_diffused)
  return order_of(uniforms(keys_B, num_slots), shown_B, jnp.zeros(count, bool))


def bound(
  model: Any,
  params: Params,
  text_BxN: Array,
  keys_B: Array,
  settings: DiffusionConfig,
  *,
  samples: int,
  loss_chunk: int,
  document: armd.Document | None = None,
) -> Array:
  """The bound on the negative log-likelihood, estimated along `samples` drawn orders.

  The released code draws masks instead; the mean is the same, and orders vary less: they have no
  weights, and one pass serves both phases.

  Args:
    model, params, text_BxN: an `ARMD` and token ids.
    keys_B: one key per sequence.
    settings: the process.
    samples: orders per sequence.
    loss_chunk: slots per sequence whose logits exist at once.
    document: as of `loss`: the bound is then on what is left, given that part.
  Returns:
    float32 nats_B per sequence.
  """
  slots = model.config.num_slots

  def estimate(index: Array) -> Array:
    order = any_order(jax.vmap(jax.random.fold_in, (0, None))(keys_B, index), slots, settings)
    order, is_free_BxN = _around(order, document)
    none_BxN = jnp.zeros(order.position_BxN.shape, jnp.float32)
    _, nll_BxN = armd.nll(model, params, text_BxN, order, none_BxN, loss_chunk=loss_chunk)
    return jnp.sum(jnp.where(to_generation(is_free_BxN, order), nll_BxN, 0), axis=1)

  # One draw after the other, so that memory does not grow with `samples`.
  return jnp.mean(jax.lax.map(estimate, jnp.arange(samples)), axis=0)


def sampler_order(
  keys_B: Array, num_slots: int, share: Array | float, steps: Array | int
) -> GenerationOrder:
  """Both phases of the sampler: the diffusion phase in `steps` blocks, then one by one.

  A step from t to s reveals each masked token with probability (alpha_s - alpha_t) / (1 - alpha_t).
  A token is thus revealed in the diffusion phase with probability alpha_0, and in which of its
  steps is uniform (of the log-linear schedule, whose alpha at t = 1 is taken to be 0).

  Args:
    keys_B: one key per sequence.
    num_slots: N.
    share: alpha_0.
    steps: K, of the diffusion phase; some may reveal nothing, and take no pass.
  """
  v_BxN = uniforms(keys_B, num_slots)
  order = order_of(v_BxN, jnp.full(len(v_BxN), share), jnp.zeros(len(v_BxN), bool))
  sorted_BxN = jnp.sort(v_BxN, axis=1)
  step_BxN = jnp.floor(steps * sorted_BxN / jnp.maximum(share, 1e-9)).astype(jnp.int32)
  step_BxN = jnp.minimum(step_BxN, steps - 1)
  block_BxN = jnp.where(sorted_BxN < share, step_BxN, steps + order.block_BxN)
  return GenerationOrder(order.position_BxN, block_BxN.astype(jnp.int32))

"""The masked-diffusion baselines by family, and what all of them are measured by."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import d3pm, masking, mdlm, radd, sedd

Array = jax.Array

FAMILIES = {'mdlm': mdlm, 'd3pm': d3pm, 'sedd': sedd, 'radd': radd}


def loss(
  model: Any,
  params: Any,
  text_BxN: Array,
  keys_B: Array,
  count: int,
  index_B: Array,
  **options,
) -> tuple[Array, Array]:
  """The family's training loss of some of a batch's sequences.

  Args:
    model, params, text_BxN: a `Denoiser` and token ids.
    keys_B: one key per sequence.
    index_B: int32, which sequence of the whole batch each is.
    count: sequences of the whole batch; their times are low-discrepancy together.
    **options: of `masking.masked_loss`.
  Returns:
    Mean nats per scored token, as these sequences' share of the whole batch's, and nats_B.
  """
  settings = model.config.diffusion
  # Papers with a continuous time leave out the first thousandth, where few tokens weigh much.
  least = masking.EPSILON if FAMILIES[model.config.family].has_least_time(settings) else 0.0
  time_keys_B, mask_keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)
  return FAMILIES[model.config.family].objective(
    model,
    params,
    text_BxN,
    masking.times(time_keys_B, index_B, count, least),
    mask_keys_B,
    settings,
    scale=1 / (count * model.config.num_slots),
    index_B=index_B,
    **options,
  )


def bound(
  model: Any,
  params: Any,
  text_BxN: Array,
  keys_B: Array,
  settings: DiffusionConfig,
  *,
  samples: int,
  loss_chunk: int,
) -> Array:
  """An unbiased estimate of each sequence's upper bound on its negative log-likelihood.

  The family's own bound, without auxiliary terms, at `samples` low-discrepancy times; RADD's is the
  any-order one, whose estimate varies least. Where alpha(1) > 0 comes the prior,
  KL(q(x_1 | x) || p(x_1)): p(x_1) shows each token with probability alpha(1), as what the network
  says when all are masked.

  Args:
    model, params, text_BxN: a `Denoiser` and token ids.
    keys_B: one key per sequence.
    settings: the process.
    samples: times per sequence.
    loss_chunk: slots per sequence whose logits exist at once.
  Returns:
    float32 nats_B per sequence.
  """
  name = model.config.family
  family = FAMILIES[name]
  settings = dataclasses.replace(settings, d3pm_aux=0.0, radd_loss='any_order')
  batch = text_BxN.shape[0]
  time_keys_B, mask_keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)

  def draw(index):
    fold = jax.vmap(jax.random.fold_in, (0, None))
    u_B = masking.times(fold(time_keys_B, index), index, samples, least=0.0)
    _, nats_B = family.objective(
      model, params, text_BxN, u_B, fold(mask_keys_B, index), settings, scale=1.0,
      loss_chunk=loss_chunk,
    )  # fmt: skip
    return nats_B

  nats_B = jnp.mean(jax.lax.map(draw, jnp.arange(samples)), axis=0)
  left = family.schedule(settings).epsilon
  if not left or name == 'radd':
    return nats_B
  _, prior_B = masking.masked_loss(
    model,
    params,
    text_BxN,
    jnp.ones((batch, model.config.num_slots), bool),
    jnp.full(batch, left, jnp.float32),
    scale=1.0,
    loss_chunk=loss_chunk,
    noise_B=family.noise(settings, jnp.ones(batch)),
  )
  return nats_B + prior_B

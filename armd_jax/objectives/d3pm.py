"""D3PM with an absorbing state, T discrete steps (Austin et al. 2021, arXiv 2107.03006).

Token by token, beta_t = 1 / (T - t + 1) (section 3.1 and appendix A), that is alpha_t = 1 - t / T:
everything is masked at t = T and the prior costs nothing. With the x_0 parametrisation (eq. 4) the
KL divergence of step t is, over masked tokens,

  w_t sum -log p(x_n | x_t),   w_t = (alpha_{t-1} - alpha_t) / (1 - alpha_t),

and the last step, t = 1, has w_1 = 1: L_vb (eq. 1) is the sum over t = 1..T. The hybrid loss (its
eq. 5) adds `aux` times the cross-entropy to every step's. The network reads t, predicts no mask.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking

Array = jax.Array


def schedule(settings: DiffusionConfig) -> masking.Schedule:
  """alpha as a function of t / T; the paper's schedule ends in masks alone."""
  del settings
  return masking.Schedule('log_linear', epsilon=0.0)


def noise(settings: DiffusionConfig, t_B: Array) -> Array:
  """The step of T that is nearest to time t; a sampler of T steps meets each exactly."""
  return jnp.round(t_B * settings.d3pm_steps)


def has_least_time(settings: DiffusionConfig) -> bool:
  """Whether training draws times from `masking.EPSILON` on."""
  del settings
  return False


def objective(
  model: Any,
  params: Any,
  text_BxN: Array,
  u_B: Array,
  keys_B: Array,
  settings: DiffusionConfig,
  **options,
) -> tuple[Array, Array]:
  """One step per sequence, times T; see `mdlm.objective`. Reads `d3pm_steps` and `d3pm_aux`."""
  steps = settings.d3pm_steps
  step_B = jnp.ceil(u_B * steps)
  process = schedule(settings)
  masked_B, before_B = process.masked(step_B / steps), process.masked((step_B - 1) / steps)
  weights_B = steps * ((masked_B - before_B) / masked_B + settings.d3pm_aux)
  is_masked_BxN = masking.draw_mask(keys_B, masked_B, model.config.num_slots)
  return masking.masked_loss(
    model, params, text_BxN, is_masked_BxN, weights_B, noise_B=step_B, **options
  )

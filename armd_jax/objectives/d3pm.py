"""D3PM with an absorbing state, T discrete steps (Austin et al. 2021, arXiv 2107.03006).

Token by token, beta_t = 1 / (T - t + 1) (section 3.1 and appendix A), that is alpha_t = 1 - t / T:
everything is masked at t = T and the prior costs nothing. With the x_0 parametrisation (eq. 4) the
KL divergence of step t is, over masked tokens,

  w_t sum -log p(x_n | x_t),   w_t = (alpha_{t-1} - alpha_t) / (1 - alpha_t) = 1 / t,

and the last step, t = 1, has w_1 = 1: L_vb (eq. 1) is the sum over t = 1..T. The hybrid loss (its
eq. 5) adds `aux` times the cross-entropy of all tokens, masked or not, to every step's, as the
authors' code does. The network reads t, predicts no mask.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.diffusion import Draw, MaskedDiffusion

Array = jax.Array


class D3PM(MaskedDiffusion):
  """Reads `d3pm_steps` and `d3pm_aux`."""

  def schedule(self, settings: DiffusionConfig) -> masking.Schedule:
    """alpha as a function of t / T; the paper's schedule ends in masks alone."""
    return masking.Schedule('log_linear', epsilon=0.0)

  def noise(self, settings: DiffusionConfig, t_B: Array) -> Array:
    """The step of T that is nearest to time t; a sampler of T steps meets each exactly."""
    return jnp.round(t_B * settings.d3pm_steps)

  def least_time(self, settings: DiffusionConfig) -> float:
    """Steps are whole numbers, from 1."""
    return 0.0

  def of_the_bound(self, settings: DiffusionConfig) -> DiffusionConfig:
    """Without the auxiliary term."""
    return dataclasses.replace(settings, d3pm_aux=0.0)

  def draw(self, u_B: Array, keys_B: Array, num_slots: int, settings: DiffusionConfig) -> Draw:
    """One step of T per sequence, times T."""
    steps = settings.d3pm_steps
    # u is in (0, 1], so every step 1..T is as likely; one is drawn for the sum over all, and weighs
    # T times what it would in it.
    step_B = jnp.ceil(u_B * steps)
    process = self.schedule(settings)
    is_masked_BxN = masking.draw_mask(keys_B, process.masked(step_B / steps), num_slots)
    aux = steps * settings.d3pm_aux
    # w_t in closed form: the difference of two alphas would lose four digits in float32.
    return Draw(is_masked_BxN, steps / step_B + aux, noise_B=step_B, weight_of_shown=aux)

"""RADD: absorbing diffusion without a time input (Ou et al. 2024, arXiv 2406.03736).

The concrete score is a conditional of clean data times a factor of time, `alpha / (1 - alpha)`
(theorem 1), so the network predicts conditionals c(x_n | unmasked tokens) and reads no time. The
denoising cross-entropies of section 3.3 are one bound in three disguises:

  t-DCE       integral of  sigma' alpha / (1 - alpha)  E[ sum over masked n of -log c(x_n) ]  dt
  lambda-DCE  integral over lambda in (0, 1), the masking probability itself, of  1/lambda E[ ... ]
  any-order   E over how many tokens k = 1..N are masked of  N/k E[ ... ]  (section 3.3: AO-ARMs)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.diffusion import Draw
from armd_jax.objectives.mdlm import MDLM

Array = jax.Array


class RADD(MDLM):
  """Reads `radd_loss`; `schedule` is that of t-DCE, and of the sampler."""

  def least_time(self, settings: DiffusionConfig) -> float:
    """Of t-DCE; the others know no time."""
    return super().least_time(settings) if settings.radd_loss == 't_dce' else 0.0

  def of_the_bound(self, settings: DiffusionConfig) -> DiffusionConfig:
    """The any-order form, whose estimate varies least."""
    return dataclasses.replace(settings, radd_loss='any_order')

  def shown_at_the_end(self, settings: DiffusionConfig) -> float:
    """The any-order form starts from masks alone."""
    return 0.0

  def draw(self, u_B: Array, keys_B: Array, num_slots: int, settings: DiffusionConfig) -> Draw:
    """sigma' alpha is -alpha', so t-DCE is MDLM's integrand."""
    if settings.radd_loss == 't_dce':
      return super().draw(u_B, keys_B, num_slots, settings)
    if settings.radd_loss == 'lambda_dce':
      return Draw(masking.draw_mask(keys_B, u_B, num_slots), 1 / u_B)
    # A fixed number of masks varies less than a fixed probability of each: N / k is exact where
    # 1 / lambda holds on average.
    count_B = jnp.ceil(u_B * num_slots)
    return Draw(masking.draw_exactly(keys_B, count_B, num_slots), num_slots / count_B)

"""RADD: absorbing diffusion without a time input (Ou et al. 2024, arXiv 2406.03736).

The concrete score is a conditional of clean data times a factor of time, `alpha / (1 - alpha)`
(theorem 1), so the network predicts conditionals c(x_n | unmasked tokens) and reads no time. The
denoising cross-entropies of section 3.3 are one bound in three disguises:

  t-DCE       integral of  sigma' alpha / (1 - alpha)  E[ sum over masked n of -log c(x_n) ]  dt
  lambda-DCE  integral over lambda in (0, 1), the masking probability itself, of  1/lambda E[ ... ]
  any-order   E over how many tokens k = 1..N are masked of  N/k E[ ... ]  (section 3.3: AO-ARMs)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking, mdlm

Array = jax.Array


def schedule(settings: DiffusionConfig) -> masking.Schedule:
  """Of t-DCE, and of the sampler; lambda-DCE knows no schedule."""
  return masking.Schedule(settings.schedule)


def noise(settings: DiffusionConfig, t_B: Array) -> None:
  """The network reads none."""
  del settings, t_B


def has_least_time(settings: DiffusionConfig) -> bool:
  """Whether training draws times from `masking.EPSILON` on."""
  return settings.radd_loss == 't_dce'


def objective(
  model: Any,
  params: Any,
  text_BxN: Array,
  u_B: Array,
  keys_B: Array,
  settings: DiffusionConfig,
  **options,
) -> tuple[Array, Array]:
  """One draw of `settings.radd_loss` per sequence; see `mdlm.objective`.

  sigma' alpha is -alpha', so t-DCE is MDLM's integrand.
  """
  if settings.radd_loss == 't_dce':
    return mdlm.objective(model, params, text_BxN, u_B, keys_B, settings, **options)
  slots = model.config.num_slots
  if settings.radd_loss == 'lambda_dce':
    is_masked_BxN, weights_B = masking.draw_mask(keys_B, u_B, slots), 1 / u_B
  else:
    count_B = jnp.ceil(u_B * slots)
    is_masked_BxN, weights_B = masking.draw_exactly(keys_B, count_B, slots), slots / count_B
  return masking.masked_loss(model, params, text_BxN, is_masked_BxN, weights_B, **options)

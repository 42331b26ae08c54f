"""MDLM: masked diffusion in continuous time (Sahoo et al. 2024, arXiv 2406.07524).

SUBS parametrisation (section 3.2): the mask is never predicted, and an unmasked token stays what it
is. The bound (eq. 11, of infinitely many steps) is then a weighted cross-entropy of masked tokens:

  integral over t in (0, 1) of  -alpha'(t) / (1 - alpha(t))  E[ sum over masked n of -log p(x_n) ]

The network does not read the time.
"""

from __future__ import annotations

from typing import Any

import jax

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking

Array = jax.Array


def schedule(settings: DiffusionConfig) -> masking.Schedule:
  """Log-linear, or cosine."""
  return masking.Schedule(settings.schedule)


def noise(settings: DiffusionConfig, t_B: Array) -> None:
  """The network reads none."""
  del settings, t_B


def has_least_time(settings: DiffusionConfig) -> bool:
  """Whether training draws times from `masking.EPSILON` on."""
  del settings
  return True


def objective(
  model: Any,
  params: Any,
  text_BxN: Array,
  u_B: Array,
  keys_B: Array,
  settings: DiffusionConfig,
  **options,
) -> tuple[Array, Array]:
  """One draw of the bound per sequence, at time `u_B`.

  Args:
    model, params, text_BxN: see `masking.masked_loss`, which takes the options too.
    u_B: float32 in (0, 1], uniform.
    keys_B: one key per sequence, for its mask.
    settings: reads `schedule`.
  Returns:
    The scaled total, and nats_B, an unbiased estimate of each sequence's bound but for the prior
    (`bounds.prior`).
  """
  process = schedule(settings)
  is_masked_BxN = masking.draw_mask(keys_B, process.masked(u_B), model.config.num_slots)
  weights_B = process.rate(u_B) / process.masked(u_B)
  return masking.masked_loss(model, params, text_BxN, is_masked_BxN, weights_B, **options)

"""SEDD with an absorbing state: score entropy (Lou et al. 2024, arXiv 2310.16834).

The network's output x becomes the log score of turning a mask into token v,
`log s_v = x_v - log(e^sigma - 1) - log V` (scaling by e^sigma - 1, appendix C). With r = alpha /
(1 - alpha) = 1 / (e^sigma - 1), the denoising score entropy bound (eqs. 9-10, theorem 3.6) is

  integral of  sigma'(t) E[ sum over masked n of  sum_v s_v - r log s_{x_n} + r (log r - 1) ]  dt.

Put in x, r leaves the brackets, and sigma' r is MDLM's weight -alpha' / (1 - alpha): what follows
it is `mean_v e^{x_v} - 1 - (x_{x_n} - log V)`, a cross-entropy of scores that nothing normalises.
The network reads sigma = -log alpha.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking

Array = jax.Array


def schedule(settings: DiffusionConfig) -> masking.Schedule:
  """Log-linear in the paper's absorbing models."""
  return masking.Schedule(settings.schedule)


def noise(settings: DiffusionConfig, t_B: Array) -> Array:
  """sigma(t), the total noise."""
  return -jnp.log(schedule(settings).alpha(t_B))


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
  """One draw of the bound per sequence; see `mdlm.objective`."""
  process = schedule(settings)
  return masking.masked_loss(
    model,
    params,
    text_BxN,
    masking.draw_mask(keys_B, process.masked(u_B), model.config.num_slots),
    process.rate(u_B) / process.masked(u_B),
    noise_B=noise(settings, u_B),
    kind='score_entropy',
    **options,
  )

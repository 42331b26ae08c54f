"""MDLM: masked diffusion in continuous time (Sahoo et al. 2024, arXiv 2406.07524).

SUBS parametrisation (section 3.2): the mask is never predicted, and an unmasked token stays what it
is. The bound (eq. 11, of infinitely many steps) is then a weighted cross-entropy of masked tokens:

  integral over t in (0, 1) of  -alpha'(t) / (1 - alpha(t))  E[ sum over masked n of -log p(x_n) ]

The network does not read the time.
"""

from __future__ import annotations

import jax

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.diffusion import Draw, MaskedDiffusion

Array = jax.Array


class MDLM(MaskedDiffusion):
  """Reads `schedule`, log-linear or cosine."""

  def draw(self, u_B: Array, keys_B: Array, num_slots: int, settings: DiffusionConfig) -> Draw:
    """At time `u_B`, uniform in (0, 1]."""
    process = self.schedule(settings)
    is_masked_BxN = masking.draw_mask(keys_B, process.masked(u_B), num_slots)
    weights_B = process.rate(u_B) / process.masked(u_B)
    return Draw(is_masked_BxN, weights_B, self.noise(settings, u_B))

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

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives.mdlm import MDLM

Array = jax.Array


class SEDD(MDLM):
  """MDLM's masks and weights, of scores that nothing normalises."""

  # `weighted_nll` takes the network's output x itself; scores, which overflow near t = 0, are never
  # formed.
  kind = 'score_entropy'

  def noise(self, settings: DiffusionConfig, t_B: Array) -> Array:
    """sigma(t), the total noise."""
    return -jnp.log(self.schedule(settings).alpha(t_B))

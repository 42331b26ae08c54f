"""BD3-LM: masked diffusion of one block after another (Arriola et al. 2025, arXiv 2503.09573).

A text is B blocks of L' tokens (`block_length`): p(x) = prod_b p(x^b | x^<b) (section 3.1). Each
factor has MDLM's bound, so that (section 3.1, with the loss of masked diffusion)

  -log p(x)  <=  sum over b of  E_t  -alpha'(t) / (1 - alpha(t))  E[ sum over masked n of b of
                                -log p(x_n | x_t^b, x^<b) ],      alpha(t) = 1 - t

With L' = 1 it is the exact likelihood of an AR model, with L' = N MDLM's bound without its prior.
Training draws masked shares 1 - alpha from U[clip_low, clip_high] alone (section 5.2), where the
loss varies least; that is no bound. The released code searches the ends during training, here they
are fixed.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.objectives import masking
from armd_jax.objectives.diffusion import Draw, MaskedDiffusion

Array = jax.Array


class BD3LM(MaskedDiffusion):
  """Reads `block_length`, `clip_low` and `clip_high`."""

  reads_clean = True

  def schedule(self, settings: DiffusionConfig) -> masking.Schedule:
    """Within a block; it ends in masks alone, so that the bound has no prior."""
    return masking.Schedule('log_linear', epsilon=0.0)

  def least_time(self, settings: DiffusionConfig) -> float:
    """Times are places between the ends of the clipped shares."""
    return 0.0

  def of_the_bound(self, settings: DiffusionConfig) -> DiffusionConfig:
    """Unclipped."""
    return dataclasses.replace(settings, clip_low=0.0, clip_high=1.0)

  def draw(self, u_B: Array, keys_B: Array, num_slots: int, settings: DiffusionConfig) -> Draw:
    """A time for every block: u_B, and steps of 1 / B from it, modulo 1 (our choice).

    Each is uniform, and those of a sequence are spread evenly. Unclipped, masked tokens of a block
    are counted, as in RADD's any-order form, which equals the integral and varies less.
    """
    length = settings.block_length
    # A given first token is the first of its block, and no slot.
    given = -num_slots % length
    blocks = (num_slots + given) // length
    # 1 - u is in [0, 1), and so the times in (0, 1].
    u_BxS = 1 - (1 - u_B[:, None] + jnp.arange(blocks) / blocks) % 1
    size_S = jnp.full(blocks, length).at[0].add(-given)
    of_slots = lambda x_BxS: jnp.repeat(x_BxS, length, axis=1)[:, given:]
    if (settings.clip_low, settings.clip_high) == (0, 1):
      count_BxS = jnp.ceil(u_BxS * size_S)
      is_masked_BxN = masking.draw_in_blocks(keys_B, count_BxS, length, num_slots)
      return Draw(is_masked_BxN, of_slots(size_S / count_BxS))
    low = max(settings.clip_low, masking.EPSILON)
    share_BxN = of_slots(low + (settings.clip_high - low) * u_BxS)
    return Draw(masking.draw_mask(keys_B, share_BxN, num_slots), 1 / share_BxN)

"""BD3-LM: masked diffusion within blocks, which follow each other from left to right."""

from __future__ import annotations

from typing import Any

import numpy as np

from armd_jax.decode import blocks
from armd_jax.decode.diffusion import Denoised
from armd_jax.decode.requests import Decoder, Request
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.families import masked
from armd_jax.models.set_denoiser import SetDenoiser
from armd_jax.objectives.bd3lm import BD3LM

SHOWN = (
  'A text of {length:,} tokens grows by blocks; the tokens of a block, all masked at first, are '
  'revealed in K steps, anywhere in it.'
)


def generate(
  decoder: Decoder,
  request: Request,
  sampling: Sampling,
  *,
  streams: int = 1,
  steps: int = 0,
  sampler: str = '',
) -> tuple[list[str], Denoised]:
  """As many steps as reveal `streams` tokens each, or no more than `steps` in all blocks together,
  of each block as many; at least one.

  Raises:
    UserError: a gap with text after it that its block does not see.
  """
  config: Any = decoder.model.config
  length, shift = config.set_length, config.length - config.num_slots
  slots = np.arange(config.num_slots)
  is_real_BxN = slots < np.asarray(request.length_B)[:, None]
  given_BxN = np.asarray(request.given_BxN)
  block_N = (slots + shift) // length
  first_B = np.where(~given_BxN & is_real_BxN, block_N, block_N[-1] + 1).min(axis=1)
  last_B = np.where(given_BxN & is_real_BxN, block_N, -1).max(axis=1)
  if (last_B > first_B).any():
    raise UserError(
      f'a gap is followed by text in a later block, which a model of family {config.family!r} does '
      f'not see (its blocks are {length} tokens); generate from a prompt, or take another family'
    )
  of_block = steps * length // masked.num_free(request) if steps else -(-length // streams)
  is_ancestral = (sampler or SAMPLERS[0]) == 'ancestral'
  plan = blocks.Plan(max(1, of_block), is_ancestral, decoder.mesh)
  return decoder.denoise(request, sampling, plan, blocks.sample)


SAMPLERS = ('first_hitting', 'ancestral')
FAMILY = masked.family(
  BD3LM(), SAMPLERS, network=SetDenoiser, generate=generate, shown=SHOWN, infills=False
)

"""SetDLM: sets of tokens in an order that prefers the left, each cached as soon as it is there."""

from __future__ import annotations

from typing import Any

from armd_jax.decode import sets
from armd_jax.decode.diffusion import Denoised
from armd_jax.decode.requests import Decoder, Request
from armd_jax.decode.sampling import Sampling
from armd_jax.families import masked
from armd_jax.models.set_denoiser import OrderedSetDenoiser
from armd_jax.objectives.setdlm import SetDLM

SHOWN = (
  'A text of {length:,} tokens grows by sets of tokens near its left end, which a drawn order puts '
  'together; all tokens of a set appear in a step.'
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
  """Sets of `streams` tokens, or of as many as need no more than `steps` steps."""
  del sampler  # there is one
  config: Any = decoder.model.config
  width = -(-masked.num_free(request) // steps) if steps else streams
  plan = sets.Plan(width, config.diffusion, decoder.mesh)
  return decoder.denoise(request, sampling, plan, sets.sample)


FAMILY = masked.family(
  SetDLM(), ('first_hitting',), network=OrderedSetDenoiser, generate=generate, shown=SHOWN
)

"""What the families of masked diffusion share: the denoiser, and what a method gives it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax.decode.diffusion import Denoised
from armd_jax.decode.requests import Decoder, Request
from armd_jax.decode.sampling import Sampling
from armd_jax.families.family import Draws, Family
from armd_jax.models.denoiser import Denoiser
from armd_jax.objectives.armd import ORDER_KINDS
from armd_jax.objectives.diffusion import MaskedDiffusion

Array = jax.Array

SHOWN = (
  'A text of {length:,} tokens, all masked at first, is revealed in K steps, anywhere in it; after '
  'a step that reveals nothing, a network that does not read the noise need not run.'
)


def family(method: MaskedDiffusion, samplers: tuple[str, ...]) -> Family:
  """The entry of a method.

  Args:
    method: of `objectives`.
    samplers: of `decode.diffusion`, the default first.
  """
  return Family(
    network=Denoiser,
    loss=functools.partial(_loss, method),
    generate=functools.partial(_generate, method, default=samplers[0]),
    shown=SHOWN,
    bound=method.bound,
    samplers=samplers,
    method=method,
  )


def _loss(method, model, params, text_MxN, draws: Draws, **options) -> tuple[Array, Array]:
  total, _ = method.loss(
    model, params, text_MxN, draws.keys_M, draws.count, draws.index_M, **options
  )
  return total, jnp.zeros((2, len(ORDER_KINDS)))


def _generate(
  method: MaskedDiffusion,
  decoder: Decoder,
  request: Request,
  sampling: Sampling,
  *,
  default: str,
  streams: int = 1,
  steps: int = 0,
  sampler: str = '',
) -> tuple[list[str], Denoised]:
  """As many steps as reveal `streams` tokens each, unless their number is given."""
  is_free_BxN = ~request.given_BxN & (
    np.arange(request.given_BxN.shape[1]) < request.length_B[:, None]
  )
  steps = steps or -(-int(is_free_BxN.sum(axis=1).max()) // streams)
  return decoder.denoise(method, request, steps, sampler or default, sampling)

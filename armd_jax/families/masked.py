"""What the families of masked diffusion share: the denoiser, and what a method gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax.decode import diffusion
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


def family(
  method: MaskedDiffusion,
  samplers: tuple[str, ...],
  *,
  network: Callable[..., Any] = Denoiser,
  generate: Callable[..., Any] | None = None,
  shown: str = SHOWN,
  infills: bool = True,
) -> Family:
  """The entry of a method.

  Args:
    method: of `objectives`.
    samplers: the default first.
    network, shown, infills: see `Family`.
    generate: see `Family`; None: by `decode.diffusion`.
  """
  return Family(
    network=network,
    loss=functools.partial(_loss, method),
    generate=generate or functools.partial(_generate, method, default=samplers[0]),
    shown=shown,
    bound=method.bound,
    infills=infills,
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
  model: Any = decoder.model
  steps = steps or -(-num_free(request) // streams)
  plan = diffusion.plan_of(method, model, steps, sampler or default, decoder.mesh)
  return decoder.denoise(request, sampling, plan)


def num_free(request: Request) -> int:
  """Tokens that the longest text is missing, at least 1."""
  is_real_BxN = np.arange(request.given_BxN.shape[1]) < np.asarray(request.length_B)[:, None]
  return max(1, int((~np.asarray(request.given_BxN) & is_real_BxN).sum(axis=1).max()))

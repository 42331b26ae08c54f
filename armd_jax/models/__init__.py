"""Networks: ARMD and AR map tokens in generation order and a `GenerationOrder` to hidden rows, the
denoisers of the diffusion baselines partly masked tokens in text order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.denoiser import READS_NOISE, Denoiser
from armd_jax.order import left_to_right

ORDERED = {'armd': ARMD, 'ar': AR}  # families that predict along a generation order


def build(config: ModelConfig, vocab_size: int) -> ARMD | AR | Denoiser:
  """The network of `config.family`."""
  return ORDERED.get(config.family, Denoiser)(config, vocab_size)


def init(model: ARMD | AR | Denoiser, key: jax.Array) -> Any:
  """Random parameters of a network; runs under jit."""
  config = model.config
  tokens_1xN = jnp.zeros((1, config.num_slots), jnp.int32)
  if config.family in ORDERED:
    given = left_to_right(config.num_slots)
  else:
    given = jnp.zeros(1) if config.family in READS_NOISE else None
  return model.init(key, tokens_1xN, given)['params']

"""Networks. All of them map tokens in generation order and a `GenerationOrder` to hidden rows."""

from __future__ import annotations

from armd_jax.config import ModelConfig
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD

FAMILIES = {'armd': ARMD, 'ar': AR}


def build(config: ModelConfig, vocab_size: int) -> ARMD | AR:
  """The network of `config.family`."""
  return FAMILIES[config.family](config, vocab_size)

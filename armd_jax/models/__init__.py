"""Networks: ARMD and AR map tokens in generation order and a `GenerationOrder` to hidden rows, the
denoisers of the diffusion baselines partly masked tokens in text order."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.denoiser import Denoiser
from armd_jax.models.params import Params
from armd_jax.models.set_denoiser import OrderedSetDenoiser, SetDenoiser
from armd_jax.order import left_to_right

# By the orders of a family, or by its sets.
NETWORKS = {'any': ARMD, 'left_to_right': AR, 'none': Denoiser}
OF_SETS = {'blocks': SetDenoiser, 'ordered': OrderedSetDenoiser}


def build(config: ModelConfig, vocab_size: int) -> ARMD | AR | Denoiser:
  """The network of a family that has none of its own; see `families.build` for all of them."""
  network: Any = OF_SETS.get(config.sets, NETWORKS[config.orders])
  return network(config, vocab_size)


def init(model: ARMD | AR | Denoiser, key: jax.Array) -> Params:
  """Random parameters of a network; runs under jit."""
  num_slots = model.config.num_slots
  order = None if model.config.orders == 'none' else left_to_right(num_slots)
  return model.init(key, jnp.zeros((1, num_slots), jnp.int32), order)['params']

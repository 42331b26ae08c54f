"""The families of models: a file each, which ties a network to its objective, bound and samplers.

A new family is a file here and its line in `FAMILIES`, its name with the orders that it knows in
`config.FAMILIES`, and a test of its objective. No program names a family.
"""

from __future__ import annotations

from typing import Any

from armd_jax.config import ModelConfig
from armd_jax.families import ar, armd, bd3lm, d3pm, esolm, mdlm, radd, sedd, setdlm
from armd_jax.families.family import Family

FAMILIES = {
  'armd': armd.FAMILY,
  'ar': ar.FAMILY,
  'mdlm': mdlm.FAMILY,
  'd3pm': d3pm.FAMILY,
  'sedd': sedd.FAMILY,
  'radd': radd.FAMILY,
  'bd3lm': bd3lm.FAMILY,
  'setdlm': setdlm.FAMILY,
  'esolm': esolm.FAMILY,
}


def of(config: ModelConfig) -> Family:
  """The family of a model."""
  return FAMILIES[config.family]


def build(config: ModelConfig, vocab_size: int) -> Any:
  """The network of a model."""
  return of(config).network(config, vocab_size)

"""SEDD: score entropy, of a network that reads the noise."""

from __future__ import annotations

from armd_jax.families import masked
from armd_jax.objectives.sedd import SEDD

FAMILY = masked.family(SEDD(), samplers=('tweedie', 'euler'))

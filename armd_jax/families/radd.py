"""RADD: conditionals of clean tokens, without a time input."""

from __future__ import annotations

from armd_jax.families import masked
from armd_jax.objectives.radd import RADD

FAMILY = masked.family(RADD(), samplers=('tweedie', 'euler'))

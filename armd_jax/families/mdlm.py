"""MDLM: masked diffusion in continuous time."""

from __future__ import annotations

from armd_jax.families import masked
from armd_jax.objectives.mdlm import MDLM

FAMILY = masked.family(MDLM(), samplers=('ancestral',))

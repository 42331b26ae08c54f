"""D3PM: masked diffusion in T steps, which the network reads."""

from __future__ import annotations

from armd_jax.families import masked
from armd_jax.objectives.d3pm import D3PM

FAMILY = masked.family(D3PM(), samplers=('ancestral',))

"""ARMD: any generation order, trained and measured along them, decoded in parallel streams."""

from __future__ import annotations

from armd_jax.families.family import Family
from armd_jax.families.ordered import SHOWN, generate, loss
from armd_jax.models.armd import ARMD

FAMILY = Family(network=ARMD, loss=loss, generate=generate, shown=SHOWN)

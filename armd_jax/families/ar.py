"""AR: the auto-regressive transformer of the same size, left-to-right alone."""

from __future__ import annotations

from armd_jax.families.family import Family
from armd_jax.families.ordered import SHOWN, generate, loss
from armd_jax.models.ar import AR

FAMILY = Family(network=AR, loss=loss, generate=generate, shown=SHOWN, infills=False)

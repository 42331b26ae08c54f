"""What chips can do, as their makers publish it."""

from __future__ import annotations

from armd_jax.attention.device import HOPPER

# Peak bf16 FLOP/s of one jax device: a v4 or v5p chip, half a 7x chip, an SXM H100.
PEAK_FLOPS = {
  'v4': 275e12,
  'v5e': 197e12,
  'v5p': 459e12,
  'v6e': 918e12,
  '7x': 1155e12,
  HOPPER: 989e12,
}

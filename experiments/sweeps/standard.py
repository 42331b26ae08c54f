"""Sweeps for `python -m armd_jax.sweep`: functions that return the overrides of every run."""

from __future__ import annotations

from typing import Any


def learning_rate() -> list[dict[str, Any]]:
  """Three points around the recipe's, a factor of about 3 apart: the budget of every family."""
  return [{'optimizer.learning_rate': rate} for rate in (1e-4, 3e-4, 1e-3)]


def seeds() -> list[dict[str, Any]]:
  """Three repetitions."""
  return [{'seed': seed} for seed in range(3)]


def max_shuffled() -> list[dict[str, Any]]:
  """Most tokens shuffled, rho (paper section 5), the published 16 and 32 among them."""
  return [{'order.max_shuffled': count} for count in (0, 8, 16, 32, 64)]

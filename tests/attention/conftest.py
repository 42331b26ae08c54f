"""Kernels are compared with the reference with all of XLA's optimizations, roundings included."""

import pytest


@pytest.fixture(autouse=True)
def optimizations(optimized):
  """For every test here."""

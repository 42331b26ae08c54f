"""Kernels are compared with the reference as users compile it, roundings and time included."""

import pytest


@pytest.fixture(autouse=True)
def as_users_compile(optimized):
  """For every test here."""

"""Settings shared by the tests."""

import os

import pytest

# Before jax starts. Its Mosaic GPU interpreter runs each warpgroup of a kernel as an execution of
# its own on XLA's CPU thread pool: three of them wait for each other forever on fewer threads.
os.environ.setdefault('NPROC', '16')

# Most of the time of these tests is spent compiling tiny programs; what is slow to compile makes
# programs faster and nothing else. Tests that need the program of users ask for `optimized`.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

pytest_plugins = ['drills', 'on_device', 'on_mesh']


@pytest.fixture
def optimized():
  """Compiles as it is done for users."""
  import jax

  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, False)
  yield
  jax.config.update(name, before)

"""Settings shared by the tests."""

import os

# Before jax starts. Its Mosaic GPU interpreter runs each warpgroup of a kernel as an execution of
# its own on XLA's CPU thread pool: three of them wait for each other forever on fewer threads.
os.environ.setdefault('NPROC', '16')

pytest_plugins = ['drills', 'on_device', 'on_mesh']

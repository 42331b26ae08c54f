"""Settings and small models shared by the tests."""

import os

# Before jax starts: tests of sharding use virtual devices, and a library for a chip that is not
# there must not be asked for one.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

"""Settings shared by the tests.

Full matrices are marked `drill`: `pytest -m drill` runs them, the default run leaves them.
"""

import os

# Before jax starts: tests of sharding use virtual devices, and a library for a chip that is not
# there must not be asked for one.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def pytest_configure(config):
  config.addinivalue_line('markers', 'drill: full matrices, run by `make drills`')


def pytest_collection_modifyitems(config, items):
  if 'drill' in config.option.markexpr:
    return
  drills = [item for item in items if item.get_closest_marker('drill')]
  config.hook.pytest_deselected(items=drills)
  items[:] = [item for item in items if item not in drills]

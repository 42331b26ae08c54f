"""Settings of jax that this package does not leave to the process it runs in.

jax reads them from the environment, and any library may change them. Some decide what is drawn, so
that a run would continue as another one; others forbid what this code does, such as products of
masks and floats. What is not listed keeps the value it is given: the precision of products, the
search for NaNs, running without compilation, where compiled programs are kept.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import jax

SETTINGS = {
  # The same draws from the same seed, on any number of devices.
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_random_seed_offset': 0,
  'jax_high_dynamic_range_gumbel': False,
  # Arrays have the types that their makers count on: 32 bits where none is named.
  'jax_enable_x64': False,
  # Shapes broadcast, and masks and small integers meet floats, as numpy's do.
  'jax_numpy_rank_promotion': 'allow',
  'jax_numpy_dtype_promotion': 'standard',
  # Batches and seeds go to the devices, and results come back, where they are used.
  'jax_transfer_guard': 'allow',
  # Logits of padding and masked scores are infinite by design.
  'jax_debug_infs': False,
}


def settle() -> None:
  """Sets all of them for good, and prints which ones were otherwise: how a program starts."""
  for name, value in SETTINGS.items():
    found = getattr(jax.config, name)
    jax.config.update(name, value)
    if found not in (value, None):
      print(
        f'note: {name} is {found} in this environment; armd_jax computes with {value}',
        file=sys.stderr,
      )


@contextlib.contextmanager
def settled() -> Iterator[None]:
  """The settings inside it; also a decorator of what others call in processes of their own."""
  with contextlib.ExitStack() as stack:
    for name, value in SETTINGS.items():
      # What jax has no context for is set for all threads.
      scoped = getattr(jax, name.removeprefix('jax_'), None)
      if scoped is None:
        stack.callback(jax.config.update, name, getattr(jax.config, name))
        jax.config.update(name, value)
      else:
        stack.enter_context(scoped(value))
    yield

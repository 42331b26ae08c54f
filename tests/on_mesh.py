"""Tests that need several devices run in a process of their own, with 8 virtual ones of the CPU."""

import concurrent.futures
import multiprocessing
import os
import sys
from unittest import mock

import pytest

# (data, fsdp, tensor)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)]


@pytest.fixture(scope='session')
def eight_devices():
  """`eight_devices(function, *args)`: what a test module's function returns or raises there."""
  context = multiprocessing.get_context('spawn')
  variables = {
    'JAX_NUM_CPU_DEVICES': '8',
    'JAX_PLATFORMS': 'cpu',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # compiling is most of the time
  }
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:

    def run(function, *args):
      with mock.patch.dict(os.environ, variables):  # the process starts at the first call
        return pool.submit(_call, function.__module__, function.__name__, args).result()

    yield run


def _call(module, name, args):
  __import__(module)
  return getattr(sys.modules[module], name)(*args)


def mesh(sizes):
  """A mesh over the first devices."""
  import jax

  from armd_jax import config
  from armd_jax.parallel import sharding

  return sharding.make_mesh(
    config.MeshConfig(*sizes), jax.devices()[: sizes[0] * sizes[1] * sizes[2]]
  )

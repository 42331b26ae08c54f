"""`pytest --device`: kernels run on the accelerator that is here, not in their interpreter."""

import contextlib
import os

import pytest

_requested = False


def pytest_addoption(parser):
  parser.addoption('--device', action='store_true', help='run kernels on the H100 or TPU here')


def pytest_configure(config):
  global _requested
  _requested = config.option.device
  if not _requested:
    # Before jax starts: tests of sharding use virtual devices, and a library for a chip that is not
    # there must not be asked for one.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  elif _chip() is None:
    pytest.exit(
      'no H100 or known TPU answers jax here; on a machine with one, install jax[cuda12] or '
      'jax[tpu] into the environment that runs this',
      returncode=1,
    )


def _chip():
  """'tpu' or 'gpu' where the kernels for one can run, else None."""
  from armd_jax.attention import tpu_blocks
  from armd_jax.hardware import device

  here = device.current()
  return here.platform if here.chip in (*tpu_blocks.CHIPS, device.HOPPER) else None


@contextlib.contextmanager
def kernels(platform, interpreting):
  """Where the kernels for a platform run: inside `interpreting()`, or with --device right here."""
  if not _requested:
    with interpreting():
      yield
    return
  if _chip() != platform:
    pytest.skip(f'these kernels are for a {platform.upper()}, and this machine has another chip')
  yield

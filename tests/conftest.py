"""Settings shared by the tests."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import pytest

# Before jax starts. Its Mosaic GPU interpreter runs each warpgroup of a kernel as an execution of
# its own on XLA's CPU thread pool: three of them wait for each other forever on fewer threads.
os.environ.setdefault('NPROC', '16')

# Most of the time of these tests is spent compiling tiny programs; what is slow to compile makes
# programs faster and nothing else. Tests that need the optimizations of users ask for `optimized`;
# the flags, which XLA reads once in a process, make a training step compile in a third of the time
# where jax is 0.10. With JAX_DISABLE_MOST_OPTIMIZATIONS=0, all is compiled as users do it.
if os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1') == '1':
  flags = ['--xla_cpu_opt_preset=FAST_COMPILE', '--xla_cpu_parallel_codegen_split_count=1']
  # Later ones have no other emitters, and end a process that asks for them.
  if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags.append('--xla_cpu_use_fusion_emitters=false')
  os.environ['XLA_FLAGS'] = ' '.join([*flags, os.environ.get('XLA_FLAGS', '')]).strip()

pytest_plugins = ['bucket', 'drills', 'on_device', 'on_mesh']

COMPILED = 'ARMD_JAX_COMPILED'


def pytest_configure(config):
  # A shell that runs the tests in the background has them ignore Ctrl-C, which some of them send.
  if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  if not hasattr(config, 'workerinput'):
    os.environ[COMPILED] = tempfile.mkdtemp(prefix='armd_jax_compiled_')


def pytest_collection_finish():
  """Programs that tests start, many of them alike, find there what others have compiled.

  After collection, when this process has read its own settings: its tests compile for themselves.
  """
  os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ[COMPILED]
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'


def pytest_unconfigure(config):
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(os.environ.pop(COMPILED), ignore_errors=True)


MOST_MEMORY = 2 << 30  # bytes of a worker, of which there may be as many as processors


@pytest.fixture(scope='module', autouse=True)
def little_memory():
  """Forgets what was compiled, once it takes much memory: few modules share programs."""
  yield
  with contextlib.suppress(OSError, AttributeError):  # where there is no Linux
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    if 'jax' in sys.modules and pages * os.sysconf('SC_PAGE_SIZE') > MOST_MEMORY:
      sys.modules['jax'].clear_caches()
      gc.collect()
      ctypes.CDLL(None).malloc_trim(0)  # or freed memory would stay this process's


@pytest.fixture
def optimized():
  """Compiles as it is done for users."""
  import jax

  name = 'jax_disable_most_optimizations'
  before = jax.config.read(name)
  jax.config.update(name, False)
  yield
  jax.config.update(name, before)

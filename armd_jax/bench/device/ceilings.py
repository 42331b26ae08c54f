"""What the machine is and what it can do: versions, a large product, a large copy."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import jax
import jax.numpy as jnp

from armd_jax.bench.device import calls
from armd_jax.bench.device.rows import Rows
from armd_jax.hardware import machines

PACKAGES = (
  'jaxlib', 'jax-cuda13-plugin', 'jax-cuda12-plugin', 'flax', 'optax', 'orbax-checkpoint', 'numpy',
  'torch', 'transformers', 'triton', 'nvidia-cudnn-cu13', 'nvidia-cublas',
)  # fmt: skip
_NVIDIA_SMI = ('nvidia-smi', '--query-gpu=name,driver_version,memory.total,clocks.max.sm')


def versions() -> dict:
  """Of packages, driver and Python, beside `timing.machine`."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  try:
    told = subprocess.run([*_NVIDIA_SMI, '--format=csv,noheader'], text=True, capture_output=True)
    card = told.stdout.strip()
  except FileNotFoundError:
    card = None
  return machines.machine() | found | {'python': sys.version.split()[0], 'card': card}


def product(dry: bool) -> dict:
  """A square bfloat16 product: what cuBLAS reaches."""
  n = 256 if dry else 8192
  many = jax.random.normal(jax.random.key(0), (10, n, n), jnp.bfloat16)
  products, queries = calls.repeated(lambda x, y: x @ y), list(many)
  ms = calls.median_ms(lambda: products(queries, many[0]), len(many))
  return {'n': n, 'ms': ms, 'tflops': 2e-9 * n**3 / ms}


def copy(dry: bool) -> dict:
  """Bytes read and written by adding 1 to a large array."""
  x = jnp.ones((2**20 if dry else 2**29,), jnp.float32)
  add = jax.jit(lambda x: x + 1)
  ms = calls.median_ms(lambda: add(x), 1)
  return {'gib': x.nbytes / 2**30, 'ms': ms, 'gb_per_s': 2e-6 * x.nbytes / ms}


def main(rows: Rows, _: list[str]) -> int:
  rows.measure('versions', versions)
  rows.measure('product', lambda: product(rows.dry))
  rows.measure('copy', lambda: copy(rows.dry))
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

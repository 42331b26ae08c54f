"""Compiles the Hopper kernels ahead of time at every named shape; reads the figures of ptxas.

    python -m armd_jax.bench.attention.compile_hopper [--json=PATH] [--shapes=train]

Needs no GPU, but `jax-cuda13-plugin` and `jax-cuda13-pjrt` (or cuda12) of jax's version and `ptxas`
on the PATH. A kernel whose tiles exceed shared memory fails here. Results are kept in
`armd_jax.records`: a second run does only what is missing.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax import cli, records
from armd_jax.attention import hopper, hopper_blocks, shapes
from armd_jax.bench.attention import compile_tpu
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware.chips import H100_TARGET

PATH = pathlib.Path('docs/records/attention_hopper.json')
KERNELS = ('forward', 'dq', 'dkv')


def stamp() -> str:
  """A digest of what the results depend on."""
  without = (
    'armd_jax/cli.py', 'armd_jax/flags.py', 'armd_jax/records.py',
    'armd_jax/bench/attention/compile_tpu.py',
  )  # fmt: skip
  tuned = json.dumps(hopper_blocks.tuned(), sort_keys=True)
  return records.digest(('armd_jax/bench/attention/compile_hopper.py',), without, tuned)


def prepare() -> NamedSharding:
  """Makes an H100 to compile for; before the first use of jax.

  Raises:
    UserError: jax has no CUDA plugin here.
  """
  # Mosaic prints the PTX and the output of ptxas to the standard output of the process.
  os.environ.update(MOSAIC_GPU_DUMP_PTX='1', MOSAIC_GPU_DUMP_PTXAS='1')
  jax.config.update('jax_platforms', 'cpu')
  jax.devices()  # registers the plugins
  try:
    described = topologies.get_topology_desc(
      '', 'cuda', topology='1x1x1', target_config=H100_TARGET
    )
  except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
    version = jax.__version__
    raise UserError(
      f'jax cannot compile for CUDA here ({error}); '
      f'pip install jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} nvidia-cuda-nvcc'
    ) from error
  return NamedSharding(Mesh(np.array(described.devices), ('one',)), PartitionSpec())


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
  """Collects what native code prints to standard output and error."""
  text: list[str] = []
  kept = [os.dup(fd) for fd in (1, 2)]
  with tempfile.TemporaryFile('w+') as file:
    try:
      for fd in (1, 2):
        os.dup2(file.fileno(), fd)
      yield text
    finally:
      for fd, old in zip((1, 2), kept, strict=True):
        os.dup2(old, fd)
        os.close(old)
      file.seek(0)
      text.append(file.read())


def kernels(text: str) -> dict[str, dict]:
  """The figures of PTX and ptxas for each kernel, by its name.

  Examples:
    >>> kernels('''.version 9.0
    ... .entry prefix_attention_dq_mosaic_gpu_kernel(
    ... wgmma.mma_async.sync.aligned.m64n64k16 cp.async.bulk.tensor.4d ex2.approx
    ... ptxas info : Compiling entry function 'prefix_attention_dq_mosaic_gpu_kernel' for 'sm_90a'
    ...     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
    ... ptxas info : Used 168 registers, used 16 barriers''')
    {'dq': {'wgmma': 1, 'bulk_tensor_copies': 1, 'registers': 168, 'spill_stores': 4, \
'spill_loads': 12}}
  """
  found: dict[str, dict] = {}
  for part in re.split(r'(?=^\.version \d)', text, flags=re.MULTILINE)[1:]:
    name = re.search(r'\.entry\s+prefix_attention_(\w+?)_mosaic', part)
    if name:
      found[name[1]] = {
        'wgmma': part.count('wgmma.mma_async'),
        'bulk_tensor_copies': part.count('cp.async.bulk.tensor'),
      }
  said = r"entry function 'prefix_attention_(\w+?)_mosaic.*?\n.*?(\d+) bytes spill stores, "
  said += r'(\d+) bytes spill loads.*?Used (\d+) registers'
  for name, stores, loads, registers in re.findall(said, text, flags=re.DOTALL):
    found[name] |= {
      'registers': int(registers),
      'spill_stores': int(stores),
      'spill_loads': int(loads),
    }
  return found


def printed(function, *args) -> str:
  """Compiles a jitted function; returns what Mosaic and ptxas print."""
  lowered = function.lower(*args)
  with _captured() as text:
    lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})  # nothing can be timed here
  return text[0]


def measure(shape: shapes.Shape, streams: int, dtype: str) -> dict:
  """Compiles forward and backward of one call; returns `kernels` of it."""
  device = prepare()

  def arg(size, dtype=dtype):
    return jax.ShapeDtypeStruct(size, dtype, sharding=device)

  rows = arg((1, streams, shape.rows, shape.heads, shape.head_dim))
  keys = arg((1, shape.keys, shape.groups, shape.head_dim))
  lengths = arg((1, streams, shape.rows), jnp.int32)

  def forward_and_gradients(q, k, v, lengths, dout):
    out, pullback = jax.vjp(lambda q, k, v: hopper.prefix_attention(q, k, v, lengths), q, k, v)
    return out, *pullback(dout)

  return kernels(printed(jax.jit(forward_and_gradients), rows, keys, keys, lengths, rows))


def run(path: pathlib.Path, names: list[str]) -> None:
  """Measures every program that `path` does not hold yet for this code."""
  kept, today = records.Records(path), stamp()
  programs = {
    f'{dtype} {name} x{streams}': (shapes.NAMED[name], streams, dtype)
    for dtype in hopper.DTYPES
    for name, streams in itertools.product(compile_tpu.distinct(names), (1, 2))
  }
  prepare()  # raises at once if something is missing
  # A process prints what it compiles once only, and many programs share a kernel.
  fresh = concurrent.futures.ProcessPoolExecutor(
    1, multiprocessing.get_context('spawn'), max_tasks_per_child=1
  )
  for key in kept.missing(dict.fromkeys(programs, today)):
    found = fresh.submit(measure, *programs[key]).result()
    if set(found) != set(KERNELS):
      raise RuntimeError(f'{key}: ptxas told of {sorted(found)} only')
    kept.add(key, today, found | {'jax': jax.__version__})
    print(key, found, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str = flag('Where results are kept.', str(PATH))
  shapes: str = flag('Only shapes whose name contains this.', '')


def main(options: Options) -> None:
  run(pathlib.Path(options.json), [name for name in shapes.NAMED if options.shapes in name])


if __name__ == '__main__':
  cli.run(main, Options)

"""Reads the schedules of other TPU attention kernels, for comparison with ours at causal masks.

    python -m armd_jax.bench.attention.peers [--json=PATH] [--chips=v5e]
    python -m armd_jax.bench.attention.peers --chips=H100 --json=PATH

jax's splash attention, and tokamax's where it is installed (`pip install tokamax`; without it, its
lines are left out). Needs `libtpu` and no TPU. One head's causal attention, bfloat16: bundles of
the tiles that each kernel runs, masked on the diagonal, plus what it does per step and per row of
tiles. Kept is the best of several blocks per kernel; a second run with the same jax does what is
missing. Neither shares keys between streams: two streams are two calls, and the useful utilisation
stays what it is.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from armd_jax import cli, records
from armd_jax.attention import shapes
from armd_jax.bench.attention import compile_hopper, compile_tpu, schedule
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import cores, device

PATH = 'docs/records/attention_peers.json'
HEADS = {
  '12x64': (12, 12, 64),
  '16x128': (16, 16, 128),
  '8x256': (8, 8, 256),
  '32/8x128': (32, 8, 128),
}
LENGTHS = (1024, 4096, 32768)
# Query tile, key tile, keys computed at a time.
BLOCKS = ((512, 512, 512), (1024, 1024, 512), (1024, 1024, 1024), (512, 1024, 512))


def _splash(length, heads, grouped, query, key, compute):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  sizes = kernel.BlockSizes(
    **dict(block_q=query, block_kv=key, block_kv_compute=compute),
    **dict(block_q_dkv=query, block_kv_dkv=key, block_kv_dkv_compute=compute),
    use_fused_bwd_kernel=True,
  )
  mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * heads)
  make = kernel.make_splash_mqa if grouped else kernel.make_splash_mha
  return make(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)


def _tokamax(length, grouped, query, key, compute, skip):
  from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as kernel
  from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

  config = kernel.SplashConfig(
    **dict(block_q=query, block_kv=key, block_kv_compute=compute),
    **dict(block_q_dkv=query, block_kv_dkv=key, block_kv_dkv_compute=compute),
    **dict(qk_diag_skip=skip, sv_diag_skip=skip),
  )
  mask = masks.CausalMask((length, length))
  make = kernel.make_splash_mqa if grouped else kernel.make_splash_mha
  return make(mask, config=config, q_seq_shards=1)


PEERS = {
  'splash': _splash,
  'tokamax': lambda length, _, *blocks: _tokamax(length, *blocks, False),
  'tokamax, diagonal skipping': lambda length, _, *blocks: _tokamax(length, *blocks, True),
}


def _cudnn(q, k, v):
  out = jax.nn.dot_product_attention(q[:, 0], k, v, is_causal=True, implementation='cudnn')
  return out[:, None]


def _jax_mosaic_gpu(q, k, v):
  from jax.experimental.pallas.ops.gpu import attention_mgpu

  config = attention_mgpu.TuningConfig(64, 128, 2, causal=True)
  return attention_mgpu.attention(q[:, 0], k, v, config)[:, None]


def _tokamax_gpu(q, k, v):
  import tokamax

  return tokamax.dot_product_attention(q[:, 0], k, v, is_causal=True)[:, None]


def callables(platform: str, shape: shapes.Shape) -> dict[str, Callable]:
  """`attend(q_Bx1xNxHxD, k_BxNxGxD, v_BxNxGxD)` of others on a device, left to right, by name."""
  if platform == 'gpu':
    found = {'cudnn': _cudnn, 'jax mosaic gpu': _jax_mosaic_gpu}
    return found | ({'tokamax': _tokamax_gpu} if importlib.util.find_spec('tokamax') else {})
  if shape.heads != shape.groups:  # splash's multi-query variant is another kernel
    return {}
  names = [name for name in PEERS if name == 'splash' or importlib.util.find_spec('tokamax')]

  def attend(q, k, v, peer):
    kernel = PEERS[peer](shape.rows, shape.heads, False, 1024, 1024, 512)
    heads_first = (x.swapaxes(1, 2) for x in (q[:, 0] * shape.head_dim**-0.5, k, v))
    return jax.vmap(kernel)(*heads_first).swapaxes(1, 2)[:, None]

  return {name: functools.partial(attend, peer=name) for name in names}


def cycles(regions, peer: str, length: int, query: int, key: int, backward: bool) -> int:
  """Cycles of one head: tiles, steps and rows of tiles, each times its bundles."""
  body = max((r for r in regions if r.kind == 'loop' and r.matrix), key=lambda r: r.bundles)
  inside = schedule.directly_inside(regions, body)
  while sum(r.matrix > 0 for r in inside) == 1:  # a region that merely guards the whole step
    guard = next(r for r in inside if r.matrix)
    deeper = schedule.directly_inside(regions, guard)
    if not any(r.matrix for r in deeper):
      break
    inside = [r for r in inside if r is not guard] + deeper
  compute = [r for r in inside if r.matrix] or [body]
  rest = sum(r.bundles for r in inside if not r.matrix)
  every = body.bundles - rest - sum(r.bundles for r in compute)
  # Of two variants the masked one costs more, unless it skips what the diagonal hides.
  plain, masked = sorted(r.bundles for r in (compute[0], compute[-1]))
  if 'skipping' in peer:
    plain, masked = masked, plain
  rows = range(length // query)
  run = sum(-(-(row + 1) * query // key) for row in rows)
  diagonal = sum(-(-(row + 1) * query // key) - row * query // key for row in rows)
  steps = run if peer.startswith('tokamax') else len(rows) * (length // key)
  edges = length // (key if backward else query)
  return diagonal * masked + (run - diagonal) * plain + edges * rest + steps * max(every, 0)


def measure(folder, chip, peer, length, name, blocks) -> dict[str, float]:
  """Useful utilisation of both passes; of a key head and its query heads, where those are several.

  Other key heads are more steps of the same grid.
  """
  heads, groups, head_dim = HEADS[name]
  grouped = heads > groups
  heads = heads // groups if grouped else heads
  attend = PEERS[peer](length, heads, grouped, *blocks)
  rows, keys = (
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=compile_tpu.sharding(chip))
    for shape in ((heads, length, head_dim), (heads, length, head_dim)[grouped:])
  )
  shutil.rmtree(folder, ignore_errors=True)
  os.makedirs(folder)
  loss = lambda q, k, v: attend(q, k, v).astype(jnp.float32).sum()
  jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(rows, keys, keys).compile()
  useful = {}
  for backward, kernel in enumerate(('fwd', 'dkv')):
    regions = schedule.read(folder, f'splash_{"mqa" if grouped else "mha"}_{kernel}')
    total = cycles(regions, peer, length, *blocks[:2], bool(backward))
    ideal = (5 if backward else 2) * head_dim * length * (length + 1) / 2 / cores.PEAK[chip]
    useful['backward' if backward else 'forward'] = round(ideal / total, 3)
  return useful


# ---- Hopper ------------------------------------------------------------------------------------


def _jax_hopper(query, key):
  from jax.experimental.pallas.ops.gpu import attention_mgpu

  names = ('block_q_dkv', 'block_kv_dkv', 'block_q_dq', 'block_kv_dq')
  backward = dict(zip(names, (query, key) * 2, strict=True))
  config = attention_mgpu.TuningConfig(query, key, 2, **backward)
  return lambda q, k, v: attention_mgpu.attention(q, k, v, config)


def _tokamax_hopper(query, key):
  from tokamax._src import gpu_utils
  from tokamax._src.ops.attention import pallas_mosaic_gpu, pallas_mosaic_gpu_vjp
  from tokamax._src.ops.attention import pallas_mosaic_gpu_kernel_sm90 as forward
  from tokamax._src.ops.attention import pallas_mosaic_gpu_vjp_kernel_sm90 as backward

  # It asks the device, and there is none.
  for name in ('is_sm80', 'is_sm90', 'is_sm100', 'has_mosaic_gpu_support'):
    setattr(
      gpu_utils, name, lambda device=None, name=name: name in ('is_sm90', 'has_mosaic_gpu_support')
    )
  config = forward.Config(block_q=query, block_kv=key, num_stages=2, persistent=False)
  names = ('block_q_dkv', 'block_kv_dkv', 'block_q_dq', 'block_kv_dq')
  config_vjp = backward.Config(**dict(zip(names, (query, key) * 2, strict=True)), num_stages=2)
  vjp = pallas_mosaic_gpu_vjp.PallasMosaicGpuFlashAttentionVjp(config=config_vjp)
  attend = pallas_mosaic_gpu.PallasMosaicGpuFlashAttention(config=config, vjp=vjp)
  return lambda q, k, v: attend(q, k, v, is_causal=True)


HOPPER_PEERS = {'jax': (_jax_hopper, jnp.float16), 'tokamax': (_tokamax_hopper, jnp.bfloat16)}


def spills(length: int = 4096) -> dict[str, list[int]]:
  """Bytes of spill stores of each kernel of forward and backward, by peer, heads and blocks."""
  sharding = compile_hopper.prepare()
  found = {}
  for (peer, (make, dtype)), (name, (heads, groups, head_dim)), blocks in itertools.product(
    HOPPER_PEERS.items(), HEADS.items(), ((64, 64), (64, 128))
  ):
    if heads > groups:
      continue
    x = jax.ShapeDtypeStruct((1, length, heads, head_dim), dtype, sharding=sharding)
    key = f'{peer} {name} {blocks[0]}x{blocks[1]}'
    try:
      attend = make(*blocks)
      loss = lambda q, k, v, attend=attend: attend(q, k, v).astype(jnp.float32).sum()
      text = compile_hopper.printed(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), x, x, x)
    except (ImportError, NotImplementedError, ValueError) as error:  # cannot do that
      print(f'{key}: {error}', flush=True)
      continue
    found[key] = [int(stores) for stores in re.findall(r'stack frame, (\d+) bytes spill', text)]
    print(key, found[key], flush=True)
  return found


def stamp() -> str:
  """What the results depend on: other projects' kernels, which come with a version of jax."""
  return f'jax {jax.__version__}'


def run(
  path: pathlib.Path, chips: Sequence[str], measured: Callable[..., dict[str, float]]
) -> None:
  """Adds to the results at `path` the best peer of every shape that this jax has not compiled yet.

  Args:
    path: written after each shape.
    chips: chips to compile for.
    measured: `measure`, but for its folder.
  """
  kept, today = records.Records(path), stamp()
  wanted = {
    f'{chip} train_{length}_{name}': (chip, length, name)
    for length, name, chip in itertools.product(LENGTHS, HEADS, chips)
  }
  for shape in kept.missing(dict.fromkeys(wanted, today)):
    (chip, length, name), best = wanted[shape], {}  # type: ignore[var-annotated]
    for peer, blocks in itertools.product(PEERS, BLOCKS):
      tried = [peer, 'x'.join(map(str, blocks))]
      try:
        useful = measured(chip, peer, length, name, blocks)
      except UserError:  # of what is needed to measure any; it is a ValueError, too
        raise
      # Not installed, blocks it does not take, or more than the chip holds.
      except (ImportError, NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
        print(f'{shape} {tried}: {error}'[:300], flush=True)
        continue
      for kind, value in useful.items():
        best[kind] = max(best.get(kind, [0]), [value, *tried])
      print(shape, tried, useful, flush=True)
    kept.add(shape, today, best)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  json: str = flag('Where the best are kept.', PATH)
  chips: tuple[str, ...] = flag('Chips to compile for.', ('v5e', 'v6e'))


def main(options: Options) -> None:
  if options.chips == (device.HOPPER,):
    kept = records.Records(options.json)
    for key, stores in spills().items():
      kept.add(key, stamp(), {'spill_stores': stores})
    return
  folder = tempfile.mkdtemp(prefix='attention_peers_')
  compile_tpu.prepare(folder)
  try:
    run(pathlib.Path(options.json), options.chips, functools.partial(measure, folder))
  finally:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
  cli.run(main, Options)

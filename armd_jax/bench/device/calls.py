"""What the stages of attention share: arrays, repeated calls, and the time that one takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import attention
from armd_jax.attention import shapes
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.cases import Case
from armd_jax.errors import UserError
from armd_jax.hardware import device
from armd_jax.hardware.chips import peak_flops

Array = jax.Array
Size = tuple[int, int, int, int, int]  # rows, keys, query heads, key heads, head dim

DRY_ROWS, DRY_KEYS = 48, 64


def begin() -> tuple[rows_lib.Rows, list[str]]:
  """The rows of this process, which names the device that jax has, and its own arguments.

  Raises:
    UserError: there is neither a GPU nor a CPU.
  """
  job, rest = rows_lib.parse()
  platform = jax.default_backend()
  if platform not in ('gpu', 'cpu'):
    raise UserError(f'the stages measure a GPU and this is a {platform}; use `make test-device`')
  return rows_lib.Rows(job, jax.devices()[0].device_kind, platform == 'cpu'), rest


def ours(lengths_BxRxN: Array) -> Callable[[Array, Array, Array], Array]:
  """`attend(q, k, v)` by the kernels; by the reference where there is no GPU.

  On a GPU that has no kernels it raises, instead of having its reference timed under their name.
  """
  backend = 'pallas_hopper' if device.current().platform == 'gpu' else 'reference'
  return lambda q, k, v: attention.prefix_attention(q, k, v, lengths_BxRxN, backend=backend)


def plain(lengths_BxRxN: Array) -> Callable[[Array, Array, Array], Array]:
  """`attend(q, k, v)` by the reference."""
  return lambda q, k, v: attention.prefix_attention(q, k, v, lengths_BxRxN, backend='reference')


def peak() -> float | None:
  """FLOP/s of the device, None where unknown."""
  return peak_flops(device.current().chip)


# ---- arrays ------------------------------------------------------------------------------------


def size_of(case: Case, dry: bool) -> tuple[int, Size]:
  """Batch and size of a case; a dry run has tiny ones with the same grouping of heads."""
  if case.size is None:
    shape = shapes.NAMED[case.shape]
    size = shape.rows, shape.keys, shape.heads, shape.groups, shape.head_dim
  else:
    size = case.size
  if not dry:
    return case.batch, size
  rows, keys, heads, groups, dim = size
  rows, keys = min(rows, DRY_ROWS), min(keys, DRY_ROWS if rows == keys else DRY_KEYS)
  return 1, (rows, keys, 2, 1 if heads > groups else 2, dim)


def _order(streams, rows, keys, batch):
  """Left to right, at the end of the cache if there is one; query rows stop before their slot."""
  end = np.arange(keys - rows, keys) + 1
  return np.stack([np.maximum(end - stream, 0) for stream in range(streams)])[None]


def _random(streams, rows, keys, batch):
  return np.random.default_rng(0).integers(0, keys + 1, (batch, streams, rows))


def _holes(streams, rows, keys, batch):
  """Tiles that see nothing between tiles that see everything."""
  rows_N = np.where(np.arange(rows) // 64 % 2 == 0, keys, 0)
  return np.broadcast_to(rows_N, (1, streams, rows))


LENGTHS = {
  'order': _order,
  'nothing': lambda streams, rows, keys, batch: np.zeros((1, streams, rows)),
  'everything': lambda streams, rows, keys, batch: np.full((1, streams, rows), keys),
  'random': _random,
  'sorted': lambda *size: np.sort(_random(*size), axis=-1),
  'holes': _holes,
}


def lengths(case: Case, batch: int, size: Size) -> np.ndarray:
  """int32 `[batch or 1, R, N]`."""
  rows, keys = size[:2]
  made = LENGTHS[case.lengths](case.streams, rows, keys, batch)
  return np.ascontiguousarray(made, np.int32)


def arrays(case: Case, batch: int, size: Size) -> tuple[Array, Array, Array, Array]:
  """q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD and a cotangent like q, drawn on the device."""
  rows, keys, heads, groups, dim = size

  @jax.jit
  def draw():
    for_q, for_k, for_v, for_dout = jax.random.split(jax.random.key(0), 4)
    large, small = (batch, case.streams, rows, heads, dim), (batch, keys, groups, dim)
    q = case.magnitude * jax.random.normal(for_q, large)
    k, v = jax.random.normal(for_k, small), jax.random.normal(for_v, small)
    dout = dim**-0.5 * jax.random.normal(for_dout, large)
    return tuple(x.astype(case.dtype) for x in (q, k, v, dout))

  return draw()


# ---- calls -------------------------------------------------------------------------------------


def with_gradients(attend: Callable) -> Callable:
  """`both(q, k, v, dout)`: the result and the gradients of q, k and v."""

  def both(q, k, v, dout):
    out, pullback = jax.vjp(attend, q, k, v)
    return out, *pullback(dout.astype(out.dtype))

  return both


def forward_only(attend: Callable) -> Callable:
  """`(attend(q, k, v),)` with the arguments of `with_gradients`."""
  return lambda q, k, v, dout: (attend(q, k, v),)


def repeated(call: Callable) -> Callable:
  """`run(queries, *others)`: a call for each of the queries, one after the other, in one program.

  Every call has queries of its own, so that none is the same as another and none finds its queries
  in a cache. What they give is kept, so that none is cut. Nothing but the calls is timed: a chain
  in which each waits for a number of the one before takes 25 us more a call.
  """
  call = jax.jit(call)  # traced once
  return jax.jit(lambda queries, *rest: [call(q, *rest) for q in queries])


def median_ms(run: Callable[[], object], count: int, repeats: int = 7) -> float:
  """Milliseconds of one of the `count` calls that `run` makes: the median over repeats."""
  jax.block_until_ready(run())
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    seconds.append(time.perf_counter() - start)
  return 1e3 * statistics.median(seconds) / count


def error(found: Array, exact: Array, floor: float = 1e-20) -> float:
  """Of an array as a share of the exact one's norm, or of `floor` where that is larger."""
  off = jnp.linalg.norm((found.astype(jnp.float32) - exact.astype(jnp.float32)).ravel())
  return float(off) / max(float(jnp.linalg.norm(exact.astype(jnp.float32).ravel())), floor)

"""Prefix attention on H100: Pallas (Mosaic GPU) kernels, forward and backward.

Arrays keep their layout: TMA cuts tiles out of `[B R, N, H, D]`, fills what is beyond the last
row or key with zeros and drops what is written there. A block computes 128 slots with all their
streams, so that the key and value tiles it loads serve both. See docs/attention.md for the
derivation, and hopper_kernels.py for what the warpgroups do.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from armd_jax.attention import (
  checks,
  hopper_blocks,
  hopper_gradients,
  hopper_kernels,
  hopper_parts,
  ptxas,
  tiles,
)
from armd_jax.hardware import cores, device

Array = jax.Array

HEAD_DIMS = (64, 128, 256)
DTYPES = ('bfloat16', 'float16')
TILE_ROWS = hopper_blocks.TILE_ROWS
# Tiles are stored in shared memory in strips of 8 rows, and TMA cuts arrays into such strips only.
TMA_ROWS = 8
# Key tiles that a split must have, for its queries to be worth loading, and a call, for a launch
# that adds the splits up: walking over fewer takes less time than that launch.
MIN_SPLIT_TILES = 4
MIN_SPLIT_CALL_TILES = 16


class Reach(NamedTuple):
  """What a kernel needs of the lengths of a call.

  Attributes:
    lengths: int32 `[B or 1, R, T 128]`, in the layout of the queries, padded to whole tiles.
    most, least: int32 `[B or 1, T]`, longest and shortest length of each tile of 128 slots.
  """

  lengths: Array
  most: Array
  least: Array


def _assembler() -> ptxas.Ptxas | None:
  """What assembles the kernels here; None without a GPU."""
  return ptxas.mosaic() if jax.default_backend() == 'gpu' else None


def unsupported(q: Array, k: Array, v: Array) -> str | None:
  """Why these arrays cannot go through the kernels, or None."""
  assembler = _assembler()
  if assembler and assembler.refusal:
    return assembler.refusal
  if q.dtype == jnp.float32:
    return "dtype float32 would be rounded to TF32 by the chip's matrix unit"
  return checks.unsupported(q, k, v, HEAD_DIMS, DTYPES)


def prefix_attention(
  q_BxRxNxHxD: Array,
  k_BxKxGxD: Array,
  v_BxKxGxD: Array,
  lengths_BxRxN: Array,
  *,
  blocks: hopper_blocks.Blocks | None = None,
) -> Array:
  """See `armd_jax.attention.prefix_attention`.

  Args:
    q_BxRxNxHxD: queries, bfloat16 or float16.
    k_BxKxGxD: keys.
    v_BxKxGxD: values.
    lengths_BxRxN: int32, `[B or 1, R, N]`.
    blocks: tile sizes; None takes those of the shape.
  Returns:
    out_BxRxNxHxD.
  """
  _, num_keys, groups, _ = k_BxKxGxD.shape
  lengths = jnp.clip(lengths_BxRxN, 0, num_keys).astype(jnp.int32)
  _, streams, num_rows, heads, _ = q_BxRxNxHxD.shape
  sizes = _sizes(streams, heads // groups, num_rows)
  lengths = einops.repeat(lengths, 'B (R r) N -> B R (r h N)', **sizes)
  # A padded row sees what the last real one does: lengths stay non-decreasing, tiles as active.
  lengths = _pad(lengths, 2, TMA_ROWS, 'edge')
  attend = lambda chosen, q, k, v: _attend(blocks or chosen, q, k, v, lengths)
  return _fold(attend, q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD)


def reach(length_B: Array, q_shape: Sequence[int], groups: int) -> Reach:
  """What `attend` takes in place of lengths where all rows of a sequence see as many keys.

  Args:
    length_B: int32 `[B or 1]`, at most the keys that there are.
    q_shape: of `q_BxRxNxHxD`.
    groups: G.
  """
  _, streams, num_rows, heads, _ = q_shape
  sizes = _sizes(streams, heads // groups, num_rows)
  tiles_of = -(-num_rows * sizes['r'] * sizes['h'] // TILE_ROWS)
  most = jnp.broadcast_to(length_B[:, None], (len(length_B), tiles_of))
  shape = len(length_B), streams // sizes['r'], tiles_of * TILE_ROWS
  return Reach(jnp.broadcast_to(length_B[:, None, None], shape), most, most)


def attend(q_BxRxNxHxD: Array, k_BxKxGxD: Array, v_BxKxGxD: Array, reach: Reach) -> Array:
  """`prefix_attention` without gradients, for the layers of a decoding step, which share what
  follows from the lengths."""
  attend = lambda blocks, q, k, v: _forward(blocks, q, k, v, reach, residuals=False)[0]
  return _fold(attend, q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD)


def _sizes(streams: int, copies: int, num_rows: int) -> dict[str, int]:
  streams_folded, heads_folded = hopper_blocks.folded(streams, copies, num_rows)
  return {'r': streams_folded, 'h': heads_folded}


def _fold(attend, q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD):
  """`attend(blocks, q, k, v)` with streams and heads as rows where they are few, all padded as TMA
  cuts them."""
  ptxas.warn_once(_assembler())
  _, streams, num_rows, heads, head_dim = q_BxRxNxHxD.shape
  sizes = _sizes(streams, heads // k_BxKxGxD.shape[2], num_rows)
  q = einops.rearrange(q_BxRxNxHxD, 'B (R r) N (G h) D -> B R (r h N) G D', **sizes)
  k, v = (_pad(x, 1, TMA_ROWS) for x in (k_BxKxGxD, v_BxKxGxD))
  blocks = hopper_blocks.choose(hopper_blocks.streams_together(q.shape[1], head_dim), head_dim)
  out = attend(blocks, _pad(q, 2, TMA_ROWS), k, v)
  out = out[:, :, : q.shape[2]]
  return einops.rearrange(out, 'B R (r h N) G D -> B (R r) N (G h) D', **sizes)


def _reach(lengths) -> Reach:
  padded = _pad(lengths, 2, TILE_ROWS, 'edge')
  return Reach(padded, tiles.longest(padded, TILE_ROWS), tiles.shortest(padded, TILE_ROWS))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks: hopper_blocks.Blocks, q, k, v, lengths):
  return _forward(blocks, q, k, v, _reach(lengths), residuals=False)[0]


def _attend_forward(blocks, q, k, v, lengths):
  out, *rest = _forward(blocks, q, k, v, _reach(lengths), residuals=True)
  # The names let a remat policy keep all three, so that backward runs no second forward pass.
  out = checkpoint_name(out, 'prefix_attention_out')
  rest = checkpoint_name(rest, 'prefix_attention_stats')
  return out, (q, k, v, lengths, out, *rest)


def _attend_backward(blocks, residuals, dout):
  return *_backward(blocks, *residuals, dout), None


_attend.defvjp(_attend_forward, _attend_backward)


# ---- launch ------------------------------------------------------------------------------------


def _shared(shape, dtype):
  """A tile that TMA writes and wgmma reads, in the layout that both want."""
  return plgpu.SMEM(
    shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
  )


def _ready(arrivals, count):
  return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def _launch(body, *, name, inputs, outputs, shared, barriers, grid: dict[str, int]):
  """Runs `body(index, inputs, outputs, shared, barriers)` on blocks of three warpgroups.

  The grid is given slowest axis first. It is launched as one axis: others may not exceed 65535.
  """
  cuts = len(inputs), len(inputs) + len(outputs)

  def run(*refs):
    block, index = lax.axis_index('block'), {}
    for axis, size in reversed(grid.items()):
      block, index[axis] = lax.div(block, jnp.int32(size)), lax.rem(block, jnp.int32(size))
    pl.run_scoped(
      lambda *scratch: body(
        index, refs[: cuts[0]], refs[cuts[0] :], scratch[: len(shared)], scratch[len(shared) :]
      ),
      *shared,
      *barriers,
      collective_axes='warpgroup',
    )

  run.__name__ = name  # what profilers and dumps call the kernel
  results = plgpu.kernel(
    run,
    out_type=outputs,
    grid=(math.prod(grid.values()),),
    grid_names=('block',),
    num_threads=hopper_blocks.WARPGROUPS + 1,
    thread_name='warpgroup',
    compiler_params=plgpu.CompilerParams(approx_math=True),
  )(*inputs)
  # Under shard_map, results vary over the same mesh axes as the inputs.
  axes = tuple(jax.typeof(inputs[-1]).manual_axis_type.varying)
  return [lax.pcast(x, axes, to='varying') if axes else x for x in results]


def _call(blocks, q, k, lengths) -> hopper_parts.Call:
  _, streams, _, heads, head_dim = q.shape
  return hopper_parts.Call(
    head_dim=head_dim,
    copies=heads // k.shape[2],
    streams=streams,
    together=hopper_blocks.streams_together(streams, head_dim),
    shares_lengths=lengths.shape[0] == 1,
    blocks=blocks,
    interpreted=device.current().interpreted,
  )


def _grid(call, heads: int, num_tiles: int, batch: int) -> dict[str, int]:
  """Slowest first: blocks that run at the same time share keys and values in the L2 cache."""
  streams = call.streams // call.together
  return {'batch': batch, 'head': heads, 'tile': num_tiles, 'stream': streams}


def _pad(x: Array, axis: int, multiple: int, mode: str = 'constant') -> Array:
  missing = -x.shape[axis] % multiple
  if not missing:
    return x
  return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], mode)


def _merge(x: Array) -> Array:
  """Batch and streams as one axis: TMA has at most five."""
  return x.reshape(-1, *x.shape[2:])


# ---- forward -----------------------------------------------------------------------------------


def _forward(blocks, q, k, v, reach: Reach, residuals: bool):
  """Returns out_BxRxNxHxD and, with residuals, what rounding took from it and the statistics of
  the rows, top and log_total_BRxHxT128; see `hopper_kernels.forward`."""
  call = _call(blocks, q, k, reach.lengths)
  batch, streams, _, heads, head_dim = q.shape
  keys, (stages, *_) = call.blocks.forward_keys, call.blocks.stages
  num_tiles = reach.most.shape[1]
  # Decoding has few rows and many keys: the keys are split over the chip, and the parts added up.
  key_tiles = -(-k.shape[1] // keys)
  grid_size = heads * num_tiles * batch * (streams // call.together)
  splits = max(1, min(cores.STREAMING_MULTIPROCESSORS // grid_size, key_tiles // MIN_SPLIT_TILES))
  splits = splits if key_tiles >= MIN_SPLIT_CALL_TILES else 1
  split_tiles = -(-key_tiles // splits)
  outputs = [jax.ShapeDtypeStruct((splits, batch * streams, *q.shape[2:]), q.dtype)]
  rows = (hopper_blocks.WARPGROUPS, call.together, hopper_blocks.WARPGROUP_ROWS)
  shared = [
    _shared((*rows, head_dim), q.dtype),
    *(_shared((stages, keys, head_dim), q.dtype) for _ in range(2)),
  ]
  if residuals or splits > 1:
    statistic = (splits, batch * streams, heads, num_tiles * TILE_ROWS)
    outputs += [outputs[0], *[jax.ShapeDtypeStruct(statistic, jnp.float32)] * 2]
    shared.append(plgpu.SMEM((2, *rows), jnp.float32))
  out, *rest = _launch(
    functools.partial(hopper_kernels.forward, call=call, split_tiles=split_tiles),
    name='prefix_attention_forward',
    inputs=[reach.most, reach.least, _merge(reach.lengths), _merge(q), k, v],
    outputs=outputs,
    shared=shared,
    barriers=[
      _ready(call.together, hopper_blocks.WARPGROUPS),
      *(_ready(1, stages) for _ in range(2)),
      *(_ready(hopper_blocks.WARPGROUPS, stages) for _ in range(2)),
      plgpu.Barrier(num_arrivals=hopper_blocks.WARPGROUPS),
    ],
    grid={'split': splits} | _grid(call, heads, num_tiles, batch),
  )
  if splits > 1:
    out, *rest = _add_splits(call.scale * hopper_parts.LOG2_E, out, *rest)
  else:
    out, rest = out[0], [x[0] for x in rest]
  return out.reshape(q.shape), *rest


def _add_splits(scale, out, low, top, log_total):
  """Adds up what each split of the keys gave, `[splits, ...]`, by its share of the weights."""
  highest = jnp.max(top, axis=0)
  logs = (top - highest) * scale + log_total
  sum_of_all = jnp.logaddexp2.reduce(logs, axis=0)
  share = jnp.exp2(logs - sum_of_all)[..., : out.shape[2]]
  # With what rounding took from every part, so that their sum is rounded once.
  exact = out.astype(jnp.float32) + low.astype(jnp.float32)
  exact = jnp.sum(exact * einops.rearrange(share, 'S b H N -> S b N H 1'), axis=0)
  rounded = exact.astype(out.dtype)
  return rounded, (exact - rounded.astype(jnp.float32)).astype(out.dtype), highest, sum_of_all


# ---- backward ----------------------------------------------------------------------------------


def _bounds(lengths_BxRxM: Array, rows: int, keys: int, key_tiles: int) -> Array:
  """int32 `[3, B R, key_tiles]`: where a key tile's query tiles begin, are whole, and end.

  Query tiles `first..end` see some key of the tile, from `whole` on every key; exact where lengths
  do not decrease, and a correct superset where they do.
  """
  batch, streams, num_rows = lengths_BxRxM.shape
  tiled = lengths_BxRxM.reshape(batch * streams, num_rows // rows, 1, rows)
  start = jnp.arange(key_tiles, dtype=jnp.int32) * keys
  sees = tiled.max(-1) > start
  misses = tiled.min(-1) < start + keys
  index = jnp.arange(1, num_rows // rows + 1, dtype=jnp.int32)[:, None]
  end = jnp.max(jnp.where(sees, index, 0), axis=1)
  first = jnp.minimum(jnp.min(jnp.where(sees, index - 1, num_rows // rows), axis=1), end)
  whole = jnp.clip(jnp.max(jnp.where(misses, index, 0), axis=1), first, end)
  return jnp.stack([first, whole, end])


def _backward(blocks, q, k, v, lengths, out, low, top, log_total, dout):
  """Gradients with respect to q, k and v."""
  call = _call(blocks, q, k, lengths)
  batch, _, _, heads, head_dim = q.shape
  _, num_keys, groups, _ = k.shape
  padded, most, least = _reach(lengths)
  exact = _merge(out).astype(jnp.float32) + low.astype(jnp.float32)
  # sum over keys of weight * dweight is out . dout: it takes no pass over the keys.
  mean = jnp.sum(exact * _merge(dout).astype(jnp.float32), axis=-1)
  # An array of its own: joined with another, XLA's program for both took as long as a kernel.
  mean = _pad(einops.rearrange(mean, 'b N H -> b H N'), 2, TILE_ROWS)
  q_merged, dout_merged, lengths_merged = _merge(q), _merge(dout), _merge(padded)
  mine = (hopper_blocks.WARPGROUPS, call.together, hopper_blocks.WARPGROUP_ROWS, head_dim)
  _, stages, dkv_stages = blocks.stages
  (dq,) = _launch(
    functools.partial(hopper_gradients.query_gradient, call=call),
    name='prefix_attention_dq',
    inputs=[most, least, lengths_merged, top, log_total, mean, q_merged, dout_merged, k, v],
    outputs=[jax.ShapeDtypeStruct(q_merged.shape, q.dtype)],
    shared=[
      *(_shared(mine, q.dtype) for _ in range(2)),
      *(_shared((stages, blocks.dq_keys, head_dim), q.dtype) for _ in range(2)),
    ],
    barriers=[
      _ready(2 * call.together, hopper_blocks.WARPGROUPS),
      *(_ready(1, stages) for _ in range(2)),
      *(_ready(hopper_blocks.WARPGROUPS, stages) for _ in range(2)),
    ],
    grid=_grid(call, heads, most.shape[1], batch),
  )
  owners = hopper_blocks.WARPGROUPS if head_dim <= hopper_blocks.MAX_COLUMNS else 1
  keys = owners * hopper_blocks.WARPGROUP_ROWS
  key_tiles = -(-num_keys // keys)
  dk, dv = _launch(
    functools.partial(hopper_gradients.key_value_gradient, call=call),
    name='prefix_attention_dkv',
    inputs=[
      _bounds(padded, blocks.dkv_rows, keys, key_tiles),
      lengths_merged,
      top,
      log_total,
      mean,
      q_merged,
      dout_merged,
      k,
      v,
    ],
    outputs=[jax.ShapeDtypeStruct(k.shape, k.dtype)] * 2,
    shared=[
      *(_shared((owners, hopper_blocks.WARPGROUP_ROWS, head_dim), q.dtype) for _ in range(2)),
      *(_shared((dkv_stages, blocks.dkv_rows, head_dim), q.dtype) for _ in range(2)),
      plgpu.SMEM((dkv_stages, 3, blocks.dkv_rows), jnp.float32),
    ],
    barriers=[
      plgpu.Barrier(num_arrivals=2 * owners),
      _ready(5, dkv_stages),
      _ready(hopper_blocks.WARPGROUPS, dkv_stages),
      plgpu.Barrier(num_arrivals=hopper_blocks.WARPGROUPS),
    ],
    grid={'batch': batch, 'group': groups, 'tile': key_tiles},
  )
  return dq.reshape(q.shape), dk, dv

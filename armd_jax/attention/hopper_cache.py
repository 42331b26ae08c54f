"""What a decoding step does between a layer's projection and its attention, in one launch on H100.

Queries and keys are rotated, keys and values written into the caches, in place. XLA takes a launch
for the queries and one for each cache, since it fuses no write in place with anything else.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from armd_jax.attention import hopper_parts

Array = jax.Array

THREADS = 128  # of a warpgroup, among which the heads of a row are dealt out


def unsupported(heads: int, groups: int, head_dim: int) -> str | None:
  """Why the kernel cannot serve a layer, or None."""
  if any(count * head_dim // 2 % THREADS for count in (heads, groups)):
    return (
      f'half of {heads} heads over {groups} key heads of dimension {head_dim} is no multiple of '
      f'{THREADS}'
    )
  return None


def append(
  qkv_BxRxWxXxD: Array,
  rotation_BxRxWxHxD2: tuple[Array, Array] | None,
  offset_B: Array,
  k_BxKxGxD: Array,
  v_BxKxGxD: Array,
  query_streams: int,
) -> tuple[Array, Array, Array]:
  """Rotates, and appends to caches.

  Args:
    qkv_BxRxWxXxD: what was projected from W new rows of R streams: queries of H heads, then keys
      and values of G heads each; X = H + 2 G. Keys and values are those of stream 0.
    rotation_BxRxWxHxD2: float32 (cos, sin) of the rows, `[B or 1, R, W, H, D/2]` each, the same
      for all heads; None leaves queries and keys as they are.
    offset_B: int32 `[B or 1]`, rows that the caches hold.
    k_BxKxGxD, v_BxKxGxD: the caches; XLA reuses their memory if nothing else reads them.
    query_streams: how many of the streams, the last ones, ask.
  Returns:
    q_BxQxWxHxD of these streams, and both caches with W more rows.
  """
  batch, streams, width, _, head_dim = qkv_BxRxWxXxD.shape
  groups = k_BxKxGxD.shape[2]
  heads, half = qkv_BxRxWxXxD.shape[3] - 2 * groups, head_dim // 2
  silent = streams - query_streams
  out = jax.ShapeDtypeStruct((batch, query_streams, width, heads, head_dim), qkv_BxRxWxXxD.dtype)

  def run(*refs):
    # A block is one warpgroup and has one row of one stream. It waits for no other block and needs
    # neither shared memory nor barriers:
    #
    #   of qkv    in registers   into                       by the blocks of
    #   queries   rotated        q                          the streams that ask
    #   keys      rotated        k, at row offset + row     stream 0
    #   values    as they are    v, at row offset + row     stream 0
    #
    # A head is loaded as two halves, since RoPE pairs feature i with i + D / 2: both of a pair are
    # then in registers of the same thread.
    qkv, *angles, offset, k, v, q = refs
    sequence, stream, row = (lax.axis_index(name) for name in ('batch', 'stream', 'row'))
    own = qkv.at[sequence, stream, row]
    halves = pl.ds(0, half), pl.ds(half, half)

    def load(ref, count):
      return hopper_parts.load(ref, plgpu.Layout.WG_STRIDED((count, half), vec_size=1))

    def move(first, count, target, turn):
      parts = [load(own.at[pl.ds(first, count), part], count) for part in halves]
      if turn and angles:
        a, b = (part.astype(jnp.float32) for part in parts)
        place = 0 if angles[0].shape[0] == 1 else sequence
        cos, sin = (load(x.at[place, stream, row, pl.ds(0, count)], count) for x in angles)
        parts = [a * cos - b * sin, b * cos + a * sin]
      for part, value in zip(halves, parts, strict=True):
        target.at[:, part][...] = value.astype(out.dtype)

    @pl.when(stream >= silent)
    def _():
      move(0, heads, q.at[sequence, stream - silent, row], turn=True)

    @pl.when(stream == 0)
    def _():
      place = sequence, offset[0 if offset.shape[0] == 1 else sequence] + row
      move(heads, groups, k.at[place], turn=True)
      move(heads + groups, groups, v.at[place], turn=False)

  run.__name__ = 'append_to_cache'  # what profilers and dumps call the kernel
  caches = jax.new_ref(k_BxKxGxD), jax.new_ref(v_BxKxGxD)
  q_BxQxWxHxD = plgpu.kernel(
    run,
    out_type=out,
    grid=(batch, streams, width),
    grid_names=('batch', 'stream', 'row'),
    num_threads=1,
    thread_name='warpgroup',
  )(qkv_BxRxWxXxD, *(rotation_BxRxWxHxD2 or ()), offset_B, *caches)
  return q_BxQxWxHxD, *map(jax.freeze, caches)

"""Prefix aggregation, the seed of the query rows: G^0 = ((PE PE^T) * M^sc) X^0 (paper eq. 6).

A linear attention over strictly earlier rows, so it has three forms that agree: quadratic, chunked
(linear in N, for training) and recurrent (`update`, `read`, for decoding). Rows of `PE` are taken
at text positions and have unit length. Everything is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def sinusoidal(position: Array, dim: int) -> Array:
  """Unit-length sinusoidal position rows, float32, `position.shape + (dim,)`.

  Wavelengths run from 2 pi to 2 pi 1e4, as in the original transformer.
  """
  half = dim // 2
  frequency = 1e4 ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position[..., None].astype(jnp.float32) * frequency
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1) * half**-0.5


def quadratic(pe_q_BxNxP: Array, pe_k_BxKxP: Array, x_BxKxE: Array, lengths_BxN: Array) -> Array:
  """Paper eq. 6 as it is written: `g[n] = sum over k < lengths[n] of (pe_q[n] . pe_k[k]) x[k]`.

  Args:
    pe_q_BxNxP: position rows of the slots, `[B or 1, N, P]`.
    pe_k_BxKxP: position rows of the content rows, `[B or 1, K, P]`.
    x_BxKxE: content rows.
    lengths_BxN: int32 in 0..K, `[B or 1, N]`, content rows that each slot sees.
  Returns:
    g_BxNxE, float32.
  """
  visible_BxNxK = jnp.arange(x_BxKxE.shape[1]) < lengths_BxN[..., None]
  # Masked after the product: without a softmax, a weight of 0 hides a row completely.
  weight_BxNxK = jnp.einsum('bnp,bkp->bnk', pe_q_BxNxP, pe_k_BxKxP) * visible_BxNxK
  weight_BxNxK = jnp.broadcast_to(weight_BxNxK, (x_BxKxE.shape[0], *weight_BxNxK.shape[1:]))
  return jnp.einsum('bnk,bke->bne', weight_BxNxK, x_BxKxE.astype(jnp.float32))


def chunked(
  pe_q_BxNxP: Array, pe_k_BxNxP: Array, x_BxNxE: Array, lengths_BxN: Array, chunk: int
) -> Array:
  """The same, in `O(N (chunk + P) E)`, for the lengths of a generation order.

  Walks over chunks with the running sum `S = sum_k pe_k x_k^T` of all rows before the chunk. A slot
  whose block began before its chunk must not read S, which holds rows of its own block. All such
  slots of a chunk belong to the one block that spans the chunk's beginning, so a second sum A, the
  state where that block began, is all they need, however many chunks the block is long.

  Args:
    pe_q_BxNxP, pe_k_BxNxP, x_BxNxE: as in `quadratic`, with as many slots as content rows.
    lengths_BxN: int32, `1 + block_start[n]`: non-decreasing, at most n + 1 (n from 0), and constant
      from the row it names up to n.
    chunk: slots per chunk C.
  Returns:
    g_BxNxE, float32.
  """
  batch, num_slots, width = x_BxNxE.shape
  chunk = min(chunk, num_slots)
  num_chunks = -(-num_slots // chunk)

  def split(x, fill):
    tail = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, ((0, 0), (0, num_chunks * chunk - num_slots), *tail), constant_values=fill)
    return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]), 1, 0)

  def outer(pe_BxCxP, x_BxCxE):
    return jnp.einsum(
      'bcp,bce->bpe', jnp.broadcast_to(pe_BxCxP, (batch, *pe_BxCxP.shape[1:])), x_BxCxE
    )

  def walk(sums, xs):
    before_BxPxE, block_BxPxE = sums
    first, pe_q_BxCxP, pe_k_BxCxP, x_BxCxE, lengths_BxC, next_length_B = xs
    local_BxC = lengths_BxC - first  # rows of this chunk that each slot sees; negative: see A
    g_BxCxE = jnp.where(
      (local_BxC < 0)[..., None],
      jnp.einsum('bcp,bpe->bce', pe_q_BxCxP, block_BxPxE),
      jnp.einsum('bcp,bpe->bce', pe_q_BxCxP, before_BxPxE),
    ) + quadratic(pe_q_BxCxP, pe_k_BxCxP, x_BxCxE, local_BxC)
    # The block at the next chunk's beginning either began in this chunk or A stays.
    seen_B = next_length_B - first
    head_BxCx1 = (jnp.arange(chunk) < seen_B[:, None])[..., None]
    began_BxPxE = before_BxPxE + outer(pe_k_BxCxP * head_BxCx1, x_BxCxE)
    block_BxPxE = jnp.where((seen_B < 0)[:, None, None], block_BxPxE, began_BxPxE)
    return (before_BxPxE + outer(pe_k_BxCxP, x_BxCxE), block_BxPxE), g_BxCxE

  # Padded slots get a length that does not look like a block begun in an earlier chunk; what they
  # aggregate is cut off at the end.
  lengths_CxBxC = split(lengths_BxN, num_slots)
  zeros = jnp.zeros((batch, pe_k_BxNxP.shape[-1], width), jnp.float32)
  # The last entry is the length of the first slot of the next chunk, which shows where the block
  # across the boundary began; the last chunk has no next one and makes nothing of it.
  xs = (
    chunk * jnp.arange(num_chunks),
    split(jnp.broadcast_to(pe_q_BxNxP, (batch, *pe_q_BxNxP.shape[1:])), 0),
    split(pe_k_BxNxP, 0),
    split(x_BxNxE.astype(jnp.float32), 0),
    lengths_CxBxC,
    jnp.roll(lengths_CxBxC[..., 0], -1, axis=0),
  )
  _, g_CxBxCxE = jax.lax.scan(walk, (zeros, zeros), xs)
  return jnp.moveaxis(g_CxBxCxE, 0, 1).reshape(batch, -1, width)[:, :num_slots]


def update(state_BxPxE: Array, pe_BxWxP: Array, x_BxWxE: Array, count_B: Array) -> Array:
  """Recurrent form: adds the first `count_B` (`[B or 1]`) of W content rows to the state."""
  # Padding is multiplied by 0 and not cut off: the count is traced, shapes are not.
  pe_BxWxP = pe_BxWxP * (jnp.arange(x_BxWxE.shape[1]) < count_B[:, None])[..., None]
  pe_BxWxP = jnp.broadcast_to(pe_BxWxP, (x_BxWxE.shape[0], *pe_BxWxP.shape[1:]))
  return state_BxPxE + jnp.einsum('bwp,bwe->bpe', pe_BxWxP, x_BxWxE.astype(jnp.float32))


def read(state_BxPxE: Array, pe_BxWxP: Array) -> Array:
  """Recurrent form: what slots with the given position rows read from the state, g_BxWxE."""
  pe_BxWxP = jnp.broadcast_to(pe_BxWxP, (state_BxPxE.shape[0], *pe_BxWxP.shape[1:]))
  return jnp.einsum('bwp,bpe->bwe', pe_BxWxP, state_BxPxE)

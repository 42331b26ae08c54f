"""Prefix attention: the one attention of this project (our choice; method of paper section 3).

Sequences are stored in generation order, so every mask of ARMD lets a row see a *prefix* of the
keys. A mask is therefore one integer per row. Four slots in blocks 1, 2, 2, 3 have

    block_start = 0 1 1 3   (M^sc, blocks before the slot's)   block_end = 1 3 3 4   (M^c)

           keys 1 2 3 4                      keys 1 2 3 4
    slot 1      . . . .                           x . . .
    slot 2      x . . .                           x x x .
    slot 3      x . . .                           x x x .
    slot 4      x x x .                           x x x x

Plain causal attention is `lengths = 1..N`, bidirectional attention `lengths = N`, and cached
decoding the number of keys in the cache so far.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from armd_jax.attention import hopper, reference, tpu, tpu_blocks
from armd_jax.errors import UserError
from armd_jax.hardware import device
from armd_jax.parallel import axes

Array = jax.Array

BACKENDS = ('auto', 'reference', 'pallas_tpu', 'pallas_hopper')


# The jits give the calls their names in a jaxpr, where flops.py looks for them.
@jax.jit
def _prefix_attention_reference(q, k, v, lengths):
  return _on_mesh(reference.prefix_attention, q, k, v, lengths)


@functools.partial(jax.jit, static_argnames='chip')
def _prefix_attention_pallas_tpu(q, k, v, lengths, *, chip):
  return _on_mesh(functools.partial(tpu.prefix_attention, chip=chip), q, k, v, lengths)


@jax.jit
def _prefix_attention_pallas_hopper(q, k, v, lengths):
  return _on_mesh(hopper.prefix_attention, q, k, v, lengths)


def _on_mesh(attend: Callable[..., Array], q: Array, k: Array, v: Array, lengths: Array) -> Array:
  """Every device attends for its own sequences and heads; a kernel cannot be cut otherwise."""
  parts, groups = axes.size('heads'), k.shape[2]
  if groups % parts:
    # Fewer key heads than devices: each takes a copy of the one that its query heads read.
    k, v = (jnp.repeat(x, parts // groups, axis=2) for x in (k, v))
  rows, keys = (axes.batch(q), None, None, 'heads', None), (axes.batch(k), None, 'kv_heads', None)
  in_axes = (rows, keys, keys, (axes.batch(lengths), None, None))
  # Pallas' interpreters cannot follow which values differ between devices; compilers can.
  check = not device.current().interpreted
  return axes.split(attend, in_axes, rows, check=check)(q, k, v, lengths)


def _why_not_pallas_tpu(q: Array, k: Array, v: Array) -> str | None:
  """Why the TPU kernels cannot serve this call, or None."""
  here = device.current()
  if here.platform != 'tpu':
    return f'the platform is {here.platform!r}, not a TPU'
  if here.chip not in tpu_blocks.CHIPS:
    return f'chip {here.chip!r} is not one of {tpu_blocks.CHIPS}'
  return tpu.unsupported(q, k, v)


def _why_not_pallas_hopper(q: Array, k: Array, v: Array) -> str | None:
  """Why the Hopper kernels cannot serve this call, or None."""
  here = device.current()
  if here.platform != 'gpu':
    return f'the platform is {here.platform!r}, not a GPU'
  if here.chip != device.HOPPER:
    return f'{here.chip!r} is not of the Hopper generation (compute capability 9.0)'
  return hopper.unsupported(q, k, v)


_WHY_NOT = {'pallas_tpu': _why_not_pallas_tpu, 'pallas_hopper': _why_not_pallas_hopper}


def choose(backend: str, q: Array, k: Array, v: Array) -> str:
  """The backend that `prefix_attention` takes for such arrays, or shapes; it raises alike."""
  return choose_and_why(backend, q, k, v)[0]


def choose_and_why(backend: str, q: Array, k: Array, v: Array) -> tuple[str, str]:
  """`choose`, and why 'auto' takes no kernel; '' if it does, or was not asked."""
  if backend not in BACKENDS:
    raise ValueError(f'attention backend is {backend!r}; write one of {BACKENDS}')
  if backend == 'reference':
    return backend, ''
  if backend == 'auto':
    here = device.current()
    kernels = {'tpu': 'pallas_tpu', 'gpu': 'pallas_hopper'}.get(here.platform)
    if kernels is None:
      reason = f'there are no kernels for the platform {here.platform!r}'
    else:
      reason = _WHY_NOT[kernels](q, k, v)
    return ('reference', reason) if kernels is None or reason else (kernels, '')
  # A backend that was asked for by name is never replaced: who names one measures it.
  reason = _WHY_NOT[backend](q, k, v)
  if reason is not None:
    raise UserError(f"attention backend {backend!r} cannot run: {reason}; write 'reference'")
  return backend, ''


def prefix_attention(
  q_BxRxNxHxD: Array,
  k_BxKxGxD: Array,
  v_BxKxGxD: Array,
  lengths_BxRxN: Array,
  *,
  backend: str = 'auto',
) -> Array:
  """Attention of R streams of rows over the first `lengths` keys each (paper eqs. 3-5).

  `out[b, r, n] = softmax(q[b, r, n] . k[b, :length] / sqrt(D)) v[b, :length]`, `length =
  lengths[b, r, n]`. The streams share keys and values.

  Args:
    q_BxRxNxHxD: queries, R streams (1, or 2: content and query rows), H heads.
    k_BxKxGxD: keys, G key heads; query head h reads key head `h // (H // G)`.
    v_BxKxGxD: values.
    lengths_BxRxN: int32 in 0..K, `[B or 1, R, N]`. Length 0 gives exactly 0 with zero gradients.
    backend: one of `BACKENDS`. 'auto' takes the kernels of the platform where they can run; the
      header of a program names what it takes and why, see `choose_and_why`.
  Returns:
    out_BxRxNxHxD, in the dtype of q; scores and softmax are computed in float32.
  Raises:
    ValueError: if shapes do not fit together or the backend is unknown.
    UserError: if the backend was asked for by name and cannot run here.
  """
  batch, streams, rows, heads, head_dim = q_BxRxNxHxD.shape
  if k_BxKxGxD.shape != v_BxKxGxD.shape:
    raise ValueError(f'keys {k_BxKxGxD.shape} and values {v_BxKxGxD.shape} differ in shape')
  if k_BxKxGxD.shape[0] != batch or k_BxKxGxD.shape[3] != head_dim:
    raise ValueError(f'queries {q_BxRxNxHxD.shape} do not fit keys {k_BxKxGxD.shape}')
  groups, parts = k_BxKxGxD.shape[2], axes.size('heads')
  if heads % groups:
    raise ValueError(f'{heads} heads are not a multiple of {groups} key heads')
  if heads % parts or (groups % parts and parts % groups):
    raise ValueError(f'{heads} heads over {groups} key heads cannot be cut into {parts} parts')
  if lengths_BxRxN.shape not in ((batch, streams, rows), (1, streams, rows)):
    raise ValueError(
      f'lengths {lengths_BxRxN.shape} must be [{batch} or 1, {streams}, {rows}] for these queries'
    )
  arguments = q_BxRxNxHxD, k_BxKxGxD, v_BxKxGxD, lengths_BxRxN
  chosen = choose(backend, *arguments[:3])
  if chosen == 'pallas_tpu':
    return _prefix_attention_pallas_tpu(*arguments, chip=device.current().chip)
  if chosen == 'pallas_hopper':
    return _prefix_attention_pallas_hopper(*arguments)
  return _prefix_attention_reference(*arguments)

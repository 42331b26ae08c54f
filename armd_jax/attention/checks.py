"""What every kernel asks of its arrays."""

from __future__ import annotations

import jax

Array = jax.Array


def unsupported(
  q: Array, k: Array, v: Array, head_dims: tuple[int, ...], dtypes: tuple[str, ...]
) -> str | None:
  """Why kernels for these head dimensions and dtypes cannot take the arrays, or None."""
  if q.shape[-1] not in head_dims:
    return f'head dimension {q.shape[-1]} is not one of {head_dims}'
  if len({q.dtype, k.dtype, v.dtype}) > 1:
    return f'queries, keys and values differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}'
  if q.dtype.name not in dtypes:
    return f'dtype {q.dtype} is not one of {dtypes}'
  if 0 in q.shape or 0 in k.shape:
    return f'queries {q.shape} or keys {k.shape} are empty'
  return None

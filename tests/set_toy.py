"""The networks of `toy` as networks of sets in any order: tables of partly masked texts."""

from __future__ import annotations

import functools
import types

import jax
import jax.numpy as jnp
import toy

from armd_jax.models.denoiser import MASK


class OrderedTable(toy.TableNetwork):
  """Stands in for an `OrderedSetDenoiser`; its caches hold tokens and their positions."""

  def __init__(self):
    super().__init__()
    self.config = types.SimpleNamespace(first_token='predicted', num_slots=toy.N, set_length=1)

  def apply(self, variables, *args, method='__call__', rngs=None):
    if method == 'extend':
      return self._extend(variables['params'], *args)
    if method == 'empty_caches':
      return jnp.full(args, MASK), jnp.zeros(args, jnp.int32)
    if method != '__call__':
      return super().apply(variables, *args, method=method, rngs=rngs)
    tokens_BxN, noise_B, first_B, length_B, _, position_BxN = args
    assert noise_B is first_B is length_B is None
    seen_BxN = jnp.broadcast_to(jnp.arange(toy.N), tokens_BxN.shape)
    return self._rows(variables['params'], tokens_BxN, position_BxN, position_BxN, seen_BxN)

  def _extend(self, table, clean, noised, caches, offset_B):
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
    offset_B = jnp.broadcast_to(offset_B, len(clean.ids_BxW))
    caches = tuple(
      put(cache, new, offset_B, 0)
      for cache, new in zip(caches, (clean.ids_BxW, clean.position_BxW), strict=True)
    )
    if noised is None:
      return None, caches
    return self._rows(table, *caches, noised.position_BxW, noised.length_BxW), caches

  def _rows(self, table, ids_BxK, clean_position_BxK, position_BxW, seen_BxW):
    """Row w: what the table says at its position, of a text of the first `seen` clean tokens."""

    def row(ids_K, clean_K, position, seen):
      where_K = jnp.where(jnp.arange(len(ids_K)) < seen, clean_K - 1, toy.N)
      text_N = jnp.full(toy.N, toy.V).at[where_K].set(ids_K, mode='drop')
      return table[text_N @ toy._PLACES, position - 1]

    of_rows = jax.vmap(row, (None, None, 0, 0))
    return jax.vmap(of_rows)(ids_BxK, clean_position_BxK, position_BxW, seen_BxW)


@functools.cache
def network() -> OrderedTable:
  """One for all, so that what is compiled for it is found again."""
  return OrderedTable()

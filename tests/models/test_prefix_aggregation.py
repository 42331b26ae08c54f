"""The quadratic, chunked and recurrent forms of paper eq. 6 agree, for every order and chunk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax.models import prefix_aggregation
from armd_jax.order import block_bounds


def inputs(name):
  o = tiny.orders()[name]
  start_BxN, _ = block_bounds(o.block_BxN)
  content_position_BxN = jnp.pad(o.position_BxN[:, :-1], ((0, 0), (1, 0)))
  x_BxNxE = jax.random.normal(jax.random.key(0), (3, tiny.NUM_SLOTS, 6))
  pe = lambda position: prefix_aggregation.sinusoidal(position, 8)
  return pe(o.position_BxN), pe(content_position_BxN), x_BxNxE, 1 + start_BxN


def brute_force(pe_q_BxNxP, pe_k_BxNxP, x_BxNxE, lengths_BxN):
  pe_q, pe_k, x, lengths = (
    np.asarray(a, np.float64) for a in (pe_q_BxNxP, pe_k_BxNxP, x_BxNxE, lengths_BxN)
  )
  g = np.zeros_like(x)
  for b in range(x.shape[0]):
    shared = lambda a, b=b: a[min(b, len(a) - 1)]
    for n in range(x.shape[1]):
      for k in range(int(shared(lengths)[n])):
        g[b, n] += shared(pe_q)[n] @ shared(pe_k)[k] * x[b, k]
  return g


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_forms_agree(name):
  args = inputs(name)
  expected = brute_force(*args)
  np.testing.assert_allclose(prefix_aggregation.quadratic(*args), expected, atol=1e-5)
  for chunk in (1, 3, 4, 5, 16, 64):
    got = jax.jit(prefix_aggregation.chunked, static_argnums=4)(*args, chunk)
    np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=f'chunk {chunk}')


@pytest.mark.parametrize('name', ['left_to_right', 'blocks', 'strided4'])
def test_recurrent_form_agrees(name):
  pe_q, pe_k, x, lengths = inputs(name)
  expected = brute_force(pe_q, pe_k, x, lengths)
  state = jnp.zeros((3, 8, 6))
  for k in range(tiny.NUM_SLOTS):
    # Two rows are offered and one is counted: padding must not enter the state.
    rows = slice(k, k + 2)
    state = prefix_aggregation.update(state, pe_k[:, rows], x[:, rows], jnp.ones(1, jnp.int32))
    got = prefix_aggregation.read(state, pe_q)
    for b, n in zip(*np.nonzero(np.broadcast_to(lengths == k + 1, (3, 16))), strict=True):
      np.testing.assert_allclose(got[b, n], expected[b, n], atol=1e-5)


def test_position_rows_have_unit_length():
  rows = prefix_aggregation.sinusoidal(jnp.arange(1000), 64)
  np.testing.assert_allclose(jnp.linalg.norm(rows, axis=-1), 1, rtol=1e-5)

"""The bound over orders is a bound, tightens, and becomes the mixture's likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import order
from armd_jax.evaluation.bounds import over_orders
from armd_jax.objectives import armd


def every_order():
  """-log p of all 27 texts under all 6 orders of a small random ARMD, [6, 27], float64."""
  config = tiny.model_config(length=3, query_seed_chunk=2, num_layers=2)
  model, params = tiny.init(config, vocab_size=3, scale=5.0)
  texts = jnp.array(list(itertools.product(range(3), repeat=3)))

  @jax.jit
  def nats(position_N):
    one = order.one_by_one(order.GenerationOrder(position_N[None], position_N[None]))
    return armd.nll(model, params, texts, one, jnp.ones((27, 3)), loss_chunk=3)[1].sum(1)

  orders = itertools.permutations((1, 2, 3))
  return np.array([np.asarray(nats(jnp.array(o)), np.float64) for o in orders])


def test_bound_tightens_to_the_mixture():
  nats_OxW = every_order()
  p_W = np.exp(-nats_OxW).mean(0)
  np.testing.assert_allclose(p_W.sum(), 1, rtol=1e-5)  # a mixture of distributions is one
  rng = np.random.RandomState(0)
  texts = rng.choice(27, 4000, p=p_W / p_W.sum())
  drawn_KxW = nats_OxW[rng.randint(6, size=(64, 4000)), texts]
  bounds = over_orders(drawn_KxW)
  assert [b.orders for b in bounds] == [1, 2, 4, 8, 16, 32, 64]
  truth = -np.log(p_W[texts])
  nats = [b.nats for b in bounds]
  assert all(before > after for before, after in itertools.pairwise(nats))
  # The same texts: what is left is the randomness of orders, far below the texts' own.
  assert nats[0] - truth.mean() > 20 * abs(nats[-1] - truth.mean())
  assert nats[-1] > truth.mean() - 0.002
  assert nats[0] == pytest.approx(drawn_KxW.mean(), rel=1e-12)
  assert bounds[-1].standard_error == pytest.approx(truth.std() / 4000**0.5, rel=0.05)


def test_standard_error_covers_the_truth():
  """200 repetitions with 40 texts and 4 orders: about 95% of the means lie within two errors."""
  nats_OxW = every_order()
  rng = np.random.RandomState(1)
  p_W = np.exp(-nats_OxW).mean(0)
  inside, repetitions = 0, 200
  # What K = 4 orders give in expectation, by all 6^4 draws.
  draws = np.array(list(itertools.product(range(6), repeat=4)))
  expected_W = (np.log(4) - np.logaddexp.reduce(-nats_OxW[draws], axis=1)).mean(0)
  expected = (p_W / p_W.sum()) @ expected_W
  for _ in range(repetitions):
    texts = rng.choice(27, 40, p=p_W / p_W.sum())
    bound = over_orders(nats_OxW[rng.randint(6, size=(4, 40)), texts])[-1]
    inside += abs(bound.nats - expected) < 2 * bound.standard_error
  assert 0.87 < inside / repetitions < 0.99


def test_one_text_has_no_standard_error():
  with pytest.raises(ValueError, match='give 2 or more'):
    over_orders(np.ones((4, 1)))

"""SetDLM's bound is its integral over time, and ARMD's objective along orders of its policy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import set_toy
import toy

from armd_jax import order as orders
from armd_jax.config import DiffusionConfig
from armd_jax.objectives import armd, setdlm
from armd_jax.objectives.setdlm import SetDLM

METHOD = SetDLM()
ORDERS = list(itertools.permutations(range(3)))
SETTINGS = DiffusionConfig(set_size=2, set_reach=3)
# Of the published schedule at N = 3, d = 2, s_max = 3: b and k, and l from left to right.
B = 3 / 5
K = (2 / 6) / (B - 2 / 6)
ENDS = np.array([1 - B, (1 - B) / 2, 0])


def masked_share(i, t):
  """1 - alpha_i(t)."""
  return 1 - (1 - np.clip((t - ENDS[i]) / B, 0, 1)) ** K


def nodes(i, count=200_000):
  """Times at which token i's share grows by one part of `count`: d(1 - alpha_i) is uniform."""
  u = (np.arange(count) + 0.5) / count
  return ENDS[i] + B * (1 - (1 - u) ** (1 / K))


def probability(order):
  """Of times that fall in this order, by integration over that of the second."""
  first, second, third = order
  t = nodes(second)
  return ((1 - masked_share(first, t)) * masked_share(third, t)).mean()


def integral(logits):
  """The published bound, per text: sum over i of -alpha_i' E[-log p(x_i | shown at t)] over t."""
  total = np.zeros(27)
  for i in range(3):
    others = [j for j in range(3) if j != i]
    t = nodes(i)
    for shown in itertools.product([False, True], repeat=2):
      mask = np.ones((1, 3), bool)
      mask[0, others] = ~np.array(shown)
      chance = np.prod(
        [
          1 - masked_share(j, t) if s else masked_share(j, t)
          for j, s in zip(others, shown, strict=True)
        ],
        axis=0,
      )
      total += chance.mean() * toy.nll(logits, mask)[:, 0, i]
  return total


def along(order, monkeypatch, logits):
  """The objective of all texts along an order."""
  position = jnp.broadcast_to(jnp.array(order)[None] + 1, (27, 3))
  made = orders.GenerationOrder(position, jnp.broadcast_to(jnp.arange(3), (27, 3)))
  with monkeypatch.context() as patch:
    patch.setattr(setdlm, 'draw_order', lambda *_: made)
    keys = jax.random.split(jax.random.key(0), 27)
    return np.asarray(
      METHOD.objective(
        set_toy.network(), jnp.asarray(logits), jnp.asarray(toy.TEXTS), jnp.ones(27), keys,
        SETTINGS, scale=1.0, loss_chunk=2,
      )[1],
      np.float64,
    )  # fmt: skip


def test_bound_is_the_integral_of_the_published_schedule(monkeypatch):
  """Its mean over orders, of a network that is no distribution's conditionals."""
  chances = np.array([probability(order) for order in ORDERS])
  np.testing.assert_allclose(chances.sum(), 1, atol=1e-6)
  nats = np.stack([along(order, monkeypatch, toy.arbitrary()) for order in ORDERS])
  np.testing.assert_allclose(chances @ nats, integral(toy.arbitrary()), rtol=1e-5)
  exact = np.stack([along(order, monkeypatch, toy.exact()) for order in ORDERS])
  np.testing.assert_allclose(
    exact, np.broadcast_to(-np.log(toy.PROBABILITY), exact.shape), rtol=1e-5
  )


def test_orders_are_drawn_as_the_schedule_says():
  """60,000 of them, within 4.5 standard errors of each order's probability."""
  count = 60_000
  keys = jax.random.split(jax.random.key(1), count)
  drawn = np.asarray(setdlm.draw_order(SETTINGS, keys, 3).position_BxN) - 1
  for order in ORDERS:
    chance, seen = probability(order), (drawn == order).all(1).mean()
    assert abs(seen - chance) < 4.5 * np.sqrt(chance * (1 - chance) / count), order


def positions(num_slots=16, count=200, **settings):
  keys = jax.random.split(jax.random.key(2), count)
  order = setdlm.draw_order(DiffusionConfig(**settings), keys, num_slots)
  assert (np.sort(order.position_BxN, axis=1) == np.arange(1, num_slots + 1)).all()
  return np.asarray(order.position_BxN)


def test_the_ends_of_the_policies():
  """d = 1 is left to right, d = s_max = N has no preference, s_max bounds how far a token jumps;
  blocks are those of BD3-LM, with a slot less in the first if the first token is given."""
  assert (positions(set_size=1, set_reach=8) == np.arange(1, 17)).all()
  whole = positions(count=4000, set_size=16, set_reach=16)
  np.testing.assert_allclose(whole.mean(0), 8.5, atol=0.35)
  jumps = lambda x: np.abs(x - np.arange(1, 17)).max()
  near, far = positions(set_size=2, set_reach=4), positions(set_size=4, set_reach=8)
  assert 1 <= jumps(near) <= 3 and jumps(near) < jumps(far) <= 7
  # Tokens that lie s_max apart keep their order.
  place = np.argsort(near, axis=1)
  assert (place[:, 4:] > place[:, :-4]).all() and (place[:, 3:] < place[:, :-3]).any()
  blocks = positions(set_policy='blocks', block_length=4)
  np.testing.assert_array_equal(
    (blocks - 1) // 4, np.broadcast_to(np.arange(16) // 4, blocks.shape)
  )
  assert jumps(blocks) == 3
  given = positions(15, set_policy='blocks', block_length=4)
  np.testing.assert_array_equal(given // 4, np.broadcast_to(np.arange(1, 16) // 4, given.shape))


def test_every_field_matters():
  base = positions()
  for change in (
    {'set_policy': 'blocks'}, {'set_size': 2}, {'set_reach': 12}
  ):  # fmt: skip
    assert (positions(**change) != base).any(), change
  blocks = positions(set_policy='blocks')
  assert (positions(set_policy='blocks', block_length=8) != blocks).any()


class AsArmd:
  """The same network, called as ARMD's objective calls networks."""

  def __init__(self, network):
    self.config, self.vocab_size, self.network = network.config, network.vocab_size, network

  def apply(self, params, *args, method=None, rngs=None):
    if method is not None:
      return self.network.apply(params, *args, method=method, rngs=rngs)
    tokens_BxN, order, first_B, index_B = args
    args = tokens_BxN, None, first_B, None, index_B, order.position_BxN
    return self.network.apply(params, *args, rngs=rngs)


def test_it_is_armds_objective_along_orders_of_the_policy():
  """Its paper's eq. 2 with weight 1, of single tokens in the same orders: training loss and all."""
  network, params = set_toy.network(), jnp.asarray(toy.arbitrary())
  network.config.diffusion = SETTINGS
  keys, text = jax.random.split(jax.random.key(3), 27), jnp.asarray(toy.TEXTS)
  total, nats = METHOD.loss(
    network, params, text, keys, 27, index_B=jnp.arange(27), loss_chunk=3, dropout_key=None
  )
  _, mask_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  order = setdlm.draw_order(SETTINGS, mask_keys, 3)
  expected, nll = armd.nll(
    AsArmd(network), params, text, order, jnp.full((27, 3), 1 / 81), loss_chunk=3
  )
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  np.testing.assert_allclose(nats, nll.sum(1), rtol=1e-6)


@pytest.mark.parametrize('document', [False, True])
def test_bound_is_unbiased(document):
  """Over 300 keys of every text, of all of it, or of what is left of it when a token is given."""
  network, logits = set_toy.network(), toy.exact()
  text = np.repeat(toy.TEXTS, 300, axis=0)
  keys = jax.random.split(jax.random.key(2), len(text))
  given = np.zeros(text.shape, bool)
  given[:, 1] = document
  length = np.full(len(text), 3)
  nats = METHOD.bound(
    network, jnp.asarray(logits), jnp.asarray(text), keys, SETTINGS, samples=2, loss_chunk=3,
    document=(jnp.asarray(given), jnp.asarray(length)) if document else None,
  )  # fmt: skip
  expected = -np.log(toy.PROBABILITY)
  if document:  # exact conditionals give the same along any order
    second = np.array([toy.PROBABILITY[toy.TEXTS[:, 1] == v].sum() for v in range(3)])
    expected += np.log(second[toy.TEXTS[:, 1]])
  np.testing.assert_allclose(
    np.asarray(nats).reshape(27, 300), np.tile(expected[:, None], 300), rtol=1e-4
  )
  other = METHOD.bound(
    network, jnp.asarray(toy.arbitrary()), jnp.asarray(text), keys, SETTINGS, samples=2,
    loss_chunk=3,
  )  # fmt: skip
  other = np.asarray(other, np.float64).reshape(27, 300)
  error = np.abs(other.mean(1) - integral(toy.arbitrary()))
  assert (error < 4.5 * other.std(1) / 300**0.5).all()

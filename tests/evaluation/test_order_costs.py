"""What strided generation costs, in all and near the junctions of streams."""

import types

import jax
import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax.bench import decode
from armd_jax.config import MeshConfig
from armd_jax.evaluation import likelihood
from armd_jax.evaluation.order_costs import OFFSETS, _heads, interleaved, order_costs
from armd_jax.objectives import armd
from armd_jax.order import left_to_right, strided
from armd_jax.parallel import sharding

SHAPE = dict(num_layers=2, embed_dim=32, num_heads=2, length=16, position_dim=8, dtype='float32')


def mesh():
  return sharding.make_mesh(MeshConfig())


def test_costs_of_order_and_independence_add_up():
  config = config_lib.parse({'model': SHAPE, 'order': {'max_shuffled': 0}})
  model, params = tiny.init(config.model, 11)
  windows_WxN = np.random.RandomState(0).randint(0, 11, (3, 16))
  rows = order_costs(model, params, windows_WxN, [1, 4], mesh())
  assert rows[0]['order_cost'] == rows[0]['independence_cost'] == 0
  assert (rows[0]['starts'], rows[0]['ends'], rows[0]['won_back']) == ([], [], None)
  protocols = likelihood.LEFT_TO_RIGHT, *likelihood.strided_protocols(4)
  left_to_right, parallel, one_by_one = (
    likelihood.mean_nats(likelihood.nll(model, params, windows_WxN, p, mesh(), batch_size=3))[0]
    for p in protocols
  )
  costs = rows[1]['order_cost'], rows[1]['independence_cost']
  np.testing.assert_allclose(costs, (one_by_one - left_to_right, parallel - one_by_one), atol=1e-6)
  np.testing.assert_allclose([row['nats'] for row in rows], (left_to_right, parallel), rtol=1e-6)
  # Three junctions in a text of 16 tokens, and two tokens on either side of each.
  np.testing.assert_allclose(rows[1]['order_nats_per_junction'], costs[0] * 16 / 3)
  assert len(rows[1]['starts']) == len(rows[1]['ends']) == 2
  assert rows[1]['order_cost_error'] > 0 and 'junction' in decode.quality_report(rows)


@pytest.mark.parametrize('streams', [3, 5, 16])
def test_streams_of_unequal_length(streams):
  """16 tokens: their heads and ends are those of the order itself."""
  config = config_lib.parse({'model': SHAPE, 'order': {'max_shuffled': 0}})
  model, params = tiny.init(config.model, 11)
  windows_WxN = np.random.RandomState(0).randint(0, 11, (3, 16))
  (row,) = order_costs(model, params, windows_WxN, [streams], mesh())
  protocol = likelihood.strided_protocols(streams)[1]
  position_N = np.asarray(protocol.order(16, jax.random.split(jax.random.key(0), 1)).position_BxN)[
    0
  ]
  heads = sorted(position_N[:streams])[1:]
  of = lambda p: next(likelihood.nll(model, params, windows_WxN, p, mesh(), batch_size=3))
  cost_N = of(protocol)[:, np.argsort(position_N)] - of(likelihood.LEFT_TO_RIGHT)
  expected = [cost_N.mean(0)[head - 1] for head in heads]
  np.testing.assert_allclose(row['starts'][0], np.mean(expected), atol=1e-5)
  expected = [cost_N.mean(0)[head - 2] for head in heads]
  np.testing.assert_allclose(row['ends'][-1], np.mean(expected), atol=1e-5)


@pytest.mark.parametrize(('length', 'streams'), [(16, 1), (16, 4), (17, 5), (16, 16)])
def test_equal_streams_are_those_of_generation(length, streams):
  heads = _heads(np.zeros((1, length), int), streams, None)
  ours, theirs = interleaved(heads, length), strided(length, streams)
  np.testing.assert_array_equal(ours.position_BxN, theirs.position_BxN)
  np.testing.assert_array_equal(ours.block_BxN, theirs.block_BxN)


def test_streams_begin_behind_a_token():
  """At the nearest one; where there is none within half a stream, where they else would."""
  texts = np.zeros((3, 16), int)
  texts[0, [5, 9, 13]] = 7  # one and two behind 4 and 8, and two behind 12 is too far for a half
  texts[1, 6] = 7
  heads = _heads(texts, 4, 7)
  assert heads.tolist() == [[0, 4, 8, 12], [0, 4, 7, 12], [0, 4, 8, 12]]
  texts[0, [3, 8, 10]] = 7
  assert _heads(texts, 4, 7)[0].tolist() == [0, 4, 9, 11]
  order = interleaved(np.array([[0, 3, 7]]), 10)
  assert order.position_BxN.tolist() == [[1, 4, 8, 2, 5, 9, 3, 6, 10, 7]]
  assert order.block_BxN.tolist() == [[1, 2, 3, 4, 4, 4, 5, 5, 5, 6]]


def test_costs_behind_a_token_are_those_of_these_orders():
  config = config_lib.parse({'model': SHAPE, 'order': {'max_shuffled': 0}})
  model, params = tiny.init(config.model, 11)
  windows_WxN = np.random.RandomState(1).randint(0, 3, (5, 16))
  (row,) = order_costs(model, params, windows_WxN, [4], mesh(), before=2)
  order = interleaved(_heads(windows_WxN, 4, 2), 16)
  assert (np.diff(order.position_BxN, axis=0) != 0).any()
  nll = [armd.nll(model, params, windows_WxN, o, np.zeros((5, 16)), loss_chunk=16)[1].mean()
         for o in (order, left_to_right(16))]  # fmt: skip
  np.testing.assert_allclose(row['nats'], nll[0], rtol=1e-5)
  total = row['order_cost'] + row['independence_cost']
  np.testing.assert_allclose(total, nll[0] - nll[1], atol=1e-5)


# ----- a source whose conditionals are known for every order

STAY = 0.95  # a text of two letters, the next of which is the same as the last


def sticky_texts(count, length):
  flips = np.random.RandomState(0).rand(count, length) > STAY
  flips[:, 0] = np.random.RandomState(1).rand(count) < 0.5
  return np.cumsum(flips, axis=1) % 2


def true_nll(texts_WxN, position_N, block_N, uses_right=True):
  """Of a perfect model, or of one that is blind to what is on the right of a token."""
  same = lambda distance: (1 + (2 * STAY - 1) ** distance) / 2  # that far apart, letters are equal
  nll_WxN = np.zeros(texts_WxN.shape)
  for slot, position in enumerate(position_N):
    known = position_N[block_N < block_N[slot]]
    left, right = known[known < position], known[known > position]
    p_WxV = np.full((len(texts_WxN), 2), 0.5)
    for sides, best in ((left, max), (right, min)):
      if len(sides) and (uses_right or sides is left):
        neighbour = best(sides)
        is_same_WxV = texts_WxN[:, [neighbour - 1]] == np.arange(2)
        near = same(abs(neighbour - position))
        p_WxV = p_WxV * np.where(is_same_WxV, near, 1 - near)
    p_WxV /= p_WxV.sum(1, keepdims=True)
    chosen = texts_WxN[:, position - 1]
    nll_WxN[:, slot] = -np.log(p_WxV[np.arange(len(texts_WxN)), chosen])
  return nll_WxN


@pytest.mark.parametrize(('uses_right', 'won_back'), [(True, 1), (False, 0)])
def test_a_perfect_model_wins_back_what_starts_cost(monkeypatch, uses_right, won_back):
  length = 48

  def score(params, text_BxN, order):
    position_N, block_N = np.asarray(order.position_BxN[0]), np.asarray(order.block_BxN[0])
    return true_nll(np.asarray(text_BxN), position_N, block_N, uses_right)

  monkeypatch.setattr(likelihood, 'scorer', lambda model, mesh: score)
  model = types.SimpleNamespace(config=types.SimpleNamespace(num_slots=length))
  _, row = order_costs(model, None, sticky_texts(6000, length), [1, 3], mesh())
  assert len(row['starts']) == len(row['ends']) == min(OFFSETS, length // 3 // 2)
  # The letters on both sides of a junction tell of each other: I = log 2 - H(.95) = .49 nats.
  information = np.log(2) + STAY * np.log(STAY) + (1 - STAY) * np.log(1 - STAY)
  assert abs(sum(row['starts']) - information) < 0.05
  assert abs(row['won_back'] - won_back) < 0.1
  assert abs(row['order_nats_per_junction'] - (1 - won_back) * information) < 0.05
  assert np.argmax(row['starts']) == 0
  if uses_right:
    assert np.argmin(row['ends']) == len(row['ends']) - 1

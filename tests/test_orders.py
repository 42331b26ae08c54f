"""Orders made by hand are orders: every position once, blocks one after the other."""

import numpy as np
import pytest

from armd_jax import order as order_lib
from armd_jax import orders
from armd_jax.errors import UserError


def test_they_equal_those_of_the_network():
  for made, known in (
    (orders.left_to_right(9), order_lib.left_to_right(9)),
    (orders.blocks([[1], [4], [7], [2, 5, 8], [3, 6, 9]]), order_lib.strided(9, 3)),
  ):
    np.testing.assert_array_equal(made.position_BxN, known.position_BxN)
    starts = lambda order: np.diff(np.asarray(order.block_BxN)) > 0
    np.testing.assert_array_equal(starts(made), starts(known))


def test_random_orders_follow_their_seed():
  first, again, other = (np.asarray(orders.random(30, s).position_BxN)[0] for s in (1, 1, 2))
  assert sorted(first) == list(range(1, 31)) and (first == again).all() and (first != other).any()


@pytest.mark.parametrize('streams', [1, 3, 4])
def test_around_given_tokens_is_what_generation_does(streams):
  """With strided orders of the rest `around` is `order.given_first`."""
  given = np.random.RandomState(0).rand(3, 12) < 0.4
  given[:, -1] = False
  for row in given:
    rest = int((~row[:10]).sum())
    if rest < streams:
      continue
    found = orders.around(row[None], np.array([10]), orders.strided(rest, streams))
    known = order_lib.given_first(row[None], np.array([10]), streams)
    np.testing.assert_array_equal(found.position_BxN, known.position_BxN)
    np.testing.assert_array_equal(
      np.diff(np.asarray(found.block_BxN)) > 0, np.diff(np.asarray(known.block_BxN)) > 0
    )


def test_iterators_are_read_once_and_give_what_lists_do():
  groups = [[2, 3], [1], [4, 5]]
  same = lambda a, b: [
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ('position_BxN', 'block_BxN')
  ]
  same(orders.blocks(groups), orders.blocks(group for group in groups))
  same(orders.blocks(groups), orders.blocks([iter(group) for group in groups]))
  same(orders.blocks(groups), orders.blocks(map(iter, groups)))
  same(orders.permutation([2, 1, 3]), orders.permutation(iter([2, 1, 3])))


def by_hand(position, block):
  array = lambda x: x if x is None else np.array(x)
  orders.check(order_lib.GenerationOrder(array(position), array(block)))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: orders.permutation([0, 1]), r'are \[0, 1\]; write each of 1 to 2 once'),
    (lambda: orders.permutation([1, 1]), 'write each of 1 to 2 once'),
    (lambda: orders.permutation([]), 'write each of 1 to n once'),
    (lambda: orders.permutation(3), 'positions|lists'),
    (lambda: orders.permutation([1.5]), 'write each of 1'),
    (lambda: orders.blocks([1, 2]), 'write lists of positions'),
    (lambda: orders.left_to_right(0), 'the tokens of an order are 0'),
    (lambda: orders.random(3, seed=-1), 'seed is -1'),
    (lambda: orders.random(3, seed=np.array([1, 2])), r'seed is array\(\[1, 2\]\); write a whole'),
    (lambda: orders.left_to_right(np.array([3])), r'the tokens of an order are array\(\[3\]\)'),
    (lambda: orders.left_to_right(10**5000), 'order are a number of more than 4000 digits; write'),
    (lambda: orders.permutation([10**5000]), 'order are a number of more than 4000 digits; write'),
    (lambda: orders.strided(4, 10**5000), 'S = a number of more than 4000 digits, but of 4 tokens'),
    (lambda: by_hand(None, None), 'no order of tokens; make one with armd_jax.orders'),
    (lambda: by_hand([1, 2], [1, 2]), 'no order of tokens'),
    (lambda: by_hand(1, 1), 'no order of tokens'),
    (lambda: orders.check(order_lib.GenerationOrder([[1]], [[1]])), 'no order of tokens'),
    (lambda: by_hand([[1.0, 2.0]], [[1, 2]]), 'no order of tokens'),
    (lambda: by_hand([[1, 2]], [[1]]), 'no order of tokens'),
    (lambda: by_hand([[0, 1]], [[1, 2]]), 'no order of tokens'),
    (lambda: by_hand([[1, 2], [2, 1]], [[1, 2], [1, 2]]), 'no order of tokens'),
    (lambda: by_hand([[1, 2]], [[2, 1]]), 'order has blocks that do not follow each other'),
    (lambda: orders.strided(4, 5), 'of 4 tokens there are 1 to 4 streams'),
    (
      lambda: orders.around(np.zeros((1, 4), bool), np.array([4]), orders.left_to_right(3)),
      'the order is one of 3 tokens but 4 are to be placed; make one of 4',
    ),
    (
      lambda: orders.around(np.zeros((1, 2), bool), np.array([2]), order_lib.uniform(KEYS, 2)),
      'make one with armd_jax.orders',
    ),
  ],
)
def test_what_is_no_order_is_a_sentence(make, message):
  with pytest.raises(UserError, match=message):
    make()


KEYS = order_lib.jax.random.split(order_lib.jax.random.key(0), 2)

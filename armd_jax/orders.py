"""Generation orders made by hand, for `Model.generate`, `Model.infill` and `Model.logprobs`.

    armd_jax.orders.right_to_left(8)
    armd_jax.orders.blocks([[1, 5], [2, 6], [3, 7], [4, 8]])

Positions count from 1, over the tokens that are to be generated or scored. Those of a block are
predicted together, each from all earlier blocks. Every function returns an order of shape [1, n].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from armd_jax import order as order_lib
from armd_jax.config_rules import check_streams
from armd_jax.errors import UserError, check_seed, is_whole, quoted
from armd_jax.order import GenerationOrder

__all__ = ['blocks', 'left_to_right', 'permutation', 'random', 'right_to_left', 'strided']

_MOST = 2**20  # tokens


def left_to_right(n: int) -> GenerationOrder:
  """The order of the text, a token at a time."""
  return permutation(range(1, _checked(n) + 1))


def right_to_left(n: int) -> GenerationOrder:
  """The last token first.

  Examples:
    >>> right_to_left(4).position_BxN.tolist()
    [[4, 3, 2, 1]]
  """
  return permutation(range(_checked(n), 0, -1))


def random(n: int, seed: int = 0) -> GenerationOrder:
  """A uniformly random order, a token at a time."""
  check_seed(seed)
  return permutation(1 + np.random.default_rng(int(seed)).permutation(_checked(n)))


def strided(n: int, streams: int) -> GenerationOrder:
  """`streams` parts of the text side by side: first tokens one by one, then one of each part."""
  check_streams(streams, _checked(n), 'streams')
  return order_lib.strided(n, streams)


def permutation(positions: Sequence[int] | np.ndarray) -> GenerationOrder:
  """One token after the other, in the order of these positions.

  Raises:
    UserError: they are not 1 to n in any order.
  """
  try:
    groups = [[position] for position in positions]
  except TypeError:
    raise UserError(f'the positions of an order are {quoted(positions)}; write a list') from None
  return blocks(groups)


def blocks(groups: Sequence[Sequence[int] | np.ndarray]) -> GenerationOrder:
  """The positions of a group together, group after group.

  Raises:
    UserError: all groups together are not 1 to n in any order.

  Examples:
    >>> order = blocks([[2], [1, 3]])
    >>> order.position_BxN.tolist(), order.block_BxN.tolist()
    ([[2, 1, 3]], [[1, 2, 2]])
  """
  try:
    groups = [list(group) for group in groups]  # an iterator can be read only once
    position = [value for group in groups for value in group]
    block = [number for number, group in enumerate(groups, 1) for _ in group]
  except TypeError:
    raise UserError(
      f'an order is {quoted(groups)}; write lists of positions, counted from 1'
    ) from None
  whole = all(map(is_whole, position))
  if not position or not whole or sorted(position) != list(range(1, len(position) + 1)):
    raise UserError(
      f'the positions of an order are {quoted(list(position))}; write each of 1 to '
      f'{len(position) or "n"} once'
    )
  return GenerationOrder(_row(position), _row(block))


def check(order: Any) -> tuple[np.ndarray, np.ndarray]:
  """Positions and blocks of an order of shape [1, n], found to be one.

  Raises:
    UserError: it is none.
  """
  if not isinstance(order, GenerationOrder):
    raise UserError(f'order is {quoted(order)}; make one with armd_jax.orders')
  both = order.position_BxN, order.block_BxN
  are_arrays = all(isinstance(x, np.ndarray | jax.Array) and x.dtype.kind in 'iu' for x in both)
  position_1xn, block_1xn = map(np.asarray, both)
  fits = are_arrays and position_1xn.shape == block_1xn.shape == (1, position_1xn.size)
  if not fits or sorted(position_1xn[0]) != list(range(1, position_1xn.size + 1)):
    raise UserError(f'order is {order!r}, no order of tokens; make one with armd_jax.orders')
  if (np.diff(block_1xn[0].astype(np.int64)) < 0).any():
    raise UserError('order has blocks that do not follow each other; make one with armd_jax.orders')
  return position_1xn[0], block_1xn[0]


def around(given_BxN: np.ndarray, length_B: np.ndarray, order: GenerationOrder) -> GenerationOrder:
  """Given tokens first, the rest in this order.

  Args:
    given_BxN: bool, by text position, which tokens are given.
    length_B: int, tokens of each text; later positions are stored last, in a block of their own.
    order: of the tokens that are not given, shape [1, n].
  Returns:
    The order of all positions, `[B, N]`, or `[1, N]` if all texts agree.
  Raises:
    UserError: the order has another number of tokens.
  """
  position_n, block_n = check(order)
  if (given_BxN == given_BxN[:1]).all() and (length_B == length_B[0]).all():
    given_BxN, length_B = given_BxN[:1], length_B[:1]
  slots = given_BxN.shape[1]
  rows: list[tuple[Any, Any]] = []
  for given_N, length in zip(given_BxN, length_B, strict=True):
    real_N = np.arange(slots) < length
    given, free = np.flatnonzero(given_N & real_N) + 1, np.flatnonzero(~given_N & real_N) + 1
    if len(free) != len(position_n):
      raise UserError(
        f'the order is one of {len(position_n)} tokens but {len(free)} are to be placed; make one '
        f'of {len(free)}'
      )
    behind = np.arange(length, slots) + 1
    starts = np.append(False, np.diff(block_n) > 0)
    block = np.concatenate(
      [np.arange(len(given)), len(given) + np.cumsum(starts), np.full(len(behind), 2 * slots)]
    )
    rows.append((np.concatenate([given, free[position_n - 1], behind]), 1 + block))
  position_BxN, block_BxN = (np.stack(x).astype(np.int32) for x in zip(*rows, strict=True))
  return GenerationOrder(position_BxN, block_BxN)  # type: ignore[arg-type]


def _row(values: Sequence[int]) -> Any:
  return np.array([[int(value) for value in values]], np.int32)


def _checked(n: int) -> int:
  if not is_whole(n) or not 1 <= n <= _MOST:
    raise UserError(
      f'the tokens of an order are {quoted(n)}; write a whole number from 1 to {_MOST}'
    )
  return int(n)

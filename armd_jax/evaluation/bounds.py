"""The likelihood of a mixture over generation orders, bounded from below more and more tightly.

Each order is a distribution of its own. A model that first draws an order, then a text, has

  p(x) = E_order p(x | order)  >=  exp E_order log p(x | order)   (the any-order bound, K = 1)

and `log mean_k p(x | order_k)` over K independent orders is, in expectation, a lower bound of
log p(x) that never loosens with K and becomes exact (importance-weighted, Burda et al. 2016).
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class OrdersBound:
  """The bound with K orders per text.

  Attributes:
    orders: K.
    nats: mean over texts, per text, an upper bound on the negative log-likelihood in expectation.
    standard_error: of `nats`, over texts and the orders drawn for them.
  """

  orders: int
  nats: float
  standard_error: float


def over_orders(nats_KxW: np.ndarray) -> list[OrdersBound]:
  """The importance-weighted bound for K = 1, 2, 4, ... up to the orders at hand.

  Fewer than all orders are used in disjoint groups whose bounds are averaged: no order is wasted,
  and the estimate of every K is unbiased.

  Args:
    nats_KxW: negative log-likelihood of each of W texts under K independent orders.
  Returns:
    One bound per power of two that is at most K.
  Raises:
    ValueError: fewer than two texts, for which there is no standard error.

  Examples:
    >>> [round(b.nats, 3) for b in over_orders(np.array([[1.0, 1.0], [3.0, 3.0]]))]
    [2.0, 1.566]
  """
  total, texts = nats_KxW.shape
  if texts < 2:
    raise ValueError(f'{texts} texts have no standard error; give 2 or more')
  bounds, orders = [], 1
  while orders <= total:
    groups_GxKxW = nats_KxW[: total // orders * orders].reshape(-1, orders, texts)
    group_GxW = np.log(orders) - np.logaddexp.reduce(-groups_GxKxW.astype(np.float64), axis=1)
    nats_W = group_GxW.mean(axis=0)
    error = nats_W.std(ddof=1) / np.sqrt(texts)
    bounds.append(OrdersBound(orders, float(nats_W.mean()), float(error)))
    orders *= 2
  return bounds

"""What strided generation costs in likelihood, and where in the text the cost arises.

Two things cost: the order (the strided order one token at a time, against left-to-right), and
independence (S tokens at once, against one at a time). By the chain rule a perfect model pays
nothing for an order. The first tokens of a stream are predicted without the text before them, and
cost more; but the last tokens of the stream before are predicted with that stream's beginning
known, and can win all of it back. What is not won back is the price of a junction.

Where streams begin matters: at the beginning of a word there is less to lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from armd_jax.data import documents
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.models.armd import ARMD
from armd_jax.models.params import Params
from armd_jax.order import GenerationOrder, one_by_one
from armd_jax.parallel import sharding

OFFSETS = 16  # tokens on either side of a junction that are measured one by one


def order_costs(
  model: ARMD,
  params: Params,
  windows_WxN: np.ndarray,
  streams: Sequence[int],
  mesh: Mesh,
  before: int | None = None,
) -> list[dict[str, Any]]:
  """The exact NLL of every S, and where it goes.

  Args:
    model, params: as trained.
    windows_WxN: held-out token ids.
    streams: stride counts.
    mesh: where the parameters are.
    before: a token behind which streams begin, at the nearest place to where they else would, if
      there is one within half a stream; None: streams are of equal length.
  Returns:
    A row per S, in nats per token, with standard errors over windows: nats, order_cost (one by one
    over left-to-right; also order_nats_per_junction, per text and each of its S - 1 junctions) and
    independence_cost (S at once over one by one). In nats per junction, starts and ends: what the
    order costs at the first tokens of a stream, and at the last ones before the next stream, in
    text order; and won_back, the share of the starts' sum that the ends win back (1 of a perfect
    model, negative where they cost as well). S = 1 has no junction: [], [] and None; S = N costs
    nothing, and its won_back is None, too.
  Raises:
    UserError: windows hold documents, whose junctions are not at one place.
  """
  if documents.are_marked(windows_WxN):
    raise UserError(
      'costs by the distance from a junction are those of windows that are full; take a run of '
      "config.data.packing = 'joined'"
    )
  batch_size, num_slots = 16 * sharding.batch_parts(mesh), model.config.num_slots
  score, rows_of_mesh = likelihood.scorer(model, mesh), sharding.batch_sharding(mesh)

  def nats_WxN(order: GenerationOrder) -> np.ndarray:
    """In text order, of an order for each window."""
    nll = []
    for first in range(0, len(windows_WxN), batch_size):
      index_B = np.minimum(first + np.arange(batch_size), len(windows_WxN) - 1)
      of_batch = GenerationOrder(order.position_BxN[index_B], order.block_BxN[index_B])
      given = windows_WxN[index_B].astype(np.int32), of_batch
      given = jax.tree.map(lambda x: sharding.put(np.asarray(x), rows_of_mesh), given)
      nll.append(np.asarray(score(params, *given), np.float64))
    slot_WxN = np.argsort(np.asarray(order.position_BxN), axis=1)
    nll_WxN = np.concatenate(nll)[: len(windows_WxN)]
    return np.take_along_axis(nll_WxN, slot_WxN, axis=1)

  error = lambda x_W: float(x_W.std(ddof=1) / len(x_W) ** 0.5) if len(x_W) > 1 else None
  texts_WxN = windows_WxN[:, -num_slots:]  # without a first token that is given
  base_WxN = nats_WxN(interleaved(_heads(texts_WxN, 1, None), num_slots))
  rows = []
  for count in streams:
    heads_WxS, both_WxN = _heads(texts_WxN, count, before), [base_WxN, base_WxN]
    if count > 1:
      order = interleaved(heads_WxS, num_slots)
      both_WxN = [nats_WxN(order), nats_WxN(one_by_one(order))]
    parallel_WxN, one_by_one_WxN = both_WxN
    order_WxN = one_by_one_WxN - base_WxN
    order_W, independence_W = order_WxN.mean(1), (parallel_WxN - one_by_one_WxN).mean(1)
    order_cost = float(order_W.mean())
    rows.append(
      {
        'streams': count,
        'nats': float(parallel_WxN.mean()),
        'order_cost': order_cost,
        'order_cost_error': error(order_W),
        'order_nats_per_junction': order_cost * num_slots / max(count - 1, 1),
        'independence_cost': float(independence_W.mean()),
        'independence_cost_error': error(independence_W),
        **_by_offset(order_WxN, heads_WxS),
      }
    )
  return rows


def _heads(texts_WxN: np.ndarray, streams: int, before: int | None) -> np.ndarray:
  """Where the streams of each text begin, int [W, S], from 0; see `order_costs`."""
  sizes_S = [len(run) for run in np.array_split(np.arange(texts_WxN.shape[1]), streams)]
  even_S = np.cumsum([0, *sizes_S[:-1]])
  heads_WxS = np.tile(even_S, (len(texts_WxN), 1))
  reach = (sizes_S[-1] - 1) // 2  # so that no two streams begin at one place
  if before is None or not reach:
    return heads_WxS
  for heads_S, text_N in zip(heads_WxS, texts_WxN, strict=True):
    places = 1 + np.flatnonzero(text_N[:-1] == before)
    for number, even in enumerate(even_S[1:], 1):
      near = places[np.abs(places - even) <= reach]
      if len(near):
        heads_S[number] = near[np.argmin(np.abs(near - even))]
  return heads_WxS


def interleaved(heads_WxS: np.ndarray, num_slots: int) -> GenerationOrder:
  """S streams of any lengths side by side: heads one by one, then the next token of each stream
  that has not ended, together. Equal to `order.strided` where lengths are equal.

  Args:
    heads_WxS: int, where each stream begins, from 0, which is the first one's.
    num_slots: N.
  """
  place_N, streams = np.arange(num_slots), heads_WxS.shape[1]
  run_WxN = np.sum(place_N >= heads_WxS[:, :, None], axis=1) - 1
  offset_WxN = place_N - np.take_along_axis(heads_WxS, run_WxN, axis=1)
  step_WxN = np.where(offset_WxN == 0, run_WxN, streams - 1 + offset_WxN)
  slot_WxN = np.argsort(step_WxN, axis=1, kind='stable')
  block_WxN = 1 + np.take_along_axis(step_WxN, slot_WxN, axis=1)
  return GenerationOrder((1 + slot_WxN).astype(np.int32), block_WxN.astype(np.int32))  # type: ignore[arg-type]


def _by_offset(order_WxN: np.ndarray, heads_WxS: np.ndarray) -> dict[str, Any]:
  """Means over windows and junctions: starts, ends and won_back of `order_costs`."""
  if heads_WxS.shape[1] == 1:
    return {'starts': [], 'ends': [], 'won_back': None}
  ends_WxS = np.append(heads_WxS[:, 1:], np.full((len(heads_WxS), 1), order_WxN.shape[1]), axis=1)
  shortest = int(np.min(ends_WxS - heads_WxS))
  near = max(1, min(OFFSETS, shortest // 2))
  at_WxJxD = heads_WxS[:, 1:, None] + np.arange(near)
  cost = lambda at_WxJxD: np.take_along_axis(order_WxN[:, None], at_WxJxD, axis=2).mean((0, 1))
  starts_D, ends_D = cost(at_WxJxD), cost(at_WxJxD - near)
  return {
    'starts': starts_D.tolist(),
    'ends': ends_D.tolist(),
    # N streams of a token are the order of the text, which costs nothing.
    'won_back': float(-ends_D.sum() / starts_D.sum()) if starts_D.any() else None,
  }

"""What strided generation costs in likelihood, and where in the text the cost arises.

Two things cost: the order (the strided order one token at a time, against left-to-right), and
independence (S tokens at once, against one at a time). By the chain rule a perfect model pays
nothing for an order. The first tokens of a stream are predicted without the text before them, and
cost more; but the last tokens of the stream before are predicted with that stream's beginning
known, and can win all of it back. What is not won back is the price of a junction.
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
from armd_jax.parallel import sharding

OFFSETS = 16  # tokens on either side of a junction that are measured one by one


def order_costs(
  model: ARMD, params: Params, windows_WxN: np.ndarray, streams: Sequence[int], mesh: Mesh
) -> list[dict[str, Any]]:
  """The exact NLL of every S, and where it goes.

  Args:
    model, params: as trained.
    windows_WxN: held-out token ids.
    streams: stride counts.
    mesh: where the parameters are.
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
  batch_size = 16 * sharding.batch_parts(mesh)
  num_slots = model.config.num_slots

  def nats_WxN(protocol):
    """In text order."""
    nll = likelihood.nll(model, params, windows_WxN, protocol, mesh, batch_size=batch_size)
    keys_1 = jax.random.split(jax.random.key(0), 1)  # of orders that are not drawn
    slot_N = np.argsort(np.asarray(protocol.order(num_slots, keys_1).position_BxN)[0])
    return np.concatenate([nll_BxN.astype(np.float64)[:, slot_N] for nll_BxN in nll])

  error = lambda x_W: float(x_W.std(ddof=1) / len(x_W) ** 0.5) if len(x_W) > 1 else None
  base_WxN = nats_WxN(likelihood.LEFT_TO_RIGHT)
  rows = []
  for count in streams:
    both_WxN = base_WxN, base_WxN
    if count > 1:
      both_WxN = tuple(map(nats_WxN, likelihood.strided_protocols(count)))
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
        **_by_offset(order_WxN, count),
      }
    )
  return rows


def _by_offset(order_WxN, streams):
  """Means over windows and junctions: starts, ends and won_back of `order_costs`."""
  if streams == 1:
    return {'starts': [], 'ends': [], 'won_back': None}
  # Streams differ by at most one token, the first ones being longer, as `array_split` has it.
  cost_S = np.array_split(order_WxN.mean(0), streams)
  near = max(1, min(OFFSETS, len(cost_S[-1]) // 2))
  starts_D = np.mean([cost_L[:near] for cost_L in cost_S[1:]], axis=0)
  ends_D = np.mean([cost_L[-near:] for cost_L in cost_S[:-1]], axis=0)
  return {
    'starts': starts_D.tolist(),
    'ends': ends_D.tolist(),
    # N streams of a token are the order of the text, which costs nothing.
    'won_back': float(-ends_D.sum() / starts_D.sum()) if starts_D.any() else None,
  }

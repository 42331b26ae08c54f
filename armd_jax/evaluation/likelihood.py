"""Likelihood of held-out text under named generation orders."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax import families
from armd_jax.config import ModelConfig, OrderConfig
from armd_jax.config_rules import check_streams
from armd_jax.data import documents
from armd_jax.errors import check_seed
from armd_jax.models.ar import AR
from armd_jax.models.armd import ARMD
from armd_jax.models.denoiser import Denoiser
from armd_jax.models.params import Params
from armd_jax.objectives import armd
from armd_jax.order import (
  GenerationOrder,
  given_first,
  left_to_right,
  one_by_one,
  shuffled,
  strided,
  uniform,
  with_given,
)
from armd_jax.parallel import axes, sharding

Array = jax.Array


AHEAD = 2  # batches that the device has before it while the host reads the one behind
TIMES = 8  # per window, at which a diffusion baseline's bound is estimated


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way to measure likelihood; numbers of different kinds do not compare.

  Attributes:
    name: printed beside the number.
    kind: 'exact', the log-likelihood of a proper distribution over texts; or 'bound', an average
      over random orders, which bounds the likelihood of an any-order model from below.
    streams: S of a strided order; 0 for random orders.
    parallel: S tokens at a time, or the same order one token at a time.
    num_shuffled: tokens permuted in a random order; 0: all of them.
    shuffle_mode: how they are chosen, see `order.shuffled`.
    is_denoising: the bound is the family's own, not one over orders.
  """

  name: str
  kind: str
  streams: int
  parallel: bool = True
  num_shuffled: int = 0
  shuffle_mode: str = 'scatter'
  is_denoising: bool = False

  def order(
    self, num_slots: int, keys_B: Array, document: armd.Document | None = None
  ) -> GenerationOrder:
    """The orders of a batch, `[B, N]`; see `armd.training_order` for documents."""
    order = self._order(num_slots, keys_B, document)
    return order if document is None else with_given(order, *document)

  def _order(
    self, num_slots: int, keys_B: Array, document: armd.Document | None
  ) -> GenerationOrder:
    if self.streams == 0 and self.num_shuffled:
      return shuffled(keys_B, num_slots, self.num_shuffled, self.shuffle_mode)
    if self.streams == 0:
      return uniform(keys_B, num_slots)
    if self.streams == 1:
      order = left_to_right(num_slots)
    elif document is None:
      order = strided(num_slots, self.streams)
    else:
      order = given_first(*document, self.streams)
    order = order if self.parallel else one_by_one(order)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (keys_B.shape[0], num_slots)), order)


LEFT_TO_RIGHT = Protocol('left-to-right', 'exact', 1)
UNIFORM = Protocol('uniform orders', 'bound', 0)
DENOISING = Protocol('denoising, random orders', 'bound', 0, is_denoising=True)


def strided_protocols(streams: int) -> tuple[Protocol, Protocol]:
  """Strided S in parallel groups, and the same order one by one (method: order cost against
  independence cost)."""
  return (
    Protocol(f'strided S={streams}, parallel', 'exact', streams),
    Protocol(f'strided S={streams}, one by one', 'exact', streams, parallel=False),
  )


def shuffled_protocol(config: OrderConfig) -> Protocol:
  """The orders of a run's last base steps: rho tokens shuffled among left-to-right ones."""
  name = f'rho={config.max_shuffled} shuffled'
  return Protocol(name, 'bound', 0, num_shuffled=config.max_shuffled, shuffle_mode=config.perm_mode)


def standard_suite(config: ModelConfig, streams: Sequence[int]) -> list[Protocol]:
  """A family's own bound, if it has one; left-to-right, if it predicts along orders; strided for
  every S > 1 both ways, and uniform orders, if along any.

  Raises:
    UserError: an S is more than the tokens.
  """
  suite = [DENOISING] if families.of(config).bound else []
  suite += [LEFT_TO_RIGHT] if config.orders != 'none' else []
  if config.orders != 'any':
    return suite
  for count in streams:
    check_streams(count, config.num_slots, '--streams')
    if count > 1:
      suite += strided_protocols(count)
  return [*suite, UNIFORM]


def nll(
  model: ARMD | AR | Denoiser,
  params: Params,
  windows_WxN: np.ndarray,
  protocol: Protocol,
  mesh: Mesh,
  *,
  batch_size: int,
  seed: int = 0,
  orders: int = 1,
  start: int = 0,
) -> Iterator[np.ndarray]:
  """Negative log-likelihood of every scored token, batch by batch.

  Args:
    model, params: as trained.
    windows_WxN: token ids in text order, with marks (`data.documents`) or without.
    protocol: how to measure.
    mesh: where; `batch_size` is a multiple of its data-parallel size.
    batch_size: windows per call; the last batch is filled up, and what fills it left out.
    seed: of random orders; window w's k-th order depends on (seed, w, k) alone.
    orders: K, how many times all windows are gone through.
    start: windows to leave out, at the beginning of the K W.
  Yields:
    nll_BxN: float32 nats per slot, in generation order, 0 of those that are not scored; of a
      diffusion baseline, each sequence's bound spread evenly over its scored slots.
  """
  is_bound = protocol.is_denoising
  score = (_score_bound if is_bound else scorer)(model, mesh)
  rows = sharding.batch_sharding(mesh)
  check_seed(seed)
  total = orders * len(windows_WxN)
  drawn_I, window_I = np.divmod(np.arange(total), len(windows_WxN))
  keys_I = order_keys(seed, window_I, drawn_I)
  order = functools.partial(protocol.order, model.config.num_slots)
  keyed = lambda keys_B, *document: (jax.random.key_data(keys_B), *document)
  make = jax.jit(keyed if is_bound else order)
  is_marked, slots = documents.are_marked(windows_WxN), model.config.num_slots

  def asked_for():
    for first in range(start, total, batch_size):
      index_B = np.minimum(first + np.arange(batch_size), total - 1)
      text_BxN = windows_WxN[window_I[index_B]].astype(np.int32)
      read, document = documents.read(text_BxN), ()
      if is_marked:
        document = ((read.is_given_BxN[:, -slots:], read.is_real_BxN[:, -slots:].sum(axis=1)),)
      yield min(batch_size, total - first), read, make(keys_I[index_B], *document)

  def dispatched():
    # The host lays orders out over the processes, so they are made before the scores in front.
    for count, read, how in pulled_ahead(asked_for(), AHEAD + 1):
      how, is_scored_BxN = jax.tree.map(np.asarray, how), None
      if is_marked:
        is_scored_BxN = read.is_scored_BxN[:, -slots:]
      if is_marked and not is_bound:
        is_scored_BxN = np.take_along_axis(is_scored_BxN, how.position_BxN - 1, axis=1)
      text_BxN, how = jax.tree.map(lambda x: sharding.put(x, rows), (read.ids_BxN, how))
      yield score(params, text_BxN, how), is_scored_BxN, count

  for nll_BxN, is_scored_BxN, count in pulled_ahead(dispatched(), AHEAD):
    nll_BxN = np.asarray(nll_BxN)
    yield (nll_BxN if is_scored_BxN is None else np.where(is_scored_BxN, nll_BxN, 0))[:count]


def order_keys(seed: int, window_I: np.ndarray, drawn_I: np.ndarray) -> Array:
  """Keys `[I]` of random orders: of the windows with these numbers, the `drawn_I`-th of each."""
  fold = jax.random.fold_in
  key = jax.random.key(np.uint32(seed))
  return jax.vmap(lambda window, drawn: fold(fold(key, window), drawn))(window_I, drawn_I)


def pulled_ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
  """The items, each yielded after `count` more have been started: a device that works on those
  does not wait for the host."""
  waiting: collections.deque[Any] = collections.deque()
  for item in items:
    waiting.append(item)
    if len(waiting) > count:
      yield waiting.popleft()
  yield from waiting


@functools.lru_cache(maxsize=8)
def scorer(model, mesh):
  """The compiled forward pass: a function of parameters, text_BxN and an order `[B, N]`, both over
  the mesh. One program serves every order, since orders are data."""

  def score(params: Params, text_BxN: Array, order: GenerationOrder) -> Array:
    weights_BxN = jnp.zeros(order.position_BxN.shape, jnp.float32)
    with axes.on(mesh):
      _, nll_BxN = armd.nll(model, params, text_BxN, order, weights_BxN, loss_chunk=64)
    return nll_BxN

  rows = sharding.batch_sharding(mesh)
  return jax.jit(score, in_shardings=(None, rows, rows), out_shardings=sharding.replicated(mesh))


@functools.lru_cache(maxsize=8)
def _score_bound(model, mesh):
  """`scorer` of a family's own bound, which takes the data of a key per sequence in place of an
  order, and what is given of each and how long it is, if texts have marks."""
  bound = families.of(model.config).bound

  def score(params: Params, text_BxN: Array, how: tuple[Array, ...]) -> Array:
    key_data_Bx2, *documents = how
    document, slots = documents[0] if documents else None, model.config.num_slots
    keys_B, settings = jax.random.wrap_key_data(key_data_Bx2), model.config.diffusion
    with axes.on(mesh):
      nats_B = bound(
        model, params, text_BxN, keys_B, settings, samples=TIMES, loss_chunk=64, document=document
      )
    is_scored_BxN = jnp.ones((len(nats_B), slots), bool)
    if document is not None:
      is_given_BxN, length_B = document
      is_scored_BxN = ~is_given_BxN & (jnp.arange(slots) < length_B[:, None])
    count_B = jnp.maximum(jnp.sum(is_scored_BxN, axis=1), 1)
    return is_scored_BxN * (nats_B / count_B)[:, None]

  rows = sharding.batch_sharding(mesh)
  return jax.jit(score, in_shardings=(None, rows, rows), out_shardings=sharding.replicated(mesh))


def mean_nats(
  nll_batches: Iterator[np.ndarray], num_scored: int | None = None
) -> tuple[float, int]:
  """(nats per token, tokens) of what `nll` yields; summed in float64.

  Args:
    nll_batches: of `nll`.
    num_scored: tokens, of windows with marks; None: as many as there are slots.
  """
  total, count = 0.0, 0
  for nll_BxN in nll_batches:
    total += float(nll_BxN.sum(dtype=np.float64))
    count += nll_BxN.size
  count = count if num_scored is None else num_scored
  return total / count, count

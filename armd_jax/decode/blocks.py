"""Samplers of BD3-LM: block after block, from left to right, in one compiled loop.

At every step of a block some of its masked tokens are revealed, as tokens that the network draws:

  first_hitting   ceil(L' / K) of them, chosen evenly; one at a time, for K = L', it is the exact
                  sampler of the process, without its steps that change nothing (section 6.2, after
                  Zheng et al. 2024)
  ancestral       each with probability 1 / (K - i) in step i = 0..K-1: the posterior of L' masked
                  tokens whose share falls linearly, (t - s) / t

A block's first pass also runs the clean tokens of the block before it, whose keys and values are
then cached: the cache grows by a block where the block is done, and the passes are no more than
those that predict. The network runs where something has changed since it did.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from armd_jax.decode.diffusion import Denoised, draw_slots
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Form
from armd_jax.decode.sampling import Draws, slot_keys
from armd_jax.decode.state import Request, whole_room
from armd_jax.models.denoiser import MASK
from armd_jax.models.params import Params
from armd_jax.models.set_denoiser import SetDenoiser, SetRows
from armd_jax.parallel import axes

Array = jax.Array


@flax.struct.dataclass
class Plan:
  """How a sampler runs; compiled programs depend on all of it but the number of steps.

  Attributes:
    steps: K, of a block.
    is_ancestral: which sampler, see the top of this module.
    mesh: where the parameters are, which shares the batch; None: on one device.
  """

  steps: int | Array
  is_ancestral: bool = flax.struct.field(pytree_node=False, default=False)
  mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)


@functools.partial(jax.jit, static_argnames='model')
def sample(
  model: SetDenoiser, plan: Plan, params: Params, request: Request, draws: Draws
) -> Denoised:
  """`diffusion.generate`, of arrays that are laid out already."""
  with axes.on(plan.mesh):
    network: Any = Network.of(model, params, Form())  # type: ignore[arg-type]
    generated = block_by_block(network.model, plan, network.params, request, draws)
    return jax.tree.map(lambda x: axes.constrain(x, *[None] * x.ndim), generated)


def block_by_block(
  model: Any, plan: Plan, params: Params, request: Request, draws: Draws
) -> Denoised:
  """The same, of a network whose layers are unrolled.

  No token that is given may have one that is missing in an earlier block.
  """
  length, batch = model.config.set_length, len(request.length_B)
  given = 0 if request.first_B is None else 1
  rows = request.tokens_BxN.shape[1] + given
  is_real_BxN = jnp.arange(rows - given) < request.length_B[:, None]
  is_given_BxN = request.given_BxN & is_real_BxN
  # As in training, what is not there is masked, behind the end of a text, too.
  ids_BxK = jnp.where(is_given_BxN, request.tokens_BxN, MASK)
  missing_BxK = jnp.pad(is_real_BxN & ~is_given_BxN, ((0, 0), (given, 0)))
  if request.first_B is not None:
    ids_BxK = jnp.append(request.first_B[:, None], ids_BxK, axis=1)

  reveal_key, draw_key = jax.random.split(jax.random.key(draws.seed))
  slot_keys_BxK = slot_keys(draw_key, draws.sequence_B, jnp.arange(rows)[None] - given)
  reveal_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(reveal_key, draws.sequence_B)
  part = lambda x, block: jax.lax.dynamic_slice_in_dim(x, block * length, length, axis=1)
  put = lambda x, new, block: jax.lax.dynamic_update_slice_in_dim(x, new, block * length, axis=1)

  def run(*args: Any) -> Any:
    return model.apply({'params': params}, *args, method='extend')

  def rows_of(ids_BxK: Array, block: Array, seen: Array) -> SetRows:
    """A block's rows, which see so many blocks of clean ones."""
    position_1xL = (block * length + jnp.arange(length) + 1 - given)[None]
    return SetRows(part(ids_BxK, block), position_1xL, jnp.full((1, length), seen * length))

  def predict(hidden_BxLxE: Array, missing_BxK: Array, block: Array) -> tuple[Array, Array]:
    left_B = jnp.sum(part(missing_BxK, block), axis=1)
    keys_BxL = part(slot_keys_BxK, block)
    return draw_slots(model, params, hidden_BxLxE, keys_BxL, left_B, draws)[:2]

  def step(caches: Any, block: Array, state: tuple[Any, ...]) -> tuple[Any, ...]:
    index, ids_BxK, missing_BxK, appeared_BxK, predicted, is_new, runs, margin_B = state

    def again() -> tuple[Array, Array]:
      hidden_BxLxE, _ = run(None, rows_of(ids_BxK, block, block), caches)
      return predict(hidden_BxLxE, missing_BxK, block)

    # An ancestral step may reveal nothing; the network would then say what it said before.
    predicted, runs = jax.lax.cond(is_new, again, lambda: predicted), runs + is_new
    drawn_BxL, gap_BxL = predicted
    is_missing_BxL = part(missing_BxK, block)
    fold = jax.vmap(jax.random.fold_in, (0, None))
    keys_B = fold(fold(reveal_keys_B, block), index)
    u_BxL = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys_B)
    if plan.is_ancestral:
      is_revealed_BxL = u_BxL * (plan.steps - index) < 1
    else:
      # argsort of a permutation is its inverse: the rank of each.
      order_BxL = jnp.argsort(jnp.where(is_missing_BxL, u_BxL, 2), axis=1)
      is_revealed_BxL = jnp.argsort(order_BxL, axis=1) < -(-length // plan.steps)
    is_revealed_BxL &= is_missing_BxL
    change = lambda x, new: put(x, jnp.where(is_revealed_BxL, new, part(x, block)), block)
    gap_B = jnp.min(jnp.where(is_revealed_BxL, gap_BxL, jnp.inf), axis=1)
    # `appeared` counts passes of the network: what a replay shows is what was waited for.
    return (
      index + 1,
      change(ids_BxK, drawn_BxL),
      change(missing_BxK, False),
      change(appeared_BxK, runs),
      predicted,
      jnp.any(is_revealed_BxL),
      runs,
      jnp.minimum(margin_B, gap_B),
    )

  def one_block(state: tuple[Any, ...]) -> tuple[Any, ...]:
    block, caches, ids_BxK, missing_BxK, appeared_BxK, runs, margin_B = state
    # Nobody sees what the first block, which has none before it, caches in its own place.
    before = jnp.maximum(block - 1, 0)
    offset_1 = (before * length)[None]
    clean, noised = rows_of(ids_BxK, before, before + 1), rows_of(ids_BxK, block, block)
    hidden_BxLxE, caches = run(clean, noised, caches, offset_1)
    predicted = predict(hidden_BxLxE, missing_BxK, block)
    inner: Any = (jnp.int32(0), ids_BxK, missing_BxK, appeared_BxK, predicted, jnp.bool_(False))
    inner = jax.lax.while_loop(
      lambda inner: jnp.any(part(inner[2], block)),
      functools.partial(step, caches, block),
      (*inner, runs + 1, margin_B),
    )
    _, ids_BxK, missing_BxK, appeared_BxK, _, _, runs, margin_B = inner
    return block + 1, caches, ids_BxK, missing_BxK, appeared_BxK, runs, margin_B

  # Blocks that are given whole need no steps, only their clean rows in the cache; the one before
  # `first` is run with it.
  first = (jnp.argmax(jnp.any(missing_BxK, axis=0)) // length).astype(jnp.int32)
  caches = model.apply({'params': params}, batch, whole_room(rows, length), method='empty_caches')
  row_1xK = jnp.arange(rows)[None]
  whole = SetRows(ids_BxK, row_1xK + 1 - given, (row_1xK // length + 1) * length)
  prefill = lambda: run(whole, None, caches, jnp.zeros(1, jnp.int32))[1]
  caches = jax.lax.cond(first > 1, prefill, lambda: caches)
  never_BxK = jnp.zeros_like(ids_BxK)
  margin_B = jnp.full(batch, jnp.inf)
  state = (first, caches, ids_BxK, missing_BxK, never_BxK, jnp.int32(0), margin_B)
  state = jax.lax.while_loop(lambda state: jnp.any(state[3]), one_block, state)
  _, _, ids_BxK, _, appeared_BxK, runs, margin_B = state
  text_BxN = jnp.where(is_real_BxN, ids_BxK[:, given:], 0)
  return Denoised(text_BxN, request.length_B, runs, margin_B, appeared_BxK[:, given:])

"""The sampler of SetDLM: sets of an order that its policy draws, with a cache of every step.

A step runs two kinds of rows at once: the clean tokens of the set before, whose keys and values go
into the cache, and the masks of the next set, which are predicted from the cache and revealed
together. With one token a set this is the exact sampler of the policy (the released code's decoding
along first-hitting times); its windows by confidence are not here.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from armd_jax.config import DiffusionConfig
from armd_jax.decode.diffusion import Denoised, draw_slots
from armd_jax.decode.network import Network
from armd_jax.decode.plan import Form
from armd_jax.decode.sampling import Draws, slot_keys
from armd_jax.decode.state import Request, whole_room
from armd_jax.models.denoiser import MASK
from armd_jax.models.params import Params
from armd_jax.models.set_denoiser import OrderedSetDenoiser, SetRows
from armd_jax.objectives.setdlm import draw_order
from armd_jax.order import with_given
from armd_jax.parallel import axes

Array = jax.Array


@flax.struct.dataclass
class Plan:
  """What compiled programs depend on.

  Attributes:
    width: S, tokens of a set.
    settings: the policy.
    mesh: where the parameters are, which shares the batch; None: on one device.
  """

  width: int = flax.struct.field(pytree_node=False)
  settings: DiffusionConfig = flax.struct.field(pytree_node=False)
  mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)


@functools.partial(jax.jit, static_argnames='model')
def sample(
  model: OrderedSetDenoiser, plan: Plan, params: Params, request: Request, draws: Draws
) -> Denoised:
  """`diffusion.generate`, of arrays that are laid out already."""
  with axes.on(plan.mesh):
    network: Any = Network.of(model, params, Form())  # type: ignore[arg-type]
    generated = set_by_set(network.model, plan, network.params, request, draws)
    return jax.tree.map(lambda x: axes.constrain(x, *[None] * x.ndim), generated)


def set_by_set(model: Any, plan: Plan, params: Params, request: Request, draws: Draws) -> Denoised:
  """The same, of a network whose layers are unrolled."""
  batch, slots = request.tokens_BxN.shape
  width, given = plan.width, 0 if request.first_B is None else 1
  is_real_BxN = jnp.arange(slots) < request.length_B[:, None]
  is_given_BxN = request.given_BxN & is_real_BxN
  order_key, draw_key = jax.random.split(jax.random.key(draws.seed))
  # From the index of a sequence, not its place in the batch: a sample is the same in any batch.
  keys_B = jax.vmap(jax.random.fold_in, (None, 0))(order_key, draws.sequence_B)
  order = draw_order(plan.settings, keys_B, slots)
  order = with_given(order, is_given_BxN, request.length_B)
  ids_BxN = jnp.take_along_axis(request.tokens_BxN, order.position_BxN - 1, axis=1)
  # In the order, behind the first token if one is given, with room for a set that is not full.
  pad = lambda x, before: jnp.pad(x, ((0, 0), (given, width)), constant_values=before)
  position_BxM = pad(order.position_BxN, 0)
  slot_keys_BxN = slot_keys(draw_key, draws.sequence_B, order.position_BxN - 1)
  start_B = given + jnp.sum(is_given_BxN, axis=1)
  end_B = given + request.length_B
  place_1xM = jnp.arange(slots + given + width)[None]
  ids_BxM = jnp.where(place_1xM < start_B[:, None], pad(ids_BxN, MASK), MASK)
  if request.first_B is not None:
    ids_BxM = ids_BxM.at[:, 0].set(request.first_B)

  def part(x_BxM: Array, at_B: Array) -> Array:
    return jnp.take_along_axis(x_BxM, at_B[:, None] + jnp.arange(width), axis=1)

  def run(*args: Any) -> Any:
    return model.apply({'params': params}, *args, method='extend')

  def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
    steps, caches, ids_BxM, appeared_BxM, margin_B = state
    at_B = start_B + steps * width
    at_B = jnp.minimum(at_B, slots + given)  # where nothing is left
    # At first these are the last given tokens, once more, and rows that nobody sees.
    before_B = jnp.maximum(at_B - width, 0)
    row_BxW = before_B[:, None] + jnp.arange(width)
    clean = SetRows(part(ids_BxM, before_B), part(position_BxM, before_B), row_BxW + 1)
    masks_BxW = jnp.full((batch, width), MASK)
    # The tokens of a set are independent: what its masks see of each other holds no token.
    seen_BxW = jnp.broadcast_to(at_B[:, None], (batch, width))
    noised = SetRows(masks_BxW, part(position_BxM, at_B), seen_BxW)
    hidden_BxWxE, caches = run(clean, noised, caches, before_B)
    keys_BxW = jnp.take_along_axis(
      slot_keys_BxN, jnp.minimum(at_B[:, None] - given + jnp.arange(width), slots - 1), axis=1
    )
    drawn_BxW, gap_BxW, _ = draw_slots(
      model, params, hidden_BxWxE, keys_BxW, jnp.zeros(batch, jnp.int32), draws
    )
    is_new_BxW = at_B[:, None] + jnp.arange(width) < end_B[:, None]
    sequence_Bx1 = jnp.arange(batch)[:, None]
    where = sequence_Bx1, at_B[:, None] + jnp.arange(width)
    ids_BxM = ids_BxM.at[where].set(jnp.where(is_new_BxW, drawn_BxW, part(ids_BxM, at_B)))
    appeared_BxM = appeared_BxM.at[where].set(
      jnp.where(is_new_BxW, steps + 1, part(appeared_BxM, at_B))
    )
    gap_B = jnp.min(jnp.where(is_new_BxW, gap_BxW, jnp.inf), axis=1)
    return steps + 1, caches, ids_BxM, appeared_BxM, jnp.minimum(margin_B, gap_B)

  room = whole_room(slots + given + width, width)
  caches = model.apply({'params': params}, batch, room, method='empty_caches')
  count = slots + given
  whole = SetRows(ids_BxM[:, :count], position_BxM[:, :count], place_1xM[:, :count] + 1)
  prefill = lambda: run(whole, None, caches, jnp.zeros(1, jnp.int32))[1]
  # A set before the first step's is run with it.
  caches = jax.lax.cond(jnp.any(start_B > width), prefill, lambda: caches)
  state = (jnp.int32(0), caches, ids_BxM, jnp.zeros_like(ids_BxM), jnp.full(batch, jnp.inf))
  more = lambda state: jnp.any(start_B + state[0] * width < end_B)
  steps, _, ids_BxM, appeared_BxM, margin_B = jax.lax.while_loop(more, step, state)
  to_text_BxN = jnp.argsort(order.position_BxN, axis=1)  # the inverse of a permutation
  text = lambda x_BxM: jnp.take_along_axis(x_BxM[:, given : given + slots], to_text_BxN, axis=1)
  text_BxN = jnp.where(is_real_BxN, text(ids_BxM), 0)
  return Denoised(text_BxN, request.length_B, steps, margin_B, text(appeared_BxM))

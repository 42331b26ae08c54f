"""Samplers of the masked-diffusion baselines, in one compiled loop.

All of them go through times 1 = t_0 > t_1 > ... > t_K = 0 and, in step i, reveal each masked token
with some probability, as a draw from the network's output at t_i. Families differ in that
probability:

  ancestral, tweedie   (alpha_s - alpha_t) / (1 - alpha_t), from t to s: the exact posterior
                       (MDLM, D3PM, RADD; in scores it is SEDD's Tweedie tau-leaping, theorem 4.2)
  euler                dt times the rate -alpha' / (1 - alpha) (SEDD section 4, RADD: tau-leaping)

SEDD's scores are not normalised, and their sum multiplies it. The last step reveals all.
Which token a slot becomes is drawn when the network runs and used when the slot is revealed. Until
some slot of the batch is, a network without a noise input would compute the same, so it is not
run (MDLM's caching, section 4; RADD's E-NFEs): that changes the cost and not the distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from armd_jax.config import DiffusionConfig
from armd_jax.decode.sampling import Draws, Sampling, draw, slot_keys
from armd_jax.decode.state import Request
from armd_jax.decode.step import Generated
from armd_jax.models.denoiser import MASK, Denoiser
from armd_jax.models.params import Params
from armd_jax.objectives.diffusion import MaskedDiffusion
from armd_jax.parallel import axes, sharding

Array = jax.Array

LOGITS_AT_ONCE = 64  # slots of every sequence whose logits exist at once


@flax.struct.dataclass
class Denoised(Generated):
  """A generated batch; `steps` counts how often the network ran.

  Attributes:
    step_BxN: int32, after which of these runs, from 1, each token appeared; 0 where it did not.
  """

  step_BxN: Array


@flax.struct.dataclass
class Plan:
  """How a sampler runs; compiled programs depend on all of it but the number of steps.

  Attributes:
    method: its schedule, and what the network reads.
    settings: of the process.
    steps: K; texts of more tokens than steps get several in one step.
    is_euler: whether slots are revealed at the rate of the process.
    mesh: where the parameters are, which shares the batch; None: on one device.
  """

  method: MaskedDiffusion = flax.struct.field(pytree_node=False)
  settings: DiffusionConfig = flax.struct.field(pytree_node=False)
  steps: int | Array
  is_euler: bool = flax.struct.field(pytree_node=False)
  mesh: Mesh | None = flax.struct.field(pytree_node=False, default=None)


def plan_of(
  method: MaskedDiffusion, model: Denoiser, steps: int, sampler: str, mesh: Mesh | None = None
) -> Plan:
  """The plan of a sampler: 'ancestral', 'tweedie' or 'euler', see the top of this module."""
  return Plan(method, model.config.diffusion, steps, sampler == 'euler', mesh)


def generate(
  model: Denoiser,
  params: Params,
  request: Request,
  sampling: Sampling,
  plan: Any,
  sequence_B: np.ndarray | None = None,
  run: Callable[..., Denoised] | None = None,
) -> Denoised:
  """Fills in what is not given.

  Args:
    model, params: as trained.
    request: what is given.
    sampling: of the draw of a token, see `sampling.draw`; when slots are revealed does not depend
      on temperature and top_p. Draws depend on (seed, sequence index) alone, never on the batch.
      Its `stop` is not read.
    plan: of the sampler. Every process of its mesh calls with the same arguments, and gets the
      result.
    sequence_B: int, index of each sequence among all that are generated; 0.. if None.
    run: another module's `sample`, of its own plans.
  Returns:
    The texts, and when the network ran for each token.
  """
  batch = len(request.tokens_BxN)
  draws = sampling.draws(batch, sequence_B)
  ids = lambda x: x.astype(np.int32)
  request = request.replace(tokens_BxN=ids(request.tokens_BxN), length_B=ids(request.length_B))
  if plan.mesh is not None:
    where = sharding.batch_sharding(plan.mesh)
    put = lambda x: sharding.put(sharding.filled_up(x, plan.mesh), where)
    request, draws = jax.tree.map(put, request), draws.replace(sequence_B=put(draws.sequence_B))
  generated = (run or sample)(model, plan, params, request, draws)
  return jax.tree.map(lambda x: x[:batch] if x.ndim else x, generated)


@functools.partial(jax.jit, static_argnames='model')
def sample(model: Denoiser, plan: Plan, params: Params, request: Request, draws: Draws) -> Denoised:
  """`generate`, of arrays that are laid out already."""
  with axes.on(plan.mesh):
    generated = _sample(model, plan, params, request, draws)
    return jax.tree.map(lambda x: axes.constrain(x, *[None] * x.ndim), generated)


def draw_slots(
  model: Any, params: Params, hidden_BxWxE: Array, keys_BxW: Array, left_B: Array, draws: Draws
) -> tuple[Array, Array, Array]:
  """What every slot would become.

  Args:
    model, params: whose `logits` are drawn from.
    hidden_BxWxE: rows of the slots.
    keys_BxW: of the slots.
    left_B: int32, masked tokens that are left. What is drawn and not used may be drawn again: a
      sequence's draws follow its own changes, so that those of others, which make the network run,
      do not matter.
    draws: temperature and top_p.
  Returns:
    int32 tokens_BxW; how close a decision each was, see `sampling.draw`; and the log of what its
    scores sum to, over their due.
  """
  keys_BxW = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)))(keys_BxW, left_B)

  def draw_slot(slot: tuple[Array, Array]) -> tuple[Array, Array, Array]:
    hidden_BxE, keys_B = slot
    logits_BxV: Any = model.apply({'params': params}, hidden_BxE, method='logits')
    how = draws.temperature, draws.top_p
    drawn_Bx1, gap_Bx1 = draw(keys_B[:, None], logits_BxV[:, None], *how)
    excess_B = jax.nn.logsumexp(logits_BxV, axis=-1) - math.log(model.vocab_size)
    return drawn_Bx1[:, 0], gap_Bx1[:, 0], excess_B

  slots = (jnp.moveaxis(hidden_BxWxE, 1, 0), jnp.moveaxis(keys_BxW, 1, 0))
  return jax.tree.map(jnp.transpose, jax.lax.map(draw_slot, slots, batch_size=LOGITS_AT_ONCE))


def _sample(
  model: Denoiser, plan: Plan, params: Params, request: Request, draws: Draws
) -> Denoised:
  settings, steps, length_B = plan.settings, plan.steps, request.length_B
  batch, num_slots = request.tokens_BxN.shape
  method = plan.method
  reads_noise = method.noise(settings, jnp.ones(batch)) is not None
  process = method.schedule(settings)
  is_real_BxN = jnp.arange(num_slots) < length_B[:, None]
  text_BxN = jnp.where(is_real_BxN, request.tokens_BxN, 0)
  text_BxN = jnp.where(is_real_BxN & ~request.given_BxN, MASK, text_BxN)
  reveal_key, draw_key = jax.random.split(jax.random.key(draws.seed))
  slot_keys_BxN = slot_keys(draw_key, draws.sequence_B, jnp.arange(num_slots)[None])
  reveal_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(reveal_key, draws.sequence_B)

  def run(text_BxN: Array, t: Array) -> tuple[Array, Array, Array]:
    """What every slot would become, how close a decision that was, and the log of what its scores
    sum to, over their due."""
    noise_B = method.noise(settings, jnp.full(batch, t)) if reads_noise else None
    hidden_BxNxE: Any = model.apply(
      {'params': params}, text_BxN, noise_B, request.first_B, length_B
    )
    left_B = jnp.sum(text_BxN == MASK, axis=1)
    return draw_slots(model, params, hidden_BxNxE, slot_keys_BxN, left_B, draws)

  def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
    step, text_BxN, appeared_BxN, predicted, is_new, runs, margin_B = state
    t, s = (steps - step) / steps, (steps - step - 1) / steps
    if reads_noise:
      predicted, runs = run(text_BxN, t), runs + 1
    else:
      predicted = jax.lax.cond(is_new, lambda: run(text_BxN, t), lambda: predicted)
      runs += is_new
    drawn_BxN, gap_BxN, excess_BxN = predicted
    if plan.is_euler:
      probability = (t - s) * process.rate(t) / process.masked(t)
    else:
      probability = 1 - process.masked(s) / process.masked(t)
    if method.kind == 'score_entropy':
      probability *= jnp.exp(excess_BxN)
    # Rates are finite: without this a slot may be left masked (SEDD's denoising step).
    probability = jnp.where(step == steps - 1, 1.0, probability)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(reveal_keys_B, step)
    u_BxN = jax.vmap(lambda key: jax.random.uniform(key, (num_slots,)))(keys_B)
    is_revealed_BxN = (text_BxN == MASK) & (u_BxN < probability)
    # Drawn without regard to when: whether a slot is revealed does not depend on its token.
    text_BxN = jnp.where(is_revealed_BxN, drawn_BxN, text_BxN)
    appeared_BxN = jnp.where(is_revealed_BxN, runs, appeared_BxN)
    gap_B = jnp.min(jnp.where(is_revealed_BxN, gap_BxN, jnp.inf), axis=1)
    margin_B = jnp.minimum(margin_B, gap_B)
    is_new = jnp.any(is_revealed_BxN)
    return step + 1, text_BxN, appeared_BxN, predicted, is_new, runs, margin_B

  zeros_BxN = jnp.zeros((batch, num_slots))
  never_BxN = zeros_BxN.astype(jnp.int32)
  predicted = (never_BxN, zeros_BxN, zeros_BxN)
  margin_B = jnp.full(batch, jnp.inf)
  zero = jnp.int32(0)
  state = (zero, text_BxN, never_BxN, predicted, jnp.bool_(True), zero, margin_B)
  more = lambda state: (state[0] < steps) & jnp.any(state[1] == MASK)
  _, text_BxN, appeared_BxN, _, _, runs, margin_B = jax.lax.while_loop(more, body, state)
  return Denoised(text_BxN, length_B, runs, margin_B, appeared_BxN)

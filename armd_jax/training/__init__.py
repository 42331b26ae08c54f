"""The training state and its one jitted step."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from armd_jax import config as config_lib
from armd_jax import families, models
from armd_jax.config import Config, OptimizerConfig
from armd_jax.data import documents
from armd_jax.families.family import Draws
from armd_jax.models.params import Params
from armd_jax.objectives import armd
from armd_jax.order import progressive_budget
from armd_jax.parallel import axes, sharding
from armd_jax.training import adapters, by_layer, optimizers

Array = jax.Array


@flax.struct.dataclass
class TrainState:
  """All that training changes, and all that a checkpoint holds.

  Attributes:
    step: int32 scalar, steps done.
    skipped: int32 scalar, how many of them changed nothing else, since the loss, the gradient or
      what they would have led to was not finite.
    params: float32; with those of adapters, see `adapters`.
    ema: float32, exponential moving average of those that are trained; see `network_params`.
    opt_state: optax state of those that are trained.
  """

  step: Array
  skipped: Array
  params: Params
  ema: Any
  opt_state: Any


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """Clip by global norm, AdamW, linear warm-up to a constant rate (recipe of SEDD and MDLM), or
  another optimizer or schedule.

  Weights decay in the matrices of the layers alone: not in norms, biases and embeddings.
  """
  moved = optax.chain(
    optimizers.direction(config),
    decayed_kernels(config.weight_decay),
    optax.scale_by_learning_rate(learning_rate_at(config)),
  )
  clip = optax.clip_by_global_norm(config.clip_norm)
  return optax.chain(recent_norms(), clip, moved) if config.skip_above else optax.chain(clip, moved)


class RecentNorms(NamedTuple):
  """float32 [K], norms of the gradients of the latest steps that were taken; NaN: none yet."""

  norms: Array


def recent_norms(count: int = 64) -> optax.GradientTransformation:
  """Changes no update, and keeps the norms of the latest `count` gradients; see `is_blow_up`."""

  def update(gradients: Params, state: RecentNorms, params: Any = None) -> Any:
    del params
    norm = optax.tree.norm(gradients)
    return gradients, RecentNorms(jnp.append(state.norms[1:], norm))

  return optax.GradientTransformation(lambda _: RecentNorms(jnp.full(count, jnp.nan)), update)


def taken_over(
  config: Config, other: OptimizerConfig, state: TrainState, vocab_size: int, mesh: Mesh
) -> TrainState:
  """The state of another run, with this config's optimizer at its place of the schedule.

  Args:
    config: of the run that continues it.
    other: of the run that it is from; if it is of another kind, a new optimizer begins.
    state: as that run's checkpoint has it.
    vocab_size: V.
    mesh: where the state is.
  """
  opt_state = with_guard(config.optimizer, state.opt_state, mesh)
  if config.optimizer.kind != other.kind:
    abstract = abstract_state(config, vocab_size, mesh).opt_state
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    init = jax.jit(make_optimizer(config.optimizer).init, out_shardings=shardings)
    opt_state = init(adapters.trained(config.optimizer, state.params))
  count = 0 if config.optimizer.schedule_restarts else int(state.step) - int(state.skipped)
  taken = sharding.put(np.asarray(count, np.int32), sharding.replicated(mesh))
  return state.replace(opt_state=optimizers.with_steps_taken(opt_state, taken))


def with_guard(config: OptimizerConfig, opt_state: Any, mesh: Mesh) -> Any:
  """The state of another run's optimizer, with or without recent norms, as this config has it."""
  bare = opt_state[1:] if isinstance(opt_state[0], RecentNorms) else opt_state
  if not config.skip_above:
    return bare
  put = lambda x: sharding.put(np.asarray(x), sharding.replicated(mesh))
  return (jax.tree.map(put, recent_norms().init({})), *bare)


def is_blow_up(config: OptimizerConfig, gradient_norm: Array, opt_state: Any) -> Array:
  """Whether a norm is more than `skip_above` times the median of the latest ones (our choice): such
  a step, though clipped, would turn Adam's moments toward one batch."""
  if not config.skip_above:
    return jnp.zeros((), bool)
  return gradient_norm > config.skip_above * jnp.nanmedian(opt_state[0].norms)  # NaN: never


def decayed_kernels(rate: float) -> optax.GradientTransformation:
  """`optax.add_decayed_weights` of kernels, with the same empty state: that of optax's own mask is
  another tree, and checkpoints of unmasked runs would not be read."""
  # With a rate of 0 it adds nothing to all of them, as optax.adamw does.
  decays = lambda path: path[-1].key.startswith('kernel') or not rate  # adapters included
  add = lambda path, update, x: update + rate * x if decays(path) else update
  return optax.stateless(
    lambda updates, params: jax.tree_util.tree_map_with_path(add, updates, params)
  )


def learning_rate_at(config: OptimizerConfig) -> optax.Schedule:
  """Learning rate as a function of the step; step 0 already moves."""
  warmup, fall = max(config.warmup_steps, 1), optimizers.fall(config)
  rate = lambda step: config.learning_rate * jnp.minimum(1.0, (step + 1) / warmup)
  return (lambda step: rate(step) * fall(step)) if fall else rate


def ema_decay_at(config: OptimizerConfig, step: Array) -> Array:
  """`min(ema_decay, (1 + i) / (10 + i))`: the average forgets the start quickly (our choice)."""
  return jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


def init_params(config: Config, vocab_size: int) -> Params:
  """The network's parameters drawn from the config's seed; runs under jit."""
  return models.init(families.build(config.model, vocab_size), jax.random.key(config.seed))


def state_of(config: Config, params: Params) -> TrainState:
  """The state at step 0 of a network with these parameters, and an empty optimizer; runs under
  jit."""
  key = jax.random.fold_in(jax.random.key(config.seed), 1)  # other draws than the network's
  params = adapters.beside(config.optimizer, params, key)
  trained = adapters.trained(config.optimizer, params)
  # EMA starts as a copy, not as the same buffers, which a donating step could not take twice.
  ema = jax.tree.map(jnp.copy, trained)
  # Two arrays, for the same reason.
  step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  return TrainState(step, skipped, params, ema, make_optimizer(config.optimizer).init(trained))


def init_state(config: Config, vocab_size: int) -> TrainState:
  """`state_of` of `init_params`; runs under jit."""
  return state_of(config, init_params(config, vocab_size))


def network_params(config: Config, state: TrainState, averaged: bool = True) -> Params:
  """What is evaluated, sampled from and exported: the network's parameters, adapters merged.

  Args:
    config: of the run.
    state: of it.
    averaged: whether to take averages of what is trained.
  """
  changed = state.ema if averaged else adapters.trained(config.optimizer, state.params)
  if adapters.is_all(config.optimizer):
    return changed
  return _whole(config.optimizer, state.params, changed)


_whole = jax.jit(adapters.whole, static_argnums=0)


def abstract_params(config: Config, vocab_size: int, mesh: Mesh) -> Params:
  """Shapes, dtypes and shardings of the network's parameters.

  Raises:
    UserError: the mesh cannot share the model.
  """
  sharding.check_model(config.model, vocab_size, mesh)
  return _laid_out(jax.eval_shape(functools.partial(init_params, config, vocab_size)), mesh)


def abstract_state(config: Config, vocab_size: int, mesh: Mesh) -> TrainState:
  """Shapes, dtypes and shardings of the state.

  Raises:
    UserError: the mesh cannot share the model, or nothing of it would be trained.
  """
  sharding.check_model(config.model, vocab_size, mesh)
  return _laid_out(jax.eval_shape(functools.partial(init_state, config, vocab_size)), mesh)


def _laid_out(shapes: Any, mesh: Mesh) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.tree_sharding(mesh, shapes),
  )


def new_state(config: Config, vocab_size: int, mesh: Mesh) -> TrainState:
  """`init_state`, made in place on the mesh."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, vocab_size, mesh))
  init = functools.partial(init_state, config, vocab_size)
  return jax.jit(init, out_shardings=shardings)()


def loss_and_gradients(
  config: Config, vocab_size: int, params: Params, step: Array, text_BxN: Array
) -> tuple[tuple[Array, Array], Params]:
  """Mean nats per scored token of a batch, and its gradient, in `accumulation` micro-batches.

  Returns:
    The loss and kinds_2xK, and the gradient of the loss by what is trained. kinds_2xK holds, for
    every order of `armd.ORDER_KINDS`, the sum over its sequences of their nats per token, and their
    number.

  Orders and dropout of a sequence come from (seed, step, index in the batch) alone, so nothing
  depends on how many devices or micro-batches share the work.
  """
  family = families.of(config.model)
  model = family.network(config.model, vocab_size)
  micro_batches = config.train.accumulation
  batch = text_BxN.shape[0]
  step_key = jax.random.fold_in(jax.random.key(config.seed), step)
  streams_key, orders_key, dropout_key = jax.random.split(step_key, 3)
  index_B, trained = jnp.arange(batch), adapters.trained(config.optimizer, params)
  scored = None
  if config.data.packing == documents.PACKING:
    slots_BxN = text_BxN[:, -config.model.num_slots :]
    scored = jnp.sum(documents.read(slots_BxN).is_scored_BxN, dtype=jnp.float32)

  def loss(trained: Params, text_MxN: Array, index_M: Array) -> tuple[Array, Array]:
    keys_M = jax.vmap(jax.random.fold_in, (None, 0))(orders_key, index_M)
    return family.loss(
      model,
      adapters.whole(config.optimizer, params, trained),
      text_MxN,
      Draws(config.order, step, streams_key, keys_M, index_M, batch, scored),
      loss_chunk=config.train.loss_chunk,
      dropout_key=dropout_key if config.model.dropout else None,
    )

  gradient = jax.value_and_grad(loss, has_aux=True)
  if micro_batches == 1:
    return gradient(trained, text_BxN, index_B)

  def add(sums: Any, xs: Any) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, sums, gradient(trained, *xs)), None

  # Micro-batch m takes examples m, m + A, ...: every device keeps working on its own examples.
  split = lambda x: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0)
  kinds_2xK = jnp.zeros((2, len(armd.ORDER_KINDS)), jnp.float32)
  zeros = ((jnp.float32(0), kinds_2xK), jax.tree.map(jnp.zeros_like, trained))
  sums, _ = jax.lax.scan(add, zeros, (split(text_BxN), split(index_B)))
  return sums


def _all_finite(tree: Any) -> Array:
  return functools.reduce(
    jnp.logical_and, [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
  )


def train_step(config: Config, vocab_size: int, mesh: Mesh) -> jax.stages.Wrapped:
  """The compiled step for a mesh: `step(state, text_BxN) -> (state, metrics)`.

  The state is donated. A step whose loss, gradient, new parameters, averages or optimizer state are
  not all finite, or whose gradient blows up (`is_blow_up`), only counts: the state moves on to the
  next step's text and randomness, with the parameters it had.

  Metrics are float32 on the device: the scalars loss (nats per token), gradient_norm,
  learning_rate, shuffled (k of this step, 0 once orders are strided), skipped (steps so far that
  only counted) and finite (0 if this one did), and kinds_2xK of `loss_and_gradients`; if they are
  asked for, also layers of `by_layer.measured`.
  """
  # Fields that do not change the step get one value, so that one program serves all of them.
  return _train_step(config_lib.reset(config, 'host_only'), vocab_size, mesh)


@functools.lru_cache(maxsize=8)
def _train_step(config: Config, vocab_size: int, mesh: Mesh) -> jax.stages.Wrapped:
  optimizer, restarts = make_optimizer(config.optimizer), config.optimizer.schedule_restarts
  guarded, order = bool(config.optimizer.skip_above), config.order

  def step(state: TrainState, text_BxN: Array) -> tuple[TrainState, dict[str, Array]]:
    with axes.on(mesh):
      (loss, kinds_2xK), gradients = loss_and_gradients(
        config, vocab_size, state.params, state.step, text_BxN
      )
    gradient_norm = optax.tree.norm(gradients)
    trained = adapters.trained(config.optimizer, state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    decay = ema_decay_at(config.optimizer, state.step)
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, trained)
    # An average of finite numbers is finite if its weights are, so that it need not be read.
    is_finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm) & jnp.isfinite(decay)
    # Norms of steps that were not taken yet are NaN.
    is_finite &= _all_finite((trained, opt_state[1:] if guarded else opt_state))
    is_finite &= ~is_blow_up(config.optimizer, gradient_norm, state.opt_state)
    skipped = state.skipped + 1 - is_finite
    is_all = adapters.is_all(config.optimizer)
    params = trained if is_all else adapters.replaced(state.params, trained)
    new = TrainState(state.step + 1, skipped, params, ema, opt_state)
    counted = state.replace(step=new.step, skipped=skipped)
    shuffled = progressive_budget(state.step, order.ar_steps, order.perm_steps, order.max_shuffled)
    if order.strided_start >= 0:
      shuffled = jnp.where(state.step >= order.strided_start, 0, shuffled)
    # The optimizer counts the steps that it takes, which skipped ones are not.
    taken = optimizers.steps_taken(state.opt_state) if restarts else state.step - state.skipped
    metrics = {
      'loss': loss,
      'gradient_norm': gradient_norm,
      'learning_rate': learning_rate_at(config.optimizer)(taken),
      'shuffled': shuffled,
      'skipped': skipped,
      'finite': is_finite,
      'kinds_2xK': kinds_2xK,
    }
    metrics = {name: jnp.float32(value) for name, value in metrics.items()}
    if config.train.log_layers:
      before = adapters.trained(config.optimizer, state.params)
      whole = adapters.whole(config.optimizer, state.params, before)
      metrics['layers'] = by_layer.measured(gradients, updates, before, whole, vocab_size)
    return jax.tree.map(functools.partial(jnp.where, is_finite), new, counted), metrics

  state_sharding = jax.tree.map(lambda x: x.sharding, abstract_state(config, vocab_size, mesh))
  return jax.jit(
    step,
    in_shardings=(state_sharding, sharding.batch_sharding(mesh)),
    out_shardings=(state_sharding, sharding.replicated(mesh)),
    donate_argnums=0,
  )

"""Optimizers, schedules of the learning rate, and what a run takes over of another's optimizer.

AdamW is what the papers train with. Muon (Jordan et al. 2024) makes the momentum of every matrix
of a layer nearly orthogonal; AdamW moves all else. Adafactor (Shazeer and Stern 2018) keeps means
of the second moment over rows and columns of a matrix, and here its momentum in bfloat16 (Zhai
et al. 2022): two bytes a parameter in place of AdamW's eight. Updates of all three are about as
large, so that learning rates and weight decay carry over.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from armd_jax.config import OptimizerConfig
from armd_jax.parallel.axes import path_name

Array = jax.Array

# Axes of the matrices that Muon takes, counted from the last one, by the end of their names: those
# that a product sums over, and those that it makes. Along all others there is a matrix each: of
# layers, of keys beside values, and of a gate beside what it shuts.
_MATRICES = {
  'query/kernel': ((-3,), (-2, -1)),
  'key_value/kernel': ((-4,), (-2, -1)),
  'out/kernel': ((-3, -2), (-1,)),
  'up/kernel': ((-2,), (-1,)),
  'gate_up/kernel': ((-3,), (-1,)),
  'down/kernel': ((-2,), (-1,)),
}
_MOMENTUM = 0.95  # Muon's
# The size of an update's entries that makes AdamW's learning rates right (Liu et al. 2025, eq. 4).
_UPDATE_SIZE = 0.2
_FACTORED = 32  # the shortest axis of which Adafactor keeps a mean


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
  """From gradients to updates, before weight decay and learning rate."""
  adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
  if config.kind == 'muon':
    numbers = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: _axes_of(path), tree)
    muon = optax.chain(
      optax.contrib.scale_by_muon(beta=_MOMENTUM, weight_dimension_numbers=numbers),
      optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_sized, updates)),
    )
    kinds = lambda params: jax.tree_util.tree_map_with_path(
      lambda path, _: 'muon' if _axes_of(path) else 'adam', params
    )
    return optax.partition({'muon': muon, 'adam': adam}, kinds)
  if config.kind == 'adafactor':
    return optax.chain(
      optax.scale_by_factored_rms(min_dim_size_to_factor=_FACTORED),
      optax.clip_by_block_rms(1.0),
      optax.ema(config.beta1, debias=False, accumulator_dtype=jnp.bfloat16),
      optax.stateless(lambda updates, _: jax.tree.map(lambda x: _UPDATE_SIZE * x, updates)),
    )
  return adam


def _axes_of(path: Any) -> optax.contrib.MuonDimensionNumbers | None:
  name = path_name(path)
  found = [axes for end, axes in _MATRICES.items() if f'/{name}'.endswith(f'/{end}')]
  return optax.contrib.MuonDimensionNumbers(*found[0]) if found else None


def _sized(path: Any, update: Array) -> Array:
  """A matrix whose singular values are about 1, as large as an update of AdamW."""
  (reduced, made), shape = _axes_of(path), update.shape  # type: ignore[misc]
  size = lambda axes: math.prod(shape[axis] for axis in axes)
  return _UPDATE_SIZE * max(size(reduced), size(made)) ** 0.5 * update


# ----- the learning rate


def fall(config: OptimizerConfig) -> optax.Schedule | None:
  """The share of the learning rate that is left at a step; None: all of it at every step.

  It is 1 up to the last step before the decay, and `final_share` from `schedule_steps` on, which is
  the first step that such a run does not take.
  """
  end, warmup, last = config.schedule_steps, config.warmup_steps, config.final_share
  if config.schedule == 'constant':
    return None
  if config.schedule == 'cosine':
    cosine = optax.cosine_decay_schedule(1.0, end - warmup, last)
    return lambda step: cosine(jnp.maximum(step - warmup, 0))
  steps = config.decay_steps if config.schedule == 'warmup_stable_decay' else end - warmup
  return optax.linear_schedule(1.0, last, steps, transition_begin=end - steps)


def steps_taken(opt_state: Any) -> Array:
  """int32 scalar: steps of the schedule so far, which skipped steps are not."""
  return next(x.count for x in jax.tree.leaves(opt_state, is_leaf=_is_count) if _is_count(x))


def with_steps_taken(opt_state: Any, count: Array) -> Any:
  """The same state at another step of the schedule."""
  change = lambda x: x._replace(count=count) if _is_count(x) else x
  return jax.tree.map(change, opt_state, is_leaf=_is_count)


def _is_count(x: Any) -> bool:
  return isinstance(x, optax.ScaleByScheduleState)


# ----- for people


def taken_over(config: OptimizerConfig, other: OptimizerConfig, step: int) -> str:
  """What a run that starts from another's checkpoint does with its optimizer, in words.

  Args:
    config: of the run.
    other: of the one that it starts from.
    step: steps of the other's schedule.
  """
  state = 'its optimizer goes on'
  if config.kind != other.kind:
    state = f'{config.kind} begins, since it was trained with {other.kind}'
  if not config.schedule_restarts:
    return f'{state}, and the learning rate at step {step} of {_shape(config)}'
  return f'{state}; the learning rate begins anew: {_shape(config)}'


def _shape(config: OptimizerConfig) -> str:
  warmup = f'a warm-up of {config.warmup_steps} steps' if config.warmup_steps else 'no warm-up'
  if config.schedule == 'constant':
    return f'{warmup}, then {config.learning_rate:g}'
  steps = config.schedule_steps
  if config.schedule == 'warmup_stable_decay':
    return f'{warmup}, and a decay from step {steps - config.decay_steps} to {steps}'
  return f'{warmup}, and a {config.schedule} decay to step {steps}'

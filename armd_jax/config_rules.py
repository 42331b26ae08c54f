"""Rules of a config that concern few of its fields, apart from `armd_jax.config` for its length."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from armd_jax.errors import UserError

NUMBERS = {float: 'a number', int: 'a whole number', tuple[float, ...]: 'numbers'}
_LIKE = {int: 'whole numbers, like (1, 2, 4)', float: 'numbers, like (0.7, 0.3)',
         str: "texts, like ('work/web', 'work/books')"}  # fmt: skip


def as_tuple(kind: type, value: Any, where: str) -> tuple[Any, ...]:
  """A field of several values of a type; one alone is one of them.

  Raises:
    UserError: they are of another type.
  """
  values = value if isinstance(value, tuple | list) else (value,)
  if not all(type(one) is kind or (kind, type(one)) == (float, int) for one in values):
    raise UserError(f'{where} is {value!r} but must be a tuple of {_LIKE[kind]}')
  return tuple(map(kind, values))


def with_ends(config: Any) -> Any:
  """The section `optimizer` with the steps of a schedule filled in.

  Args:
    config: a `Config`.
  """
  o, filled = config.optimizer, {}
  if o.schedule == 'constant':
    return o
  # The end of a run that begins its schedule anew is not counted from the schedule's begin.
  if o.schedule_steps == -1 and not o.schedule_restarts:
    filled['schedule_steps'] = config.train.steps
  if o.schedule == 'warmup_stable_decay' and o.decay_steps == -1:
    filled['decay_steps'] = max(1, filled.get('schedule_steps', o.schedule_steps) // 5)
  return dataclasses.replace(o, **filled)


def of_schedule(config: Any) -> Iterator[str]:
  """What contradicts a schedule of the learning rate, a sentence each."""
  o, name = config.optimizer, 'config.optimizer'
  if config.init_step >= 0 and not config.init_from:
    yield (
      f'config.init_step is {config.init_step} but config.init_from is empty; write the run whose '
      'checkpoint it is, or -1'
    )
  if o.schedule_restarts and not config.init_from:
    yield (
      f'{name}.schedule_restarts is True but config.init_from is empty, so that there is nothing '
      'to begin anew; write False'
    )
  if o.schedule == 'constant':
    for field in ('schedule_steps', 'decay_steps'):
      if getattr(o, field) != -1:
        yield (
          f"{name}.{field} is {getattr(o, field)} but {name}.schedule is 'constant', which never "
          'ends; write another schedule, or -1'
        )
    return
  if o.schedule_steps == -1:
    yield (
      f'{name}.schedule is {o.schedule!r} and begins anew where the run does '
      f'(schedule_restarts), so {name}.schedule_steps cannot be {o.schedule_steps}; write the '
      'number of steps from there'
    )
  elif o.schedule_steps <= o.warmup_steps:
    yield (
      f'{name}.schedule_steps is {o.schedule_steps}; write more than warmup_steps = '
      f'{o.warmup_steps}'
    )
  elif o.schedule == 'warmup_stable_decay' and o.decay_steps > o.schedule_steps - o.warmup_steps:
    yield (
      f'{name}.decay_steps is {o.decay_steps}; write at most the {o.schedule_steps} steps of the '
      f'schedule less warmup_steps = {o.warmup_steps}'
    )
  elif o.schedule != 'warmup_stable_decay' and o.decay_steps != -1:
    yield (
      f'{name}.decay_steps is {o.decay_steps} but {name}.schedule is {o.schedule!r}, which falls '
      "all the time; write 'warmup_stable_decay', or -1"
    )


def of_mixture(data: Any) -> Iterator[str]:
  """What contradicts a mixture of corpora, a sentence each."""
  if data.weights and len(data.weights) != len(data.mixture):
    yield (
      f'config.data.weights has {len(data.weights)} numbers and config.data.mixture '
      f'{len(data.mixture)} corpora; write a weight for each, or ()'
    )
  if len(set(data.mixture)) < len(data.mixture):
    yield (
      f'config.data.mixture is {data.mixture}, which names a corpus twice; write it once, with a '
      'larger weight'
    )


def of_documents(config: Any) -> Iterator[str]:
  """What contradicts a document a window, a sentence each.

  Args:
    config: a `Config`.
  """
  model, data = config.model, config.data
  if data.packing == 'documents' and model.orders == 'none':
    yield (
      f"config.data.packing is 'documents' but config.model.family is {model.family!r}, which has "
      "no orders to leave padding out of; write 'joined' or 'wrapped'"
    )
  if data.prompt and data.packing != 'documents':
    yield (
      f'config.data.prompt is {data.prompt!r} but config.data.packing is {data.packing!r}, in '
      "which prompts are lost; write packing = 'documents'"
    )


def of_adapting(config: Any) -> Iterator[str]:
  """What contradicts the names of parameters that are trained, and evaluations, a sentence each."""
  names, streams, family = config.optimizer.trained, config.train.eval_streams, config.model.family
  try:
    re.compile(names)
  except (re.error, OverflowError, RecursionError) as error:
    yield (
      f'config.optimizer.trained is {names!r}, no regular expression ({error}); write a part of '
      "names, like 'causal/.*/query'"
    )
  if streams and config.model.orders != 'any':
    yield (
      f'config.train.eval_streams is {streams} but config.model.family is {family!r}, which has no '
      'strided orders; write ()'
    )

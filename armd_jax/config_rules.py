"""Which fields of a config go with which others, apart from the fields themselves."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from armd_jax.config_fields import in_float32
from armd_jax.errors import UserError, is_whole, quoted

NUMBERS = {float: 'a number', int: 'a whole number', tuple[float, ...]: 'numbers'}
_LIKE = {int: 'whole numbers, like (1, 2, 4)', float: 'numbers, like (0.7, 0.3)',
         str: "texts, like ('work/web', 'work/books')"}  # fmt: skip


def as_tuple(kind: type, value: Any, where: str) -> tuple[Any, ...]:
  """A field of several values of a type; one alone is one of them.

  Raises:
    UserError: they are of another type, or no float holds them.
  """
  values = value if isinstance(value, tuple | list) else (value,)
  if not all(type(one) is kind or (kind, type(one)) == (float, int) for one in values):
    raise UserError(f'{where} is {quoted(value)} but must be a tuple of {_LIKE[kind]}')
  try:
    return tuple(map(kind, values))
  except OverflowError:  # a whole number that no float holds
    raise UserError(f'{where} is {quoted(value)}; write smaller numbers') from None


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


def contradictions(config: Any) -> Iterator[str]:
  """What of one field of a `Config` does not go with another, a sentence each."""
  m, o, t = config.model, config.order, config.train
  yield from of_documents(config)
  yield from of_adapting(config)
  yield from of_schedule(config)
  yield from of_mixture(config.data)
  yield from of_sets(m)
  if m.num_two_stream_layers > m.num_layers:
    yield (
      f'config.model.num_two_stream_layers is {m.num_two_stream_layers}; '
      f'write 0 to num_layers = {m.num_layers}'
    )
  if m.head_dim == -1:
    yield (
      f'config.model.embed_dim is {m.embed_dim}, which {m.num_heads} heads of even width do not '
      f'divide; write a multiple of {2 * m.num_heads}'
    )
  if m.head_dim % 2:
    yield f'config.model.head_dim is {m.head_dim}; write an even number'
  r = m.rope_scaling
  if r.kind == 'llama3' and in_float32(r.high_frequency) <= in_float32(r.low_frequency):
    yield (
      f'config.model.rope_scaling.high_frequency is {r.high_frequency}; write more than '
      f'low_frequency = {r.low_frequency}'
    )
  if m.num_heads % m.num_kv_heads:
    yield (
      f'config.model.num_kv_heads is {m.num_kv_heads}; write a divisor of num_heads = {m.num_heads}'
    )
  if m.num_slots < 1:
    yield (
      f'config.model.length is {m.length} with config.model.first_token = {m.first_token!r}, '
      'which leaves no token to predict; write 2 or more'
    )
  if m.position_dim % 2:
    yield f'config.model.position_dim is {m.position_dim}; write an even number'
  if m.orders == 'none' and m.architecture != 'rope':
    yield (
      f'config.model.architecture is {m.architecture!r} but config.model.family is {m.family!r}, '
      "which has RoPE only; write 'rope'"
    )
  if o.max_shuffled > m.length:
    yield f'config.order.max_shuffled is {o.max_shuffled}; write 0 to model.length = {m.length}'
  if o.ar_steps > o.perm_steps:
    yield (
      f'config.order.perm_steps is {o.perm_steps}, before ar_steps = {o.ar_steps}; '
      'write a later step'
    )
  if m.orders == 'left_to_right' and o.uniform_order_prob:
    yield (
      f'config.order.uniform_order_prob is {o.uniform_order_prob} but config.model.family is '
      f'{m.family!r}, which has left-to-right orders only; write 0'
    )
  if o.segments_prob and o.segments_cuts >= m.num_slots:
    yield (
      f'config.order.segments_cuts is {o.segments_cuts}; write less than the {m.num_slots} tokens '
      'of a sequence'
    )
  if o.strided_start >= 0:
    if m.orders != 'any' or m.has_own_orders:
      yield (
        f'config.order.strided_start is {o.strided_start} but config.model.family is {m.family!r}, '
        'which has no strided orders; write -1'
      )
    if not o.strided_streams:
      yield 'config.order.strided_streams is empty; write stride counts, like (1, 2, 4)'
    for streams in o.strided_streams:
      check_streams(streams, m.num_slots, 'config.order.strided_streams')
  for streams in t.eval_streams:
    check_streams(streams, m.num_slots, 'config.train.eval_streams')
  if t.batch_size % t.accumulation:
    yield (
      f'config.train.accumulation is {t.accumulation}; '
      f'write a divisor of batch_size = {t.batch_size}'
    )
  if t.profile_steps:
    first, *more = t.profile_steps
    if len(more) != 1 or not first <= more[0] or first > t.steps:
      yield (
        f'config.train.profile_steps is {t.profile_steps}; write the first and the last step of a '
        'trace, like (10, 12), or ()'
      )


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
  elif not (o.schedule_restarts or o.final_share) and o.schedule_steps < config.train.steps:
    yield (
      f'{name}.schedule_steps is {o.schedule_steps} of config.train.steps = {config.train.steps}, '
      'and final_share is 0, so that the last steps would change nothing; write as many, or a '
      'final_share above 0'
    )
  elif o.schedule != 'warmup_stable_decay' and o.decay_steps != -1:
    yield (
      f'{name}.decay_steps is {o.decay_steps} but {name}.schedule is {o.schedule!r}, which falls '
      "all the time; write 'warmup_stable_decay', or -1"
    )


def of_sets(model: Any) -> Iterator[str]:
  """What contradicts a clean copy beside noised sets of tokens, a sentence each."""
  d, name = model.diffusion, 'config.model.diffusion'
  has_blocks = model.sets == 'blocks' or (model.sets and d.set_policy == 'blocks')
  if has_blocks and model.length % d.block_length:
    yield (
      f'{name}.block_length is {d.block_length}, which does not divide config.model.length = '
      f'{model.length}; write a divisor'
    )
  if model.sets == 'blocks' and in_float32(d.clip_low) >= in_float32(d.clip_high):
    yield f'{name}.clip_low is {d.clip_low}; write less than clip_high = {d.clip_high}'
  if model.sets and not has_blocks and not d.set_size <= d.set_reach <= model.num_slots:
    yield (
      f'{name}.set_reach is {d.set_reach}; write set_size = {d.set_size} to the {model.num_slots} '
      'tokens that are predicted'
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
  if config.optimizer.lora_rank and config.optimizer.kind == 'muon':
    yield (
      f"config.optimizer.kind is 'muon', which updates whole matrices, but lora_rank is "
      f'{config.optimizer.lora_rank}, of which adapters alone are trained; write another kind, or 0'
    )
  if streams and config.model.orders != 'any':
    yield (
      f'config.train.eval_streams is {streams} but config.model.family is {family!r}, which has no '
      'strided orders; write ()'
    )


def check_streams(streams: int, num_slots: int, name: str) -> None:
  """Refuses a stride count that leaves streams empty. Any other is taken, in training, evaluation
  and generation alike: streams of a text whose length it does not divide differ by a token.

  Raises:
    UserError: if `streams` is not 1 to `num_slots`.
  """
  if not is_whole(streams) or not 1 <= streams <= num_slots:
    raise UserError(
      f'{name} holds S = {quoted(streams)}, but of {num_slots} tokens there are 1 to {num_slots} '
      'streams; write such a number'
    )

"""What experiment files share: the options after their name, baselines, fine-tunes, small versions.

--config=experiments/owt_small.py:paper               the published recipe, to the letter of eq. 6
--config=experiments/owt_small.py:family=mdlm         a baseline's twin: all else is the same
--config=experiments/owt_small.py:family=bd3lm,block=16   block diffusion, in blocks of 16 tokens
--config=experiments/owt_small.py:strided_steps=50000     SBP fine-tuning of the base model
--config=experiments/owt_small.py:family=sedd,runlocal   the same, small, on this machine
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from armd_jax.config import FAMILIES, default_config
from armd_jax.errors import UserError

# Ends of the masked shares that blocks of so many tokens are trained on (BD3-LM section 5).
CLIPS = {4: (0.45, 0.95), 16: (0.3, 0.8)}


@dataclasses.dataclass(frozen=True)
class Options:
  """What may follow an experiment's name.

  Attributes:
    family: of the model, see `config.ModelConfig`.
    block: L', tokens of a block of BD3-LM, or d, of a set of SetDLM on average; 0: the default.
    strided_steps: i_SBP (paper section 3.1), steps of fine-tuning after the base model's; 0:
      train the base model.
    paper: leaves out what `ours` changes.
    runlocal: shrinks model, text and steps to a machine without accelerators.
  """

  family: str = 'armd'
  block: int = 0
  strided_steps: int = 0
  paper: bool = False
  runlocal: bool = False


def options(text: str) -> Options:
  """Reads `name=value,name`.

  Raises:
    UserError: for a name or value that means nothing.

  Examples:
    >>> options('family=sedd,runlocal')
    Options(family='sedd', block=0, strided_steps=0, paper=False, runlocal=True)
  """
  values: dict[str, Any] = {}
  for item in filter(None, text.split(',')):
    name, _, value = item.partition('=')
    if name == 'family' and value:
      values[name] = value
    elif name in ('block', 'strided_steps') and value.isdecimal():
      values[name] = int(value)
    elif item in ('paper', 'runlocal'):
      values[name] = True
    else:
      raise UserError(
        'an experiment takes family=NAME, block=NUMBER, strided_steps=NUMBER, paper and runlocal, '
        f'but no {item!r}; leave that out'
      )
  return Options(**values)


def finish(config: ml_collections.ConfigDict, text: str, base_run: str) -> None:
  """Applies `options(text)` to the config of a base model.

  Args:
    config: the experiment's; changed.
    text: what follows the experiment's name.
    base_run: work directory of the base model, which fine-tuning starts from; for another one
      there is --config.init_from.
  """
  chosen = options(text)
  config.model.family = chosen.family
  if chosen.block:
    _cut_into_sets(config, chosen.block)
  if chosen.runlocal:
    _shrink(config)
  if not chosen.paper:
    ours(config)
  if chosen.strided_steps:
    # Optimizer, average and learning rate continue (our choice); orders are strided from here on.
    steps = (
      min(chosen.strided_steps, config.train.steps) if chosen.runlocal else chosen.strided_steps
    )
    config.order.strided_start = config.train.steps
    config.train.steps += steps
    config.init_from = base_run


def _cut_into_sets(config: ml_collections.ConfigDict, length: int) -> None:
  """Blocks of so many tokens, with masked shares as BD3-LM's paper has them, if it does; or sets of
  so many on average, from twice as many positions, as SetDLM's released recipes.

  Raises:
    UserError: the family has neither.
  """
  kind, diffusion = FAMILIES.get(config.model.family), config.model.diffusion
  if not kind or not kind.sets:
    raise UserError(
      f'block={length} is for families that noise sets of tokens, which {config.model.family!r} '
      'does not; leave it out, or write family=bd3lm'
    )
  if kind.sets == 'ordered':
    diffusion.update(set_size=length, set_reach=2 * length)
    return
  low, high = CLIPS.get(length, (diffusion.clip_low, diffusion.clip_high))
  diffusion.update(block_length=length, clip_low=low, clip_high=high)


def ours(config: ml_collections.ConfigDict) -> None:
  """Changes a published recipe to the best one that the reproduction found (docs/reproduction.md).

  Query rows are seeded with the tokens beside them, left and right distinguished; one layer has two
  streams, so that a step costs what AR's does; and half of the sequences are cut into segments,
  which teaches the model to continue from, and to arrive at, what is beside a junction. Fine-tuning
  draws S for every sequence.
  """
  config.model.update(query_seed='neighbours', query_seed_norm='rms', num_two_stream_layers=1)
  config.order.update(segments_prob=0.5, strided_draw='sequence')


def _shrink(config: ml_collections.ConfigDict) -> None:
  """Minutes on two cores: the schedule in proportion, bytes of the text that needs no download."""
  small = default_config()
  steps = 300
  share = steps / config.train.steps
  two_stream = config.model.num_two_stream_layers
  config.model.update(
    length=64, num_layers=2, num_two_stream_layers=min(two_stream, 1), embed_dim=64, num_heads=2,
    dtype='float32', remat='none', vocab_multiple=1,
  )  # fmt: skip
  config.order.update(
    ar_steps=round(config.order.ar_steps * share),
    perm_steps=round(config.order.perm_steps * share),
    max_shuffled=min(config.order.max_shuffled, 8),
  )
  config.data.update(small.data)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=20, ema_decay=0.99)
  config.train.update(
    steps=steps, batch_size=8, loss_chunk=64, log_every=25, eval_every=100, eval_windows=64,
    checkpoint_every=100,
  )  # fmt: skip
  config.mesh.update(small.mesh)

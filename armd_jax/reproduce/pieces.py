"""What the miniature reproduction runs, as data: pieces, each with a result of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_collections

from armd_jax import config as config_lib

# What is compared: the six families, and ARMD trained on uniformly random orders, which is of the
# same kind as the diffusion baselines: its bound is over random orders as theirs are.
SYSTEMS = {
  'ar': {'model.family': 'ar'},
  'armd': {'model.family': 'armd'},
  'armd_uniform': {
    'model.family': 'armd', 'order.ar_steps': 0, 'order.uniform_order_prob': 1.0,
    'order.segments_prob': 0.0,
  },
  'mdlm': {'model.family': 'mdlm'},
  'd3pm': {'model.family': 'd3pm'},
  'sedd': {'model.family': 'sedd'},
  'radd': {'model.family': 'radd'},
  'bd3lm4': {'model.family': 'bd3lm', 'model.diffusion.block_length': 4},
  'bd3lm16': {
    'model.family': 'bd3lm', 'model.diffusion.block_length': 16,
    'model.diffusion.clip_low': 0.3, 'model.diffusion.clip_high': 0.8,
  },
  'setdlm': {'model.family': 'setdlm'},
  'esolm': {'model.family': 'esolm'},
}  # fmt: skip
DIFFUSION = ('mdlm', 'd3pm', 'sedd', 'radd', 'bd3lm4', 'bd3lm16', 'setdlm', 'esolm')
# Bounds fall more slowly: these are trained and read this many times as long as well.
ANY_ORDER, LONG = ('armd_uniform', *DIFFUSION), 3
RATES = (5e-4, 1.25e-3, 3e-3)
SEEDS = (0, 1, 2)
STREAMS = (1, 2, 4, 8, 16, 32)
SAMPLER_STEPS = (1024, 256, 64)  # T, of families that have a sampler
FEW, MANY = (1, 2, 4), STREAMS  # of SBP fine-tunes
ONE_BY_ONE = 'ablation.strided_one_by_one=0.5'  # a fine-tune, too
LEFT_TO_RIGHT = 'ablation.left-to-right orders alone'
LONGER = (1, 2, 4, 8)  # times the config's length, at the same tokens per step
# The published recipe, from which `recipes.ours` differs.
PAPER = {
  'model.query_seed': 'prefix',
  'model.query_seed_norm': 'none',
  'order.segments_prob': 0.0,
  'model.num_two_stream_layers': -1,
}
NO_SEGMENTS = {'order.segments_prob': 0.0}
# Of what is timed: segments are singletons as shuffled orders are, but drawn by a coin, which the
# count of visible keys does not see through.
_COUNTED = NO_SEGMENTS
# Of ARMD, beside AdamW at a constant rate.
OPTIMIZERS = {
  'cosine': {'optimizer.schedule': 'cosine'},
  'linear': {'optimizer.schedule': 'linear'},
  'warmup_stable_decay': {'optimizer.schedule': 'warmup_stable_decay'},
  'muon': {'optimizer.kind': 'muon'},
  'muon, linear': {'optimizer.kind': 'muon', 'optimizer.schedule': 'linear'},
  'adafactor': {'optimizer.kind': 'adafactor'},
}
SIZES = {'8 x 192': (8, 192, 6), '12 x 256': (12, 256, 8)}  # layers, width, heads; beside the own
# Tokens of several letters, of which a stream's first ones cost more without the text before them.
TOKENIZER = 'gpt2'
DEPTHS = (8, 12)  # at which layers with two streams are counted and timed

WINDOWS = 256  # held-out windows of the config's length; longer ones are fewer, of the same text
DRAWS = 4  # random orders, or sets of times, per window


@dataclasses.dataclass(frozen=True)
class Piece:
  """One step of the reproduction; its result is one small JSON file.

  Attributes:
    name: of the piece and its file.
    kind: 'train' a run; 'evaluate' its likelihoods at some steps; 'speed' the time of sampling from
      it; 'cost' the time, memory and FLOPs of a training step of every system; 'front' likelihood,
      speed and texts of all systems; 'texts' what one writes.
    overrides: of the config, by dotted field, of a training run.
    needs: names of the pieces that have to be there before; of 'evaluate' and 'speed', the first
      is the training run that is measured.
    rate_of: the system whose sweep decides a run's learning rate; '' leaves the config's.
    base: the training piece that a run starts from; '' trains from scratch.
    steps: of the checkpoints that are kept or measured; of 'front', those of samplers.
    variants: of 'cost', overrides of the config by the name of what is timed.
    windows: held-out windows to measure on.
    draws: random orders, or sets of times, per window.
    streams: S; of 'evaluate', () measures the family's standard suite.
    weight: about how long it takes, in training steps of AR; for the time that is left.
  """

  name: str
  kind: str
  overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
  needs: tuple[str, ...] = ()
  rate_of: str = ''
  base: str = ''
  steps: tuple[int, ...] = ()
  variants: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  windows: int = WINDOWS
  draws: int = DRAWS
  streams: tuple[int, ...] = ()
  weight: float = 100

  @property
  def is_alone(self) -> bool:
    """Whether it measures time, so that nothing else may run beside it."""
    return self.kind in ('speed', 'cost', 'front')


def rate_name(system: str, rate: float) -> str:
  """Of the training piece of a sweep; its evaluation is `evaluated` of it."""
  return f'rate.{system}.{rate:g}'


def evaluated(train: str) -> str:
  """Name of the standard evaluation of a training piece."""
  return f'{train}.scores'


def strided_name(train: str) -> str:
  """Name of the evaluation of a training piece at every S."""
  return f'{train}.strided'


def core_name(system: str, seed: int) -> str:
  return f'core.{system}.{seed}'


def base_name(length: int, config: ml_collections.ConfigDict) -> str:
  """ARMD's base model at a length; that of the config is part of the core."""
  return core_name('armd', 0) if length == config.model.length else f'length.{length}.base'


def speed_name(length: int) -> str:
  return f'length.{length}.speed'


def tuned_name(length: int, how: str) -> str:
  """What a base model is trained further as: 'few', 'many', or 'control', which is not strided."""
  return f'length.{length}.{how}'


def fractions(config: ml_collections.ConfigDict) -> dict[str, int]:
  """The steps that results are read at, by what they are called."""
  steps = config.train.steps
  return {'25 %': steps // 4, 'a third': steps // 3, '50 %': steps // 2, '100 %': steps}


def long_steps(config: ml_collections.ConfigDict) -> int:
  """Where the bounds of `ANY_ORDER` are read as well."""
  return LONG * config.train.steps


def depth_name(depth: int, system: str, seed: int) -> str:
  """Of AR, or of ARMD with so many two-stream layers, at another depth."""
  return f'depth.{depth}.{system}.{seed}'


def two_stream_counts(depth: int) -> list[int]:
  """Of a network of so many layers: 1, 2, a quarter and half of them."""
  return sorted({1, 2, depth // 4, depth // 2})


def junction_name(how: str, seed: int, config: ml_collections.ConfigDict) -> str:
  """A base model of the longest length, with 'segments' or without ('plain')."""
  length = lengths(config)[-1]
  is_base = how == 'segments' and seed == 0
  return base_name(length, config) if is_base else f'junction.{length}.{how}.{seed}'


def size_name(size: str) -> str:
  return f'size.{size.replace(" ", "")}'


def tokens_name() -> str:
  """A base model of the longest length on the tokens of another vocabulary."""
  return f'tokens.{TOKENIZER}'


def tuned_steps(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """i_SBP, steps of fine-tuning, that results are read at."""
  return tuple(config.train.steps // part for part in (24, 12, 6))


def lengths(config: ml_collections.ConfigDict) -> list[int]:
  return [times * config.model.length for times in LONGER]


def all_pieces(config: ml_collections.ConfigDict) -> list[Piece]:
  """Every piece, the ones that others need before them.

  Args:
    config: an experiment's, such as experiments/miniature.py; all sizes follow from it.
  """
  return [
    *_rates(config),
    *_core(config),
    Piece('cost', 'cost', variants=_of_systems(), weight=700),
    Piece(
      'front',
      'front',
      needs=tuple(core_name(system, SEEDS[0]) for system in SYSTEMS),
      steps=SAMPLER_STEPS,
      streams=STREAMS,
      windows=WINDOWS // 2,
      weight=2000,
    ),
    *_lengths(config),
    Piece(
      'texts',
      'texts',
      needs=(tuned_name(lengths(config)[-1], 'many'),),
      streams=(1, 4, 16),
      windows=16,
      weight=300,
    ),
    *_junctions(config),
    *_sizes(config),
    *_tokens(config),
    *_depths(config),
    *_ablations(config),
    *_optimizers(config),
  ]


# ----- the groups


def _rates(config):
  """A sweep of the learning rate, the same for every system."""
  # Before half of the steps a denoiser may not have begun to look at its neighbours.
  steps = fractions(config)['50 %']
  pieces = []
  for system, own in SYSTEMS.items():
    for rate in RATES:
      name = rate_name(system, rate)
      overrides = own | {'optimizer.learning_rate': rate, 'train.steps': steps}
      pieces += _trained(name, overrides, (steps,), windows=WINDOWS // 2, draws=2, rate_of='')
  return pieces


def _core(config):
  """All systems at all seeds; ARMD's are read at a third of the steps, too."""
  taken = {system: long_steps(config) for system in ANY_ORDER}
  at = fractions(config)
  pieces = []
  for seed in SEEDS:
    for system, own in SYSTEMS.items():
      read = at if system.startswith('armd') else {k: s for k, s in at.items() if k != 'a third'}
      steps = tuple(sorted({*read.values(), taken.get(system, config.train.steps)}))
      overrides = own | {'seed': seed, 'train.steps': steps[-1]}
      pieces += _trained(core_name(system, seed), overrides, steps, rate_of=system)
  return pieces


def _trained(name, overrides, steps, *, windows=WINDOWS, draws=DRAWS, rate_of='armd'):
  """A run from scratch, and its likelihoods."""
  needs = tuple(evaluated(rate_name(rate_of, rate)) for rate in RATES) if rate_of else ()
  taken, weight = overrides['train.steps'] + 60, 20 + windows * draws * len(steps) / 50
  return [
    Piece(name, 'train', overrides, needs, rate_of, steps=steps, weight=taken),
    Piece(
      evaluated(name), 'evaluate', needs=(name,), steps=steps, windows=windows, draws=draws,
      weight=weight,
    ),
  ]  # fmt: skip


def _at_length(config, length):
  """Overrides for texts of a length, with as many tokens per step."""
  times = length // config.model.length
  return SYSTEMS['armd'] | {
    'model.length': length,
    'order.max_shuffled': config.order.max_shuffled * times,
    'train.batch_size': max(1, config.train.batch_size // times),
    'train.steps': config.train.steps,
  }


def _lengths(config):
  """Strided generation before and after fine-tunes, at every length."""
  steps, last = config.train.steps, tuned_steps(config)[-1]
  pieces = []
  for length in lengths(config):
    overrides, base = _at_length(config, length), base_name(length, config)
    windows = max(2, WINDOWS * config.model.length // length)
    if length > config.model.length:
      pieces += _trained(base, overrides, (steps,), windows=windows)
    pieces.append(_strided(base, (steps,), windows))
    read = tuple(steps + more for more in tuned_steps(config))
    for how, strided in (
      ('control', {}),
      ('few', {'order.strided_start': steps, 'order.strided_streams': FEW}),
      ('many', {'order.strided_start': steps, 'order.strided_streams': MANY}),
    ):
      name = tuned_name(length, how)
      is_read = read if length == config.model.length and how == 'few' else read[-1:]
      pieces += _tuned(name, base, overrides | strided, is_read, last, windows)
    pieces.append(
      Piece(
        speed_name(length), 'speed', needs=(tuned_name(length, 'many'),), steps=read[-1:],
        streams=STREAMS, weight=200 + length,
      )
    )  # fmt: skip
  return pieces


def _junctions(config):
  """Base models of the longest length with and without segments, at all seeds, at every S."""
  length, steps = lengths(config)[-1], config.train.steps
  windows = max(2, WINDOWS * config.model.length // length)
  pieces = []
  for seed in SEEDS:
    for how, change in (('segments', {}), ('plain', NO_SEGMENTS)):
      name = junction_name(how, seed, config)
      if name != base_name(length, config):
        overrides = _at_length(config, length) | change | {'seed': seed}
        pieces += _trained(name, overrides, (steps,), windows=windows)
        pieces.append(_strided(name, (steps,), windows))
  return pieces


def _sizes(config):
  """How the cost of a junction falls with the size of the model, and with steps, at 2 N."""
  length, steps = 2 * config.model.length, config.train.steps
  pieces = []
  for size, (layers, width, heads) in SIZES.items():
    overrides = _at_length(config, length) | {
      'model.num_layers': layers, 'model.embed_dim': width, 'model.num_heads': heads,
    }  # fmt: skip
    pieces += _read_at_every_s(size_name(size), overrides, (steps,))
  read = (steps, 2 * steps, 4 * steps)
  overrides = _at_length(config, length) | {'train.steps': read[-1]}
  return [*pieces, *_read_at_every_s(size_name('longer'), overrides, read)]


def _tokens(config):
  """The longest length again, on tokens of another vocabulary, at as many tokens per step."""
  length, steps = lengths(config)[-1], config.train.steps
  windows = max(2, WINDOWS * config.model.length // length)
  # Logits of so many tokens take most of the time.
  overrides = _at_length(config, length) | {'data.tokenizer': TOKENIZER}
  pieces = _read_at_every_s(tokens_name(), overrides, (steps,), windows)
  return [dataclasses.replace(piece, weight=8 * piece.weight) for piece in pieces]


def _depths(config):
  """What a layer with two streams is worth and costs, in deeper networks."""
  steps = fractions(config)['50 %']
  pieces = []
  for depth in DEPTHS:
    variants = {'ar': SYSTEMS['ar']} | {
      f'armd{count}': SYSTEMS['armd'] | {'model.num_two_stream_layers': count}
      for count in two_stream_counts(depth)
    }
    variants = {name: own | {'model.num_layers': depth} for name, own in variants.items()}
    for system, own in variants.items():
      for seed in SEEDS:
        overrides = own | {'seed': seed, 'train.steps': steps}
        name, read = depth_name(depth, system, seed), (steps // 2, steps)
        pieces += _trained(name, overrides, read, rate_of=system.rstrip('0123456789'))
        if system != 'ar':
          pieces.append(_strided(name, (steps,), WINDOWS))
    timed = {name: own | _COUNTED for name, own in variants.items()}
    pieces.append(Piece(f'depth.{depth}.cost', 'cost', variants=timed, weight=300 * depth // 4))
  return pieces


def _read_at_every_s(name, overrides, read, windows=WINDOWS // 2):
  """A run from scratch, and its likelihoods at every S."""
  trained, scores = _trained(name, overrides, read, windows=windows)
  return [trained, scores, _strided(name, read, windows)]


def _of_systems():
  """What the training step of every system is timed as: ARMD's orders are shuffled, as in most of
  its training. On uniform orders it is the same network, whose visible keys are those of
  left-to-right orders."""
  orders = _COUNTED | {'order.ar_steps': 0, 'order.perm_steps': 0}
  return {system: orders | own for system, own in SYSTEMS.items() if system != 'armd_uniform'} | {
    'armd_paper': orders | SYSTEMS['armd'] | PAPER
  }


def _tuned(name, base, overrides, read, taken, windows):
  """A base model trained on for `taken` steps, and its likelihoods at every S."""
  overrides = overrides | {'train.steps': overrides['train.steps'] + taken}
  needs = (base, *(evaluated(rate_name('armd', rate)) for rate in RATES))
  train = Piece(name, 'train', overrides, needs, 'armd', base, read, weight=taken + 60)
  return [train, _strided(name, read, windows)]


def _strided(train, read, windows):
  return Piece(
    strided_name(train), 'evaluate', needs=(train,), steps=read, windows=windows, streams=STREAMS,
    weight=60 + 60 * len(read),
  )  # fmt: skip


def ablations(config: ml_collections.ConfigDict) -> dict[str, dict[str, Any]]:
  """What is changed one at a time, by name; what the core has already is left out."""
  half, radius = config.model.num_layers // 2, config.model.query_seed_radius
  share = config.order.segments_prob
  values = {
    'model.query_seed': _choices('model', 'query_seed'),
    'model.query_seed_norm': _choices('model', 'query_seed_norm'),
    'model.query_seed_radius': (1, radius // 2, 2 * radius),
    'model.num_two_stream_layers': sorted({0, max(1, half // 2), half, config.model.num_layers}),
    # A budget of 1 moves nothing: it is that of 0.
    'order.max_shuffled': tuple(config.order.max_shuffled * part for part in (0, 1, 2, 8)),
    'order.perm_mode': _choices('order', 'perm_mode'),
    'order.segments_prob': (0.0, share / 2, (1 + share) / 2),
  }
  own = config.to_dict()
  found: dict[str, dict[str, Any]] = {'ablation.the published recipe': PAPER}
  # Left-to-right to the end: what the network has over AR.
  found[LEFT_TO_RIGHT] = NO_SEGMENTS | {'order.max_shuffled': 0}
  for field, options in values.items():
    section, name = field.split('.')
    found |= {f'ablation.{name}={x}': {field: x} for x in options if x != own[section][name]}
  return found


def _choices(section, name):
  """All values that a field of the config may take."""
  of_section = type(getattr(config_lib.Config(), section))
  return next(f for f in dataclasses.fields(of_section) if f.name == name).metadata['one_of']


def _ablations(config):
  """One change each, from scratch, most for half of the steps; and another way to fine-tune."""
  at = fractions(config)
  pieces = []
  for name, change in ablations(config).items():
    read = (at['25 %'], at['50 %'], at['100 %']) if name == LEFT_TO_RIGHT else (at['50 %'],)
    overrides = SYSTEMS['armd'] | {'train.steps': read[-1]} | change
    pieces += _trained(name, overrides, read)
    if 'segments_prob' in name or 'recipe' in name:
      pieces.append(_strided(name, read[-1:], WINDOWS))
  base, last = config.train.steps, tuned_steps(config)[-1]
  overrides = _at_length(config, config.model.length) | {
    'order.strided_start': base, 'order.strided_streams': FEW, 'order.strided_one_by_one': 0.5,
  }  # fmt: skip
  own = core_name('armd', 0)
  return [*pieces, *_tuned(ONE_BY_ONE, own, overrides, (base + last,), last, WINDOWS)]


def optimizer_name(name: str) -> str:
  """Of the training piece with one of `OPTIMIZERS`."""
  return f'optimizer.{name.replace(", ", "_")}'


def _optimizers(config):
  """ARMD of the core, by other optimizers and schedules that end with the run."""
  read = (config.train.steps,)
  pieces = []
  for name, change in OPTIMIZERS.items():
    overrides = SYSTEMS['armd'] | {'train.steps': config.train.steps} | change
    pieces += _trained(optimizer_name(name), overrides, read)
  return pieces


def checkpoint_every(steps: tuple[int, ...]) -> int:
  """Steps between checkpoints, so that each of `steps` is one."""
  return math.gcd(*steps)

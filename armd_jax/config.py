"""Every option of a run, as frozen dataclasses; `ml_collections` configs are checked against them.

An experiment file (`experiments/*.py`) starts from `default_config()`, changes fields and returns
the `ConfigDict`, whose fields the command line may override. `parse` turns it, once, at the edge of
a program, into a `Config`; from there on nothing is looked up by name.

What there is to know of a field is in its own line: what it may be, whether a run may resume with
another value, and whether the compiled training step reads it. Nothing about it is written down
anywhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from armd_jax import config_rules
from armd_jax.config_fields import field, in_float32, one_of
from armd_jax.errors import UserError, quoted

# ----- the fields

# Of what is around the step: how long it lasts, what is done how often, on which devices.
_of_loop = functools.partial(field, host_only=True, resumable=True)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a family of models predicts from.

  Attributes:
    orders: generation orders along which it predicts: 'any', 'left_to_right' alone, or 'none'.
    sets: of noised tokens beside a clean copy of the text: 'blocks' from left to right, 'ordered'
      in any order; '': there is no copy.
    own_orders: training draws orders of its own in place of `OrderConfig`'s. Content rows are the
      tokens that are not masked, and query rows the masks, in all layers.
  """

  orders: str
  sets: str = ''
  own_orders: bool = False


# Families of models. All else about a family is in its file in armd_jax/families.
FAMILIES = {
  'armd': Prediction('any'),
  'ar': Prediction('left_to_right'),
  'mdlm': Prediction('none'),
  'd3pm': Prediction('none'),
  'sedd': Prediction('none'),
  'radd': Prediction('none'),
  'bd3lm': Prediction('none', sets='blocks'),
  'setdlm': Prediction('none', sets='ordered'),
  'esolm': Prediction('any', own_orders=True),
}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The masking process of the diffusion baselines; ARMD and AR read none of it."""

  schedule: str = one_of('log_linear', 'cosine')  # of MDLM, SEDD, RADD and Eso-LM; see masking
  d3pm_steps: int = field(1000, at_least=1, at_most=2**20)  # T
  d3pm_aux: float = field(0.01, at_least=0)  # weight of D3PM's auxiliary cross-entropy (its eq. 5)
  radd_loss: str = one_of('lambda_dce', 't_dce', 'any_order')  # what RADD trains on
  block_length: int = field(4, at_least=1, at_most=2**20)  # L', tokens of a block of BD3-LM
  clip_low: float = field(0.45, at_least=0, below=1)  # beta, least masked share BD3-LM trains on
  clip_high: float = field(0.95, above=0, at_most=1)  # omega, the largest
  set_policy: str = one_of('staggered', 'blocks')  # in which order SetDLM's sets follow
  set_size: int = field(4, at_least=1, at_most=2**20)  # d, tokens of a staggered set, on average
  set_reach: int = field(8, at_least=1, at_most=2**20)  # s_max, positions from which they come
  esolm_diffused: float = field(0.125, at_least=0, at_most=1)  # alpha_0, not left to the AR phase
  esolm_split: float = field(0.5, above=0, below=1)  # share of a step's texts that train diffusion
  esolm_loss: str = one_of('elbo', 'low_variance', 'orders')  # see objectives.esolm


@dataclasses.dataclass(frozen=True)
class RopeScalingConfig:
  """How RoPE's angles are slowed down, for texts longer than a model was first trained on."""

  kind: str = one_of('none', 'linear', 'llama3')
  factor: float = field(1.0, at_least=1)  # by which angles are divided; of 'llama3' the slow ones
  low_frequency: float = field(
    1.0, above=0
  )  # turns in the original length, below which one is slow
  high_frequency: float = field(4.0, above=0)  # above which an angle stays; between: a blend
  original_length: int = field(8192, at_least=1)  # tokens


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and variants of the network (method: paper section 3)."""

  family: str = field('armd', one_of=FAMILIES)  # all that are there when it is checked
  length: int = field(1024, at_least=1, at_most=2**20)  # N, tokens scored per sequence
  num_layers: int = field(12, at_least=1, at_most=4096)
  num_two_stream_layers: int = field(-1, at_least=0)  # first ones, with a content stream; -1: half
  embed_dim: int = field(768, at_least=1, at_most=2**17)
  num_heads: int = field(12, at_least=1)
  num_kv_heads: int = field(-1, at_least=1)  # heads that share keys, values (GQA); -1: num_heads
  head_dim: int = field(-1, at_least=2, at_most=2**16)  # even; -1: embed_dim / num_heads
  mlp_dim: int = field(-1, at_least=1, at_most=2**19)  # -1: 4 * embed_dim
  mlp: str = one_of('gelu', 'swiglu')  # 'swiglu': silu of one product times another
  dropout: float = field(0.1, at_least=0, below=1)  # of embeddings and branches; none in attention
  rope_theta: float = field(1e4, at_least=1)
  rope_scaling: RopeScalingConfig = RopeScalingConfig()
  architecture: str = one_of('rope', 'gpt2')  # 'gpt2' of ARMD and AR: learned positions, LayerNorm
  norm_epsilon: float = field(-1.0, above=0, at_most=1)  # -1: 1e-6; of 'gpt2' 1e-5
  query_key_norm: bool = field(False)  # RMSNorm of every head's queries and keys, before RoPE
  # Which products add a bias; 'auto': all of 'gpt2', else none.
  biases: str = one_of('auto', 'none', 'query_key_value', 'attention', 'all')
  tied_head: bool = field(True)  # logits by the embedding; False: by a matrix of their own
  first_token: str = one_of('predicted', 'given')  # a text's first token follows BOS, or is given
  query_seed: str = one_of('prefix', 'neighbours', 'mask_embedding', 'shift', 'warm')  # G^0
  query_seed_norm: str = one_of('none', 'rms')
  query_seed_chunk: int = field(128, at_least=0)  # slots a chunk, in linear form; 0: quadratic
  query_seed_radius: int = field(8, at_least=1, at_most=64)  # tokens on a side, of 'neighbours'
  content_mask: str = one_of('block', 'row')  # content rows see their own block, or to themselves
  position_rows: str = one_of('sinusoidal', 'learned')  # PE of eq. 6, of unit length
  position_dim: int = field(64, at_least=2, at_most=2**20)  # even
  attention: str = one_of('auto', 'reference', 'pallas_tpu', 'pallas_hopper', resumable=True)
  dtype: str = one_of('bfloat16', 'float32')  # of activations; parameters are float32
  remat: str = one_of('none', 'dots', 'full', resumable=True)  # what the backward pass recomputes
  scan_layers: bool = field(True)  # one compiled layer in a loop; False unrolls
  diffusion: DiffusionConfig = DiffusionConfig()
  vocab_multiple: int = field(128, at_least=1, at_most=2**20)  # pads the vocabulary, for sharding

  @property
  def orders(self) -> str:
    """Generation orders along which the family predicts, see `Prediction`."""
    return FAMILIES[self.family].orders

  @property
  def sets(self) -> str:
    """Which sets of tokens are noised beside a clean copy of the text, see `Prediction`."""
    return FAMILIES[self.family].sets

  @property
  def set_length(self) -> int:
    """Rows of noised tokens that see each other beside a clean copy; 0: there is no copy."""
    return {'': 0, 'blocks': self.diffusion.block_length, 'ordered': 1}[self.sets]

  @property
  def has_own_orders(self) -> bool:
    """Whether training draws the family's own orders, see `Prediction`."""
    return FAMILIES[self.family].own_orders

  @property
  def num_slots(self) -> int:
    """Tokens predicted per sequence: all of them, or all but a given first one."""
    return self.length - (self.first_token == 'given')

  def padded(self, vocab_size: int) -> int:
    """Rows of the embedding: the vocabulary and its padding."""
    return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class OrderConfig:
  """Which generation orders a training step sees (paper sections 3.1 and 5).

  An AR model has left-to-right orders alone: `parse` sets its `max_shuffled` and `segments_prob` to
  0, whatever is given, so that one experiment serves all families. The diffusion baselines and
  families with orders of their own read none of this.
  """

  ar_steps: int = field(9_000, at_least=0)  # i_AR
  perm_steps: int = field(48_000, at_least=0)  # i_perm
  max_shuffled: int = field(32, at_least=0)  # rho, most tokens shuffled; of AR always 0
  perm_mode: str = one_of('scatter', 'window')
  uniform_order_prob: float = field(0.0, at_least=0, at_most=1)  # share in random order, from i_AR
  masking_steps: int = field(0, at_least=0, at_most=2**20)  # T of random blocks; 0: singletons
  masking_schedule: str = one_of('linear', 'cosine')  # of the masking process of those blocks
  strided_start: int = field(-1, at_least=0)  # first step of strided orders (SBP); -1: never
  strided_streams: tuple[int, ...] = field((1, 2, 4), at_least=1)  # S, drawn with equal chances
  strided_draw: str = one_of('step', 'sequence')  # one S for all sequences of a step, or for each
  strided_one_by_one: float = field(0.0, at_least=0, at_most=1)  # share, a token at a time
  segments_prob: float = field(0.0, at_least=0, at_most=1)  # share cut into segments, from i_AR
  segments_cuts: int = field(-1, at_least=1)  # most cuts of a sequence; -1: an eighth of its tokens


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The text, its split and its tokens."""

  # A prepared corpus's folder, or a source as in armd_jax.data.sources.
  source: str = field('stdlib', host_only=True, is_path=True, resumable=True)
  # Several such corpora in place of `source`, and how often each is drawn from; (): all alike.
  mixture: tuple[str, ...] = field((), host_only=True, is_path=True, resumable=True)
  weights: tuple[float, ...] = field((), above=0, host_only=True)
  tokenizer: str = field('bytes', host_only=True)  # of armd_jax.data.tokenizers
  packing: str = one_of('joined', 'wrapped', 'documents')  # see armd_jax.data.packing
  # Column of files with a prompt to each document, seen and not scored; '': none.
  prompt: str = field('', host_only=True)
  # At rows without text: end, or leave them out.
  bad_rows: str = one_of('stop', 'skip', host_only=True)
  # Share of the text's bytes held out, by document; none of a prepared corpus.
  held_out: float = field(0.05, above=0, below=1, host_only=True)
  workers: int = _of_loop(0, at_least=0, at_most=1024)  # processes that read ahead; 0: a thread
  prefetch_mib: int = _of_loop(256, at_least=1, at_most=2**20)  # of batches read ahead, a process


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Clipped gradients, a rate that warms up and may fall, and an exponential moving average."""

  kind: str = one_of('adamw', 'muon', 'adafactor')  # see armd_jax.training.optimizers
  learning_rate: float = field(3e-4, at_least=0)  # after the warm-up
  beta1: float = field(0.9, at_least=0, below=1)
  beta2: float = field(0.999, at_least=0, below=1)
  eps: float = field(1e-8, at_least=1e-30)
  weight_decay: float = field(0.0, at_least=0)
  clip_norm: float = field(1.0, above=0)
  skip_above: float = field(0.0, at_least=0)  # x the median of recent gradient norms; 0: never
  warmup_steps: int = field(2500, at_least=0)
  schedule: str = one_of('constant', 'cosine', 'linear', 'warmup_stable_decay')
  schedule_steps: int = field(-1, at_least=1)  # where it ends; -1: at config.train.steps
  decay_steps: int = field(-1, at_least=1)  # of warmup_stable_decay, its last ones; -1: a fifth
  final_share: float = field(0.0, at_least=0, at_most=1)  # of the rate, where the schedule ends
  schedule_restarts: bool = field(False)  # after init_from warm-up and schedule begin anew
  ema_decay: float = field(0.9999, at_least=0, at_most=1)
  trained: str = field('')  # regular expression found in the names of what is trained; '': all is
  lora_rank: int = field(0, at_least=0, at_most=2**16)  # of adapters, in place of matrices; 0: none
  lora_alpha: float = field(16.0, above=0)  # adapters are added times alpha / rank


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length, batch and book-keeping of a training run."""

  steps: int = _of_loop(400_000, at_least=1)
  batch_size: int = field(512, at_least=1, at_most=2**24)  # sequences of a step, on all devices
  accumulation: int = field(1, at_least=1)  # micro-batches per step
  loss_chunk: int = field(0, at_least=0, resumable=True)  # positions with logits at once; 0: auto
  log_every: int = _of_loop(100, at_least=1)
  log_layers: bool = field(False, resumable=True)  # norms of gradients and updates, layer by layer
  eval_every: int = _of_loop(5_000, at_least=1)
  eval_windows: int = _of_loop(512, at_least=1)  # held-out sequences per evaluation in training
  eval_streams: tuple[int, ...] = _of_loop((), at_least=1)  # S of strided orders measured as well
  sample_every: int = _of_loop(0, at_least=0)  # logs a generated text; 0: never
  checkpoint_every: int = _of_loop(1_000, at_least=1)
  keep_last: int = _of_loop(2, at_least=1)  # newest checkpoints
  keep_every: int = _of_loop(50_000, at_least=0)  # keeps multiples of this for good; 0: none
  keep_best: int = _of_loop(1, at_least=0)  # by held-out nats
  max_not_finite: int = _of_loop(20, at_least=1)  # steps in a row that may be skipped
  hang_seconds: int = _of_loop(1_800, at_least=0)  # without progress, before it ends; 0: no end
  profile_steps: tuple[int, ...] = _of_loop((), at_least=1)  # first, last of a profiler's trace
  wandb: str = _of_loop('')  # project of Weights & Biases to log to as well


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 takes what is left."""

  data: int = _of_loop(-1, at_least=1)
  fsdp: int = _of_loop(1, at_least=-1)
  tensor: int = _of_loop(1, at_least=-1)


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  seed: int = field(0, at_least=0)
  # Work directory whose last checkpoint a new run continues from.
  init_from: str = field('', host_only=True, is_path=True)
  init_step: int = field(-1, at_least=0, host_only=True)  # another one of its checkpoints
  model: ModelConfig = ModelConfig()
  order: OrderConfig = OrderConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()


# Fields of older versions, by their old names, and the values of those that have other values now.
RENAMED: dict[str, str] = {
  'g0': 'query_seed', 'g0_norm': 'query_seed_norm', 'g0_chunk': 'query_seed_chunk',
  'pe_dim': 'position_dim', 'sbp_start': 'strided_start', 'sbp_streams': 'strided_streams',
  'sbp_one_by_one': 'strided_one_by_one', 'block_steps': 'masking_steps',
  'block_schedule': 'masking_schedule', 'pe': 'position_rows', 'style': 'architecture',
  'bos': 'first_token', 'rho': 'max_shuffled',
}  # fmt: skip
RENAMED_VALUES: dict[str, str] = {'prepend': 'predicted', 'first_token_given': 'given'}

# ----- using it


def default_config() -> ml_collections.ConfigDict:
  """All fields with their defaults; unknown fields cannot be added to it."""
  return ml_collections.ConfigDict(to_dict(Config()), type_safe=True).lock()


def to_dict(config: Config) -> dict[str, Any]:
  """Nested dicts of plain values, as written to `config.json`."""
  return dataclasses.asdict(config)


def fields(section: Any = Config, prefix: str = '') -> Iterator[tuple[str, dataclasses.Field[Any]]]:
  """All fields by their dotted name, such as 'model.length', sections left out."""
  for found in dataclasses.fields(section):
    if dataclasses.is_dataclass(found.default):
      yield from fields(found.default, f'{prefix}{found.name}.')
    else:
      yield prefix + found.name, found


def reset(section: Any, mark: str) -> Any:
  """The config with those fields at their defaults that have a mark.

  Args:
    section: a `Config`, or a part of one.
    mark: an argument of `field`, such as 'host_only'.
  """
  changes = {}
  for found in dataclasses.fields(section):
    if dataclasses.is_dataclass(found.default):
      changes[found.name] = reset(getattr(section, found.name), mark)
    elif found.metadata[mark]:
      changes[found.name] = found.default
  return dataclasses.replace(section, **changes)


def parse(raw: Any) -> Config:
  """Checks a (Config)dict and freezes it.

  Args:
    raw: nested mapping; missing fields take their defaults.
  Returns:
    The config, with -1 defaults of the model filled in, and with an AR model's left-to-right orders
    (see `OrderConfig`).
  Raises:
    UserError: one sentence naming the field, its value and the fix.
  """
  if isinstance(raw, ml_collections.ConfigDict):
    raw = raw.to_dict()
  config = _resolve(_build(Config, raw, 'config'))
  for contradiction in config_rules.contradictions(config):
    raise UserError(contradiction)
  return config


def parse_file(raw: Any, source: Any) -> Config:
  """`parse` of what a file holds, in which fields may have names of older versions.

  Args:
    raw: what was read.
    source: the file's name, for the error.
  Raises:
    UserError: it is no config of this version or an older one.
  """
  try:
    return parse(_with_new_names(raw))
  except UserError as error:
    raise UserError(f'{source} holds no config of this version: {error}') from None


def _with_new_names(raw: Any) -> Any:
  """The tree with the names and values that fields have now."""
  if not isinstance(raw, dict):
    return raw
  renamed = {name: _with_new_names(value) for name, value in raw.items() if name not in RENAMED}
  for name in raw.keys() & RENAMED.keys():
    value, new = raw[name], RENAMED[name]
    if new in renamed:
      raise UserError(f'a field is there both as {name!r} and as {new!r}; remove the former')
    renamed[new] = RENAMED_VALUES.get(value, value) if isinstance(value, str) else value
  return renamed


def _build(cls: Any, raw: Any, path: str) -> Any:
  if not isinstance(raw, dict):
    raise UserError(f'{path} is {raw!r} but must hold the fields of {cls.__name__}')
  known = {f.name: f for f in dataclasses.fields(cls)}
  kinds = typing.get_type_hints(cls)
  values = {}
  for name, value in raw.items():
    where = f'{path}.{name}'
    if name not in known:
      raise UserError(f'{path} has no field {name!r}; {_hint(name, known)}')
    is_section = dataclasses.is_dataclass(kinds[name])
    make = _build if is_section else functools.partial(_value, known[name])
    values[name] = make(kinds[name], value, where)
  return cls(**values)


def _hint(name: str, known: Mapping[str, Any]) -> str:
  if name in RENAMED:
    return f'its name is {RENAMED[name]!r} now'
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f'write {close[0]!r}' if close else f'write one of {", ".join(sorted(known))}'


def _value(known: dataclasses.Field[Any], kind: Any, value: Any, where: str) -> Any:
  """The value in the field's own type, if it may have it."""
  is_tuple = isinstance(kind, types.GenericAlias)  # tuple[int, ...] and the like
  if is_tuple:
    value = config_rules.as_tuple(typing.get_args(kind)[0], value, where)
  elif type(value) is not kind and (kind, type(value)) != (float, int):
    raise UserError(f'{where} is {quoted(value)} but must be of type {kind.__name__}')
  allowed, choices = known.metadata.get('range'), known.metadata['one_of']
  if choices and value not in choices:
    raise UserError(f'{where} is {quoted(value)}; write one of {", ".join(map(repr, choices))}')
  if allowed and value != known.default:
    numbers = value if is_tuple else (value,)
    if wrong := [number for number in numbers if number not in allowed]:
      what = config_rules.NUMBERS.get(kind, 'whole numbers')
      is_special = not is_tuple and known.default not in allowed
      is_end = allowed.low <= wrong[0] <= allowed.high and in_float32(wrong[0]) != wrong[0]
      seen = f', which is {in_float32(wrong[0])} in float32' if is_end else ''
      raise UserError(
        f'{where} is {quoted(value)}{seen}; write {what} {allowed}'
        f'{f", or {known.default}" * is_special}'
      )
  return float(value) if kind is float else value


def _resolve(config: Config) -> Config:
  """Fills in the model sizes that default to others; an AR model's orders are left-to-right, and
  families with orders of their own have masks for query rows."""
  model = config.model
  if model.has_own_orders:
    model = dataclasses.replace(
      model,
      num_two_stream_layers=model.num_layers,
      query_seed='mask_embedding',
      query_seed_norm='none',
      content_mask='row',
    )
  filled: dict[str, Any] = {
    'num_two_stream_layers': model.num_layers // 2,
    'num_kv_heads': model.num_heads,
    'mlp_dim': 4 * model.embed_dim,
    'norm_epsilon': 1e-5 if model.architecture == 'gpt2' else 1e-6,
    'biases': 'all' if model.architecture == 'gpt2' else 'none',
  }
  if model.embed_dim % (2 * model.num_heads) == 0:
    filled['head_dim'] = model.embed_dim // model.num_heads
  unset = {name: value for name, value in filled.items() if getattr(model, name) in (-1, 'auto')}
  order = config.order
  if order.segments_cuts == -1:
    order = dataclasses.replace(order, segments_cuts=max(1, model.num_slots // 8))
  if model.orders == 'left_to_right':
    order = dataclasses.replace(order, max_shuffled=0, segments_prob=0.0)
  model, rate = dataclasses.replace(model, **unset), config_rules.with_ends(config)
  return dataclasses.replace(config, model=model, order=order, optimizer=rate)

"""Every option of a run, as frozen dataclasses; `ml_collections` configs are checked against them.

An experiment file (`experiments/*.py`) starts from `default_config()`, changes fields and returns
the `ConfigDict`, whose fields the command line may override. `parse` turns it, once, at the edge of
a program, into a `Config`; from there on nothing is looked up by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any

import ml_collections

from armd_jax.errors import UserError


def _one_of(*values):
  """A field whose first allowed value is the default."""
  return dataclasses.field(default=values[0], metadata={'one_of': values})


# Families of models, and the generation orders along which each predicts: 'any', 'left_to_right'
# alone, or 'none'. All else about a family is in its file in armd_jax/families.
FAMILIES = {
  'armd': 'any',
  'ar': 'left_to_right',
  'mdlm': 'none',
  'd3pm': 'none',
  'sedd': 'none',
  'radd': 'none',
}


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
  """The masking process of the diffusion baselines; ARMD and AR read none of it."""

  schedule: str = _one_of('log_linear', 'cosine')  # of MDLM, SEDD and RADD; see objectives.masking
  d3pm_steps: int = 1000  # T
  d3pm_aux: float = 0.01  # weight of D3PM's auxiliary cross-entropy in every step (its eq. 5)
  radd_loss: str = _one_of('lambda_dce', 't_dce', 'any_order')  # what RADD trains on


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Shape and variants of the network (method: paper section 3)."""

  family: str = _one_of(*FAMILIES)
  length: int = 1024  # N, tokens scored per sequence
  num_layers: int = 12
  num_two_stream_layers: int = -1  # first layers with a content stream; -1: half of them
  embed_dim: int = 768
  num_heads: int = 12
  num_kv_heads: int = -1  # heads that share keys and values (GQA); -1: num_heads
  mlp_dim: int = -1  # -1: 4 * embed_dim
  dropout: float = 0.1  # on embeddings and residual branches, none on attention probabilities
  rope_theta: float = 1e4
  style: str = _one_of('rope', 'gpt2')  # 'gpt2': learned positions, LayerNorm, biases (ARMD, AR)
  bos: str = _one_of('prepend', 'first_token_given')
  g0: str = _one_of('prefix', 'mask_embedding', 'shift', 'warm')  # query rows' seed (paper eq. 6)
  g0_norm: str = _one_of('none', 'rms')
  g0_chunk: int = 128  # slots per chunk of the linear form of eq. 6; 0: the quadratic form
  pe: str = _one_of('sinusoidal', 'local', 'learned')  # position rows of eq. 6, of unit length
  pe_dim: int = 64  # of 'local' rows: half the length or more
  attention: str = _one_of('auto', 'reference', 'pallas_tpu', 'pallas_hopper')
  dtype: str = _one_of('bfloat16', 'float32')  # of activations; parameters are float32
  remat: str = _one_of('none', 'dots', 'full')  # what the backward pass recomputes
  scan_layers: bool = True  # one compiled layer in a loop; False unrolls
  diffusion: DiffusionConfig = DiffusionConfig()
  vocab_multiple: int = 128  # the vocabulary is padded to a multiple of this, for sharding

  @property
  def orders(self) -> str:
    """Generation orders along which the family predicts, see `FAMILIES`."""
    return FAMILIES[self.family]

  @property
  def num_slots(self) -> int:
    """Tokens predicted per sequence: all of them, or all but a given first one."""
    return self.length - (self.bos == 'first_token_given')

  @property
  def head_dim(self) -> int:
    return self.embed_dim // self.num_heads

  def padded(self, vocab_size: int) -> int:
    """Rows of the embedding: the vocabulary and its padding."""
    return -(-vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class OrderConfig:
  """Which generation orders a training step sees (paper sections 3.1 and 5)."""

  ar_steps: int = 9_000  # i_AR
  perm_steps: int = 48_000  # i_perm
  rho: int = 32  # most tokens shuffled
  perm_mode: str = _one_of('scatter', 'window')
  uniform_order_prob: float = 0.0  # share of sequences in random order, once shuffling starts
  block_steps: int = 0  # T: random orders are blocks of a T-step masking process; 0: singletons
  block_schedule: str = _one_of('linear', 'cosine')  # of that process
  sbp_start: int = -1  # from this step on orders are strided (SBP); -1: never
  sbp_streams: tuple[int, ...] = (1, 2, 4)  # S is drawn uniformly from these at every step
  sbp_one_by_one: float = 0.0  # share of sequences whose strided order goes a token at a time


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The text, its split and its tokens."""

  source: str = 'stdlib'  # a prepared corpus's folder, or a source as in armd_jax.data.sources
  tokenizer: str = 'bytes'  # of armd_jax.data.tokenizers
  packing: str = _one_of('joined', 'wrapped')  # see armd_jax.data.packing
  held_out: float = 0.05  # share of the text's bytes held out, by document; none of a prepared one
  workers: int = 0  # processes that read ahead; 0: a thread, enough for small steps
  prefetch_mib: int = 256  # most memory, per process of the run, of batches that are read ahead


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with clipping, warm-up to a constant rate, and an exponential moving average."""

  learning_rate: float = 3e-4
  beta1: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0
  warmup_steps: int = 2500
  ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Length, batch and book-keeping of a training run."""

  steps: int = 400_000
  batch_size: int = 512  # sequences per step, over all devices and micro-batches
  accumulation: int = 1  # micro-batches per step
  loss_chunk: int = 0  # positions of a sequence whose logits exist at once; 0: 4096 rows a device
  log_every: int = 100
  eval_every: int = 5_000
  eval_windows: int = 512  # held-out sequences per evaluation while training
  sample_every: int = 0  # logs a generated text; 0: never
  checkpoint_every: int = 1_000
  keep_last: int = 2  # newest checkpoints
  keep_every: int = 50_000  # checkpoints of multiples of this are kept for good; 0: none
  keep_best: int = 1  # by held-out nats
  max_not_finite: int = 20  # steps in a row that may be skipped before training stops
  hang_seconds: int = 1_800  # without progress, after which the process ends; 0: it waits for ever
  profile_steps: tuple[int, ...] = ()  # first and last step of a profiler's trace
  wandb: str = ''  # project of Weights & Biases to log to as well


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 takes what is left."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  seed: int = 0
  init_from: str = ''  # work directory whose last checkpoint a new run continues from
  model: ModelConfig = ModelConfig()
  order: OrderConfig = OrderConfig()
  data: DataConfig = DataConfig()
  optimizer: OptimizerConfig = OptimizerConfig()
  train: TrainConfig = TrainConfig()
  mesh: MeshConfig = MeshConfig()


def default_config() -> ml_collections.ConfigDict:
  """All fields with their defaults; unknown fields cannot be added to it."""
  return ml_collections.ConfigDict(to_dict(Config()), type_safe=True).lock()


def to_dict(config: Config) -> dict[str, Any]:
  """Nested dicts of plain values, as written to `config.json`."""
  return dataclasses.asdict(config)


def parse(raw: Any) -> Config:
  """Checks a (Config)dict and freezes it.

  Args:
    raw: nested mapping; missing fields take their defaults.
  Returns:
    The config, with -1 defaults of the model filled in.
  Raises:
    UserError: one sentence naming the field, its value and the fix.
  """
  if isinstance(raw, ml_collections.ConfigDict):
    raw = raw.to_dict()
  return _check(_resolve(_build(Config, raw, 'config')))


def _build(cls, raw, path):
  if not isinstance(raw, dict):
    raise UserError(f'{path} is {raw!r} but must hold the fields of {cls.__name__}')
  fields = {f.name: f for f in dataclasses.fields(cls)}
  for name in raw:
    if name not in fields:
      close = difflib.get_close_matches(name, fields, n=1, cutoff=0.5)
      hint = f'write {close[0]!r}' if close else f'write one of {sorted(fields)}'
      raise UserError(f'{path} has no field {name!r}; {hint}')
  kinds = typing.get_type_hints(cls)
  values = {}
  for name, value in raw.items():
    where = f'{path}.{name}'
    if dataclasses.is_dataclass(kinds[name]):
      values[name] = _build(kinds[name], value, where)
      continue
    values[name] = _cast(kinds[name], value, where)
    allowed = fields[name].metadata.get('one_of')
    if allowed and values[name] not in allowed:
      raise UserError(f'{where} is {value!r}; write one of {", ".join(map(repr, allowed))}')
  return cls(**values)


def _cast(kind, value, where):
  if isinstance(kind, types.GenericAlias):  # the only one is tuple[int, ...]
    if isinstance(value, int):
      value = (value,)
    if not isinstance(value, (tuple, list)) or not all(type(v) is int for v in value):
      raise UserError(f'{where} is {value!r} but must be a tuple of whole numbers, like (1, 2, 4)')
    return tuple(value)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    raise UserError(f'{where} is {value!r} but must be of type {kind.__name__}')
  return value


def _resolve(config: Config) -> Config:
  """Fills in the model sizes that default to others; an AR model's orders are left-to-right."""
  model = config.model
  filled = {
    'num_two_stream_layers': model.num_layers // 2,
    'num_kv_heads': model.num_heads,
    'mlp_dim': 4 * model.embed_dim,
  }
  unset = {name: value for name, value in filled.items() if getattr(model, name) == -1}
  order = config.order
  if (
    model.orders == 'left_to_right'
  ):  # which cannot tell where a token stands that is not the next one
    order = dataclasses.replace(order, rho=0, uniform_order_prob=0.0)
  return dataclasses.replace(config, model=dataclasses.replace(model, **unset), order=order)


def _require(condition: bool, sentence: str) -> None:
  if not condition:
    raise UserError(sentence)


def _check(config: Config) -> Config:
  m, o, d, t, p = config.model, config.order, config.data, config.train, config.optimizer
  for section, names in (
    ('model', ('length', 'num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'mlp_dim')),
    ('model', ('pe_dim', 'vocab_multiple')),
    ('train', ('steps', 'batch_size', 'accumulation', 'log_every', 'eval_every')),
    ('train', ('eval_windows', 'checkpoint_every', 'keep_last', 'max_not_finite')),
  ):
    for name in names:
      value = getattr(getattr(config, section), name)
      _require(value >= 1, f'config.{section}.{name} is {value}; write 1 or more')
  for name in ('loss_chunk', 'sample_every', 'keep_every', 'keep_best', 'hang_seconds'):
    value = getattr(t, name)
    _require(value >= 0, f'config.train.{name} is {value}; write 0 or more')
  _require(
    not t.profile_steps or (len(t.profile_steps) == 2 and 1 <= t.profile_steps[0] <= t.steps),
    f'config.train.profile_steps is {t.profile_steps}; write the first and the last step of a '
    'trace, like (10, 12), or ()',
  )
  _require(
    0 <= m.num_two_stream_layers <= m.num_layers,
    f'config.model.num_two_stream_layers is {m.num_two_stream_layers}; '
    f'write 0 to num_layers = {m.num_layers}',
  )
  _require(
    m.embed_dim % (2 * m.num_heads) == 0,
    f'config.model.embed_dim is {m.embed_dim}, which {m.num_heads} heads of even width do not '
    f'divide; write a multiple of {2 * m.num_heads}',
  )
  _require(
    m.num_heads % m.num_kv_heads == 0,
    f'config.model.num_kv_heads is {m.num_kv_heads}; write a divisor of num_heads = {m.num_heads}',
  )
  _require(m.pe_dim % 2 == 0, f'config.model.pe_dim is {m.pe_dim}; write an even number')
  _require(m.g0_chunk >= 0, f'config.model.g0_chunk is {m.g0_chunk}; write 0 or more')
  for name, value in (
    ('model.dropout', m.dropout),
    ('order.uniform_order_prob', o.uniform_order_prob),
    ('order.sbp_one_by_one', o.sbp_one_by_one),
    ('optimizer.ema_decay', p.ema_decay),
  ):
    _require(0 <= value <= 1, f'config.{name} is {value}; write a number from 0 to 1')
  _require(
    0 < d.held_out < 1,
    f'config.data.held_out is {d.held_out}; write a share between 0 and 1, like 0.05',
  )
  _require(d.workers >= 0, f'config.data.workers is {d.workers}; write 0 or more')
  _require(d.prefetch_mib >= 1, f'config.data.prefetch_mib is {d.prefetch_mib}; write 1 or more')
  _require(
    0 <= o.rho <= m.length, f'config.order.rho is {o.rho}; write 0 to model.length = {m.length}'
  )
  _require(
    o.ar_steps <= o.perm_steps,
    f'config.order.perm_steps is {o.perm_steps}, before ar_steps = {o.ar_steps}; '
    'write a later step',
  )
  for streams in o.sbp_streams if o.sbp_start >= 0 else ():
    check_streams(streams, m.num_slots, 'config.order.sbp_streams')
  _require(
    t.batch_size % t.accumulation == 0,
    f'config.train.accumulation is {t.accumulation}; '
    f'write a divisor of batch_size = {t.batch_size}',
  )
  _require(
    m.orders == 'any' or o.sbp_start < 0,
    f'config.order.sbp_start is set but config.model.family is {m.family!r}, which has no strided '
    'orders; write -1',
  )
  _require(
    m.orders != 'none' or m.style == 'rope',
    f'config.model.style is {m.style!r} but config.model.family is {m.family!r}, which has RoPE '
    "only; write 'rope'",
  )
  _require(o.block_steps >= 0, f'config.order.block_steps is {o.block_steps}; write 0 or more')
  f = m.diffusion
  _require(
    f.d3pm_steps >= 1, f'config.model.diffusion.d3pm_steps is {f.d3pm_steps}; write 1 or more'
  )
  _require(f.d3pm_aux >= 0, f'config.model.diffusion.d3pm_aux is {f.d3pm_aux}; write 0 or more')
  return config


def check_streams(streams: int, num_slots: int, name: str) -> None:
  """Refuses a stride count that leaves streams of unequal length.

  Raises:
    UserError: if `streams` does not divide `num_slots`.
  """
  if streams >= 1 and num_slots % streams == 0:
    return
  divisors = [s for s in range(1, num_slots + 1) if num_slots % s == 0]
  near = sorted(divisors, key=lambda s: abs(s - streams))[:3]
  raise UserError(
    f'{name} holds S = {streams}, which does not divide the length {num_slots}; '
    f'write a divisor, like {", ".join(map(str, sorted(near)))}'
  )

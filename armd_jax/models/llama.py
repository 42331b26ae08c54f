"""Llama's family as the AR model here: Llama, SmolLM2, Mistral, Qwen2.5, Qwen3.

A folder holds Hugging Face's config.json and model.safetensors, or shards and their index, or one
file of GGUF (see `gguf_file`). If it has a setting or an array that would change what the model
computes and is not supported here, an error names it. BOS is the embedding of the id that
config.json names for it, else of the id that ends a text, since texts may begin with either.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from armd_jax import config as config_lib
from armd_jax.errors import UserError
from armd_jax.files import paths, whole
from armd_jax.models import gguf_file, weight_files
from armd_jax.models.layers import stack_of
from armd_jax.models.params import Params
from armd_jax.models.weight_files import Weights

MOST = 1024  # tokens of a text, unless more are asked for
KINDS = ('llama', 'mistral', 'qwen2', 'qwen3')
_ROPE = 'rope_parameters'
_SIZES = {
  'num_hidden_layers': 'num_layers', 'hidden_size': 'embed_dim', 'num_attention_heads': 'num_heads',
  'intermediate_size': 'mlp_dim',
}  # fmt: skip
# The only values supported here; the defaults of transformers come first.
_FIXED: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu', 'swish'), 'pretraining_tp': (1, None),
  'partial_rotary_factor': (1.0, None),
}  # fmt: skip
_READ = {
  'model_type', 'vocab_size', 'num_key_value_heads', 'head_dim', 'max_position_embeddings',
  'rms_norm_eps', 'rope_theta', 'rope_scaling', 'rope_parameters', 'attention_bias', 'mlp_bias',
  'tie_word_embeddings', 'sliding_window', 'use_sliding_window', 'layer_types', 'bos_token_id',
  'eos_token_id',
}  # fmt: skip
_MADE_OF = {'rope_scaling': dict, _ROPE: dict, 'layer_types': list, 'sliding_window': int}
# Fields without influence here: names, training, how transformers generates.
_UNUSED = {
  'architectures', 'attention_dropout', 'hidden_dropout', 'initializer_range', 'use_cache',
  'torch_dtype', 'dtype', 'transformers_version', '_name_or_path', 'pad_token_id', 'unk_token_id',
  'max_window_layers', 'id2label', 'label2id', 'num_labels', 'problem_type', 'return_dict',
  'output_attentions', 'output_hidden_states', 'chunk_size_feed_forward', 'is_encoder_decoder',
  'is_llama_config', 'rope_interleaved', 'transformers.js_config', '_attn_implementation_autoset',
  'torchscript', 'use_bfloat16', 'temperature', 'top_p', 'top_k', 'do_sample', 'max_length',
  'repetition_penalty', 'sep_token_id', 'decoder_start_token_id', 'task_specific_params',
}  # fmt: skip
_TYPES = {  # the fields of each kind of scaling, beside its name
  'default': {}, 'linear': {'factor': 'factor'},
  'llama3': {
    'factor': 'factor', 'low_freq_factor': 'low_frequency', 'high_freq_factor': 'high_frequency',
    'original_max_position_embeddings': 'original_length',
  },
}  # fmt: skip
_SCALE = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor'}
_OTHER = 'name another model'


def load(folder: str | pathlib.Path, length: int) -> tuple[config_lib.ModelConfig, int, Params]:
  """A model's config, its vocabulary size and its parameters.

  Args:
    folder: see above; or the file of GGUF.
    length: N, tokens of a text, no more than the model was made for; 0: as many, or `MOST`.
  Returns:
    The config is float32 without dropout; parameters are float32.
  Raises:
    UserError: a file is missing or damaged, holds no model of this family, lacks an array, has one
      of another shape than in the config, or anything that is not used.
  """
  folder = paths.given(folder, 'the folder of a model')
  if gguf_file.is_there(folder):
    path, described, weights = gguf_file.read(folder)
  else:
    path = folder / 'config.json'
    described, weights = _read_json(path), weight_files.read(folder, 'model.')
  return of(path, described, weights, length)


def of(
  path: pathlib.Path, described: Mapping[str, Any], weights: Weights, length: int
) -> tuple[config_lib.ModelConfig, int, Params]:
  """See `load`.

  Args:
    path: the file that describes the model, for errors.
    described: the content of config.json.
    weights: by Hugging Face's names, without 'model.'.
  """
  config = _config(path, described, length)
  params = _params(path, config, described, weights)
  return config, described['vocab_size'], params


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  fix = 'name a folder with the config.json and model.safetensors of a model'
  try:
    return whole.read_json(path, {}, fix)
  except OSError as error:
    raise UserError(f'cannot read {path} ({error.strerror}); {fix}') from error


# ----- config


def _config(
  path: pathlib.Path, described: Mapping[str, Any], length: int
) -> config_lib.ModelConfig:
  kind = described.get('model_type')
  if kind not in KINDS:
    raise UserError(
      f'{path} says model_type = {kind!r}, which is not known here; name a model of one of the '
      f'kinds gpt2, {", ".join(KINDS)}'
    )
  _check_known(path, described)
  most = _whole(path, described, 'max_position_embeddings')
  length = length or min(most, MOST)
  if length > most:
    raise UserError(f'--length is {length}, but {path} is made for {most} tokens; write at most it')
  _check_window(path, described, length)
  names = ('attention_bias', 'mlp_bias')
  attention, mlp = (bool(described.get(name, False)) for name in names)
  if mlp and not attention:
    raise UserError(
      f'{path} says mlp_bias without attention_bias, which is not known here; {_OTHER}'
    )
  biases = 'all' if mlp else 'attention' if attention else 'none'
  heads = _whole(path, described, 'num_attention_heads')
  sizes: dict[str, Any] = {ours: _whole(path, described, name) for name, ours in _SIZES.items()}
  if described.get('num_key_value_heads') is not None:
    sizes['num_kv_heads'] = _whole(path, described, 'num_key_value_heads')
  if described.get('head_dim') is not None:
    sizes['head_dim'] = _whole(path, described, 'head_dim')
  elif kind == 'qwen3':
    sizes['head_dim'] = 128  # transformers' own default
  if heads > 0 and sizes['embed_dim'] % heads and 'head_dim' not in sizes:
    raise UserError(
      f'{path} says hidden_size = {sizes["embed_dim"]}, which {heads} heads do not divide; fetch '
      'it anew'
    )
  raw = sizes | {
    'family': 'ar',
    'length': length,
    'mlp': 'swiglu',
    'dropout': 0.0,
    'dtype': 'float32',
    'norm_epsilon': described.get('rms_norm_eps', 1e-6),
    'query_key_norm': kind == 'qwen3',
    'biases': 'query_key_value' if kind == 'qwen2' else biases,
    'tied_head': bool(described.get('tie_word_embeddings', False)),
    **_rope(path, described),
  }
  try:
    return config_lib.parse({'model': raw, 'order': {'max_shuffled': 0}}).model
  except UserError as error:
    raise UserError(f'{path} describes no model that is known here ({error}); {_OTHER}') from None


def _check_known(path: pathlib.Path, described: Mapping[str, Any]) -> None:
  for name, kind in _MADE_OF.items():
    if not isinstance(value := described.get(name), kind | None):
      raise UserError(
        f'{path} says {name} = {str(value)[:40]!r}, no {kind.__name__}; fetch it anew'
      )
  for name, values in _FIXED.items():
    if described.get(name, values[0]) not in values:
      raise UserError(
        f'{path} says {name} = {described[name]!r}, but only {values[0]!r} is known here; name '
        'another model'
      )
  known = _SIZES.keys() | _FIXED.keys() | _READ | _UNUSED
  for name in sorted(described.keys() - known):
    if described[name]:  # what is off, empty or null changes nothing
      raise UserError(
        f'{path} says {name} = {str(described[name])[:40]!r}, which is not known here; name '
        'another model'
      )


def _check_window(path: pathlib.Path, described: Mapping[str, Any], length: int) -> None:
  """A sliding window is not supported here; one that is as long as the texts changes nothing."""
  kinds = described.get('layer_types') or []
  is_mistral = described['model_type'] == 'mistral'
  window = described.get('sliding_window', 4096 if is_mistral else None)  # transformers' default
  slides = described.get('use_sliding_window', is_mistral)
  is_on = slides or 'sliding_attention' in kinds
  if window is not None and is_on and window < length:
    fix = f'write --length={window} or less' if window > 0 else _OTHER
    raise UserError(
      f'{path} says sliding_window = {window}, and longer texts are not known here; {fix}'
    )
  if others := set(map(str, kinds)) - {'full_attention', 'sliding_attention'}:
    raise UserError(f'{path} says layer_types with {min(others)!r}, not known here; {_OTHER}')


def _rope(path: pathlib.Path, described: Mapping[str, Any]) -> dict[str, Any]:
  """`rope_theta` and `rope_scaling` of the config, from the names of any version."""
  found = dict(described.get('rope_scaling') or {}) | dict(described.get(_ROPE) or {})
  theta = found.get('rope_theta', described.get('rope_theta', 1e4))
  kind = found.get('rope_type', found.get('type', 'default'))
  if not isinstance(kind, str) or kind not in _TYPES:
    raise UserError(
      f'{path} says rope_scaling = {kind!r}, which is not known here; known are '
      f'{", ".join(map(repr, _TYPES))}'
    )
  names = _TYPES[kind]
  fixed = found.get('partial_rotary_factor', 1.0)
  if odd := sorted(found.keys() - names.keys() - _SCALE):
    raise UserError(f'{path} says {odd[0]} of rope_scaling {kind!r}, not known here; {_OTHER}')
  if missing := [name for name in names if name not in found]:
    raise UserError(f'{path} lacks {missing[0]} of rope_scaling {kind!r}; fetch it anew')
  if fixed != 1.0:
    raise UserError(
      f'{path} says partial_rotary_factor = {fixed!r}, but only 1.0 is known here; {_OTHER}'
    )
  scaling = {'kind': 'none' if kind == 'default' else kind}
  return {
    'rope_theta': theta,
    'rope_scaling': scaling | {ours: found[name] for name, ours in names.items()},
  }


def _whole(path: pathlib.Path, described: Mapping[str, Any], name: str) -> int:
  value = described.get(name)
  if type(value) is not int:
    raise UserError(f'{path} has no whole number {name}; take it from one model with the weights')
  return value


# ----- parameters


def _params(
  path: pathlib.Path,
  config: config_lib.ModelConfig,
  described: Mapping[str, Any],
  weights: Weights,
) -> Params:
  c, vocab_size = config, _whole(path, described, 'vocab_size')
  take = weights.take
  heads, kv_heads = (c.num_heads, c.head_dim), (c.num_kv_heads, c.head_dim)
  some, attention = c.biases != 'none', c.biases in ('attention', 'all')

  def rows(name, *shape):
    """The rows of a matrix that Hugging Face stores transposed."""
    return take(f'{name}.weight', int(np.prod(shape)), c.embed_dim).T.reshape(-1, *shape)

  def scale(name, width=c.embed_dim):
    return {'scale': take(f'{name}.weight', width)}

  def bias(names, *shape):
    found = [take(f'{name}.bias', int(np.prod(shape))).reshape(shape) for name in names]
    return {'bias': np.stack(found) if len(found) > 1 else found[0]}

  def layer(number):
    name = f'layers.{number}'
    q, k, v, o = (f'{name}.self_attn.{x}_proj' for x in 'qkvo')
    gate, up, down = (f'{name}.mlp.{x}_proj' for x in ('gate', 'up', 'down'))
    out_HDxE = take(f'{o}.weight', c.embed_dim, c.num_heads * c.head_dim).T
    found = {
      'attention_norm': scale(f'{name}.input_layernorm'),
      'query': {'kernel': rows(q, *heads)},
      'key_value': {'kernel': np.stack([rows(k, *kv_heads), rows(v, *kv_heads)], axis=1)},
      'out': {'kernel': out_HDxE.reshape(*heads, c.embed_dim)},
      'mlp_norm': scale(f'{name}.post_attention_layernorm'),
      'gate_up': {'kernel': np.stack([rows(gate, c.mlp_dim), rows(up, c.mlp_dim)], axis=1)},
      'down': {'kernel': take(f'{down}.weight', c.embed_dim, c.mlp_dim).T},
    }
    if c.query_key_norm:
      found['query_norm'] = scale(f'{name}.self_attn.q_norm', c.head_dim)
      found['key_norm'] = scale(f'{name}.self_attn.k_norm', c.head_dim)
    if some:
      found['query'] |= bias([q], *heads)
      found['key_value'] |= bias([k, v], *kv_heads)
    if attention:
      found['out'] |= bias([o], c.embed_dim)
    if c.biases == 'all':
      found['gate_up'] |= bias([gate, up], c.mlp_dim)
      found['down'] |= bias([down], c.embed_dim)
    return found

  embedding_VxE = take('embed_tokens.weight', vocab_size, c.embed_dim)
  padding = ((0, c.padded(vocab_size) - vocab_size), (0, 0))
  vocabulary = {
    'embedding': np.pad(embedding_VxE, padding),
    'bos': embedding_VxE[weight_files.first_id(path, described, vocab_size)],
  }
  if not c.tied_head:
    vocabulary['head'] = np.pad(take('lm_head.weight', vocab_size, c.embed_dim), padding)
  elif 'lm_head.weight' in weights.arrays and not np.array_equal(
    take('lm_head.weight', vocab_size, c.embed_dim), embedding_VxE
  ):
    raise UserError(
      f'{weights.file} holds a lm_head.weight of its own, but {path} says tie_word_embeddings; '
      'take both files from one model'
    )
  params = {
    'vocabulary': vocabulary,
    'stack': stack_of(c, [layer(number) for number in range(c.num_layers)]),
    'final_norm': scale('norm'),
  }
  # Older files contain RoPE's frequencies, which are computed here.
  others = [name for name in weights.rest() if not name.endswith('.rotary_emb.inv_freq')]
  if others:
    raise UserError(
      f'{weights.file} holds {others[0]}, which is not known here; name another model'
    )
  return params

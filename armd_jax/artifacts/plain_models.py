"""Networks of this package by the names and shapes that transformers gives their parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from armd_jax.config import ModelConfig
from armd_jax.models.layers import unstack_layers
from armd_jax.models.params import Params

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plain:
  """A model as transformers reads it.

  Attributes:
    described: of config.json, without what depends on the tokenizer.
    arrays: of model.safetensors.
    bos_id: id whose embedding begins a text, perhaps the first beyond the vocabulary; None: no id's
      does.
  """

  described: dict[str, Any]
  arrays: Arrays
  bos_id: int | None


def of(model: ModelConfig, params: Params, vocab_size: int) -> Plain:
  """Any network along generation orders.

  An AR model in the style of GPT-2, or with SwiGLU, is the class of transformers that computes it;
  another one, and ARMD, is that of modeling_armd.py.

  Args:
    model, params, vocab_size: as trained.
  """
  whole: Any = unstack_layers(params)
  plain: Any = {name: _numpy(x) for name, x in whole.items()}
  make = _armd
  if model.family == 'ar' and _is_gpt2(model):
    make = _gpt2
  elif model.family == 'ar' and _is_llama(model):
    make = _llama
  return make(model, plain, vocab_size)


def _is_gpt2(model: ModelConfig) -> bool:
  c = model
  is_plain = c.num_heads == c.num_kv_heads and c.num_heads * c.head_dim == c.embed_dim
  is_plain &= c.tied_head and not c.query_key_norm
  return is_plain and (c.architecture, c.biases, c.mlp) == ('gpt2', 'all', 'gelu')


def _is_llama(model: ModelConfig) -> bool:
  known = ('none',) if model.query_key_norm else ('none', 'query_key_value', 'attention', 'all')
  return (model.architecture, model.mlp) == ('rope', 'swiglu') and model.biases in known


def _numpy(tree: Any) -> Any:
  return {k: _numpy(v) for k, v in tree.items()} if isinstance(tree, Mapping) else np.asarray(tree)


def _layers(model: ModelConfig, params: Any) -> list[Any]:
  """Blocks in the order of a pass."""
  if 'stack' in params:
    return [params['stack'][f'layer_{n}'] for n in range(model.num_layers)]
  before = max(model.num_two_stream_layers - 1, 0)
  found = [params['two_stream'][f'layer_{n}'] for n in range(before)]
  found += [params['last_two_stream']] if model.num_two_stream_layers else []
  rest = model.num_layers - model.num_two_stream_layers
  return found + [params['causal'][f'layer_{n}'] for n in range(rest)]


def _linear(part: Any, num_in: int = 1) -> Arrays:
  """A dense layer's weight, `[outer, inner]`, and bias; its inner axes are the first `num_in`."""
  kernel = part['kernel']
  inner = int(np.prod(kernel.shape[:num_in]))
  found = {'weight': np.ascontiguousarray(kernel.reshape(inner, -1).T)}
  return found | ({'bias': part['bias'].ravel()} if 'bias' in part else {})


def _named(prefix: str, part: Arrays) -> Arrays:
  return {f'{prefix}.{name}': x for name, x in part.items()}


def _norm(part: Any) -> Arrays:
  return {'weight': part['scale']} | ({'bias': part['bias']} if 'bias' in part else {})


def _halves(part: Any) -> list[Arrays]:
  """The two products of `[inner, 2, ...]`."""
  cut = lambda n: {k: x[:, n] if k == 'kernel' else x[n] for k, x in part.items()}
  return [_linear(cut(0)), _linear(cut(1))]


def _with_bos(model: ModelConfig, params: Any, vocab_size: int) -> tuple[int | None, list[Arrays]]:
  """The id that has BOS's vector, and the rows of the embedding and of the head by id. Where no id
  has it, one more does, behind the others; a text begins with it and never holds it again."""
  vocabulary = params['vocabulary']
  rows = [vocabulary[name][:vocab_size] for name in ('embedding', 'head') if name in vocabulary]
  bos_id = None
  if model.first_token == 'predicted':
    same = np.flatnonzero((rows[0] == vocabulary['bos']).all(axis=1))
    bos_id = int(same[0]) if same.size else vocab_size
    if bos_id == vocab_size:
      rows = [np.concatenate([x, vocabulary['bos'][None]]) for x in rows]
  return bos_id, [{'weight': x} for x in rows]


# ----- Llama, Qwen2, Qwen3


def _llama(model: ModelConfig, params: Any, vocab_size: int) -> Plain:
  c = model
  bos_id, (embedding, *head) = _with_bos(c, params, vocab_size)
  arrays = _named('model.embed_tokens', embedding) | _named(
    'model.norm', _norm(params['final_norm'])
  )
  if head:
    arrays |= _named('lm_head', head[0])
  for number, layer in enumerate(_layers(c, params)):
    name = f'model.layers.{number}'
    k, v = _halves(layer['key_value'])
    gate, up = _halves(layer['gate_up'])
    parts = {
      'input_layernorm': _norm(layer['attention_norm']),
      'self_attn.q_proj': _linear(layer['query']), 'self_attn.k_proj': k, 'self_attn.v_proj': v,
      'self_attn.o_proj': _linear(layer['out'], 2),
      'post_attention_layernorm': _norm(layer['mlp_norm']),
      'mlp.gate_proj': gate, 'mlp.up_proj': up, 'mlp.down_proj': _linear(layer['down']),
    }  # fmt: skip
    if c.query_key_norm:
      parts['self_attn.q_norm'] = _norm(layer['query_norm'])
      parts['self_attn.k_norm'] = _norm(layer['key_norm'])
    for part, x in parts.items():
      arrays |= _named(f'{name}.{part}', x)
  kind, called = ('llama', 'Llama')
  if c.query_key_norm:
    kind, called = 'qwen3', 'Qwen3'
  elif c.biases == 'query_key_value':
    kind, called = 'qwen2', 'Qwen2'
  s = c.rope_scaling
  rope: dict[str, Any] = {'rope_type': 'default' if s.kind == 'none' else s.kind}
  if s.kind != 'none':
    rope['factor'] = s.factor
  if s.kind == 'llama3':
    rope |= {
      'low_freq_factor': s.low_frequency, 'high_freq_factor': s.high_frequency,
      'original_max_position_embeddings': s.original_length,
    }  # fmt: skip
  described = {
    'model_type': kind, 'architectures': [f'{called}ForCausalLM'], 'hidden_act': 'silu',
    'vocab_size': len(embedding['weight']), 'max_position_embeddings': c.length,
    'hidden_size': c.embed_dim, 'intermediate_size': c.mlp_dim, 'num_hidden_layers': c.num_layers,
    'num_attention_heads': c.num_heads, 'num_key_value_heads': c.num_kv_heads,
    'head_dim': c.head_dim, 'rms_norm_eps': c.norm_epsilon, 'tie_word_embeddings': c.tied_head,
    # By the names of older and of newer versions.
    'rope_theta': c.rope_theta, 'rope_scaling': None if s.kind == 'none' else rope,
    'rope_parameters': rope | {'rope_theta': c.rope_theta},
    'attention_bias': c.biases in ('attention', 'all'), 'mlp_bias': c.biases == 'all',
  }  # fmt: skip
  return Plain(described, arrays, bos_id)


# ----- GPT-2


def _gpt2(model: ModelConfig, params: Any, vocab_size: int) -> Plain:
  c = model
  bos_id, (embedding,) = _with_bos(c, params, vocab_size)
  arrays = {
    'transformer.wte.weight': embedding['weight'],
    'transformer.wpe.weight': params['vocabulary']['positions'][: c.length],
    **_named('transformer.ln_f', _norm(params['final_norm'])),
  }

  def turned(part: Any, num_in: int = 1) -> Arrays:
    """GPT-2 keeps its matrices the other way round."""
    found = _linear(part, num_in)
    return found | {'weight': np.ascontiguousarray(found['weight'].T)}

  for number, layer in enumerate(_layers(c, params)):
    qkv = {
      'kernel': np.concatenate(
        [layer['query']['kernel'][:, None], layer['key_value']['kernel']], 1
      ),
      'bias': np.concatenate([layer['query']['bias'][None], layer['key_value']['bias']]),
    }
    for part, x in {
      'ln_1': _norm(layer['attention_norm']), 'attn.c_attn': turned(qkv),
      'attn.c_proj': turned(layer['out'], 2), 'ln_2': _norm(layer['mlp_norm']),
      'mlp.c_fc': turned(layer['up']), 'mlp.c_proj': turned(layer['down']),
    }.items():  # fmt: skip
      arrays |= _named(f'transformer.h.{number}.{part}', x)
  described = {
    'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'],
    'activation_function': 'gelu_new', 'vocab_size': len(embedding['weight']),
    'n_positions': c.length, 'n_embd': c.embed_dim, 'n_layer': c.num_layers, 'n_head': c.num_heads,
    'n_inner': c.mlp_dim, 'layer_norm_epsilon': c.norm_epsilon, 'tie_word_embeddings': True,
  }  # fmt: skip
  return Plain(described, arrays, bos_id)


# ----- ARMD

_TAKEN = (
  'length', 'num_layers', 'num_two_stream_layers', 'embed_dim', 'num_heads', 'num_kv_heads',
  'mlp_dim', 'mlp', 'architecture', 'norm_epsilon', 'query_key_norm', 'biases',
  'tied_head', 'first_token', 'query_seed', 'query_seed_norm',
  'query_seed_radius', 'position_rows', 'position_dim',
)  # fmt: skip


def _armd(model: ModelConfig, params: Any, vocab_size: int) -> Plain:
  fields = {name: getattr(model, name) for name in _TAKEN}
  fields['head_width'] = model.head_dim  # transformers wants E / H of a head_dim
  if model.family == 'ar':
    # The same network along left-to-right orders: its one stream is the query rows', which begin as
    # the content rows do, and all layers are causal ones.
    fields |= {'query_seed': 'shift', 'num_two_stream_layers': 0}
  rotary = dataclasses.asdict(model.rope_scaling) | {'theta': model.rope_theta}
  vocabulary = params['vocabulary']
  arrays = {'embedding.weight': vocabulary['embedding'][:vocab_size], 'bos': vocabulary['bos']}
  if 'positions' in vocabulary:
    arrays['positions'] = vocabulary['positions']
  if 'head' in vocabulary:
    arrays['head.weight'] = vocabulary['head'][:vocab_size]
  for name in ('mask', 'pe', 'gain', 'neighbours', 'unknown'):
    if name in params:
      arrays[name] = np.atleast_1d(params[name])
  arrays |= _named('final_norm', _norm(params['final_norm']))
  for number, layer in enumerate(_layers(model, params)):
    for name, part in layer.items():
      made = _norm(part) if name.endswith('norm') else _linear(part, 2 if name == 'out' else 1)
      arrays |= _named(f'layers.{number}.{"up" if name == "gate_up" else name}', made)
  described = fields | {
    'model_type': 'armd', 'architectures': ['ArmdForCausalLM'], 'vocab_size': vocab_size,
    'rotary': rotary,
    'auto_map': {
      'AutoConfig': 'modeling_armd.ArmdConfig',
      'AutoModelForCausalLM': 'modeling_armd.ArmdForCausalLM',
    },
  }  # fmt: skip
  return Plain(described, arrays, None)

"""Small checkpoints of Llama's family as Hugging Face writes them, and what they compute."""

from __future__ import annotations

import json
import math
import pathlib

import numpy as np
import safetensors.numpy

V, N, E, F, HEADS, KV_HEADS, LAYERS = 15, 16, 32, 48, 4, 2, 2
_COMMON = {
  'vocab_size': V, 'max_position_embeddings': 64, 'hidden_size': E, 'intermediate_size': F,
  'num_attention_heads': HEADS, 'num_key_value_heads': KV_HEADS, 'num_hidden_layers': LAYERS,
  'hidden_act': 'silu', 'rms_norm_eps': 1e-5, 'bos_token_id': 1, 'eos_token_id': 2,
  'tie_word_embeddings': False,
}  # fmt: skip
_LLAMA3 = {
  'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 16,
}  # fmt: skip
# What config.json says of each kind, in the words of several versions of transformers.
KINDS = {
  'llama2': {'model_type': 'llama', 'num_key_value_heads': HEADS},
  'llama3': {'model_type': 'llama', 'rope_parameters': _LLAMA3 | {'rope_theta': 500.0}},
  'smollm2': {'model_type': 'llama', 'tie_word_embeddings': True, 'rope_theta': 100.0},
  'linear': {'model_type': 'llama', 'rope_scaling': {'type': 'linear', 'factor': 2.5}},
  'biases': {'model_type': 'llama', 'attention_bias': True, 'mlp_bias': True, 'rms_norm_eps': 0.1},
  'mistral': {'model_type': 'mistral', 'head_dim': 16, 'sliding_window': None},
  'qwen2': {'model_type': 'qwen2', 'use_sliding_window': False, 'sliding_window': 4},
  'qwen3': {'model_type': 'qwen3', 'head_dim': 16, 'tie_word_embeddings': True},
}


def described(kind: str) -> dict:
  """config.json."""
  return _COMMON | KINDS[kind]


def arrays(kind: str) -> dict[str, np.ndarray]:
  """A random checkpoint with Hugging Face's names, far from initialisation."""
  d = described(kind)
  width, few = (d.get('head_dim', E // HEADS) * d[f'num_{x}_heads'] for x in _HEADS)
  shapes = {'model.embed_tokens.weight': (V, E), 'model.norm.weight': (E,)}
  if not d['tie_word_embeddings']:
    shapes['lm_head.weight'] = (V, E)
  for layer in range(LAYERS):
    name = f'model.layers.{layer}'
    shapes |= {f'{name}.input_layernorm.weight': (E,)}
    shapes |= {f'{name}.post_attention_layernorm.weight': (E,)}
    products = {'self_attn.q': (width, E), 'self_attn.k': (few, E), 'self_attn.v': (few, E)}
    products |= {'self_attn.o': (E, width)}
    products |= {'mlp.gate': (F, E), 'mlp.up': (F, E), 'mlp.down': (E, F)}
    biased = 'qkv' if d['model_type'] == 'qwen2' else ''
    biased = 'qkvo' if d.get('attention_bias') else biased
    for product, shape in products.items():
      shapes[f'{name}.{product}_proj.weight'] = shape
      if product[-1] in biased if 'attn' in product else d.get('mlp_bias'):
        shapes[f'{name}.{product}_proj.bias'] = shape[:1]
    if d['model_type'] == 'qwen3':
      for x in 'qk':
        shapes[f'{name}.self_attn.{x}_norm.weight'] = (d['head_dim'],)
  rng = np.random.RandomState(0)
  return {
    name: (0.3 * rng.normal(size=shape) + ('norm' in name)).astype(np.float32)
    for name, shape in shapes.items()
  }


_HEADS = ('attention', 'key_value')


def write(
  folder: pathlib.Path, kind: str, arrays: dict[str, np.ndarray] | None = None, **changes
) -> pathlib.Path:
  """Writes both files; `changes` are of config.json. Returns the folder."""
  (folder / 'config.json').write_text(json.dumps(described(kind) | changes))
  arrays = globals()['arrays'](kind) if arrays is None else arrays
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  return folder


def write_tokenizer(folder: pathlib.Path, pieces: int = V) -> pathlib.Path:
  """A tokenizer.json of so many pieces: two that are special, and letters."""
  import tokenizers

  letters = ['<|endoftext|>', '<s>', *map(chr, range(ord('a'), ord('a') + pieces - 2))]
  ids = {letter: number for number, letter in enumerate(letters)}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.add_special_tokens(letters[:2])
  made.save(str(folder / 'tokenizer.json'))
  return folder


def _frequencies(d, width):
  """Radians per position, in the words of the Llama 3 code."""
  rope = (d.get('rope_scaling') or {}) | (d.get('rope_parameters') or {})
  theta = rope.get('rope_theta', d.get('rope_theta', 1e4))
  found = []
  for i in range(0, width, 2):
    frequency = theta ** (-i / width)
    wavelength = 2 * math.pi / frequency
    kind = rope.get('rope_type', rope.get('type'))
    if kind == 'linear':
      frequency /= rope['factor']
    elif kind == 'llama3':
      old = rope['original_max_position_embeddings']
      low, high = rope['low_freq_factor'], rope['high_freq_factor']
      if wavelength > old / low:
        frequency /= rope['factor']
      elif wavelength > old / high:
        smooth = (old / wavelength - low) / (high - low)
        frequency = (1 - smooth) * frequency / rope['factor'] + smooth * frequency
    found.append(frequency)
  return np.array(found)


def reference(kind, p, ids_T):
  """Logits [T, V] of the checkpoint p, in float64, a head at a time."""
  d = described(kind)
  p = {name.removeprefix('model.'): x.astype(np.float64) for name, x in p.items()}
  width = d.get('head_dim', E // HEADS)
  group = HEADS // d['num_key_value_heads']
  angle = np.arange(len(ids_T))[:, None] * _frequencies(d, width)

  def norm(x, name):
    mean = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(mean + d['rms_norm_eps']) * p[f'{name}.weight']

  def dense(x, name):
    return x @ p[f'{name}.weight'].T + p.get(f'{name}.bias', 0)

  def turned(x):
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate(
      [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1
    )

  x = p['embed_tokens.weight'][ids_T]
  for layer in range(LAYERS):
    name = f'layers.{layer}'
    normed = norm(x, f'{name}.input_layernorm')
    q, k, v = (dense(normed, f'{name}.self_attn.{x}_proj') for x in 'qkv')
    heads = []
    for head in range(HEADS):
      of = lambda x, n: x[:, n * width : (n + 1) * width]
      one_q, one_k, one_v = of(q, head), of(k, head // group), of(v, head // group)
      if d['model_type'] == 'qwen3':
        one_q, one_k = (
          norm(one_q, f'{name}.self_attn.q_norm'),
          norm(one_k, f'{name}.self_attn.k_norm'),
        )
      scores = turned(one_q) @ turned(one_k).T / np.sqrt(width)
      scores = np.where(np.tri(len(ids_T), dtype=bool), scores, -np.inf)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ one_v)
    x = x + dense(np.concatenate(heads, axis=-1), f'{name}.self_attn.o_proj')
    normed = norm(x, f'{name}.post_attention_layernorm')
    gate = dense(normed, f'{name}.mlp.gate_proj')
    inner = gate / (1 + np.exp(-gate)) * dense(normed, f'{name}.mlp.up_proj')
    x = x + dense(inner, f'{name}.mlp.down_proj')
  return norm(x, 'norm') @ p.get('lm_head.weight', p['embed_tokens.weight']).T

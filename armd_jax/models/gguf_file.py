"""Models of Llama's family in one file of GGUF, by the names that Hugging Face gives their parts.

Quantised weights are dequantised. The package `gguf` reads the file.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from armd_jax.errors import UserError, is_whole, sentence
from armd_jax.files import whole
from armd_jax.models.weight_files import Weights

_FIX = 'name a folder with the config.json and model.safetensors of a model'
# Names of config.json by those of the file, below the name of its architecture.
_DESCRIBED = {
  'block_count': 'num_hidden_layers', 'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size', 'context_length': 'max_position_embeddings',
  'attention.head_count': 'num_attention_heads', 'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim', 'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'attention.sliding_window': 'sliding_window', 'rope.freq_base': 'rope_theta',
}  # fmt: skip
_ARRAYS = {
  'token_embd': 'embed_tokens', 'output_norm': 'norm', 'output': 'lm_head',
  'attn_norm': 'input_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj',
}  # fmt: skip


def is_there(path: pathlib.Path) -> bool:
  """Whether it is such a file, or a folder that has one and no config.json."""
  return path.suffix == '.gguf' or (
    path.is_dir() and not (path / 'config.json').exists() and any(path.glob('*.gguf'))
  )


def fields(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any], Any]:
  """The file, its metadata by GGUF's names, and its reader.

  Raises:
    UserError: there is none, or several, or it is damaged, or the package is missing.
  """
  if path.is_dir():
    files = sorted(path.glob('*.gguf'))
    if len(files) != 1:
      raise UserError(f'{path} holds {len(files)} files of GGUF; write the name of one of them')
    path = files[0]
  try:
    import gguf
  except ImportError as error:
    raise UserError(f'{path} needs the package gguf; pip install gguf') from error
  try:
    whole.check_ends(path)
    reader = gguf.GGUFReader(path)
    return path, {name: field.contents() for name, field in reader.fields.items()}, reader
  except Exception as error:  # the library reads arrays of any kind that the file names
    raise UserError(f'cannot read {path} ({sentence(error)}); fetch it anew') from error


def read(path: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any], Weights]:
  """The file, the content that config.json would have, and the arrays.

  Raises:
    UserError: see `fields`.
  """
  path, found, reader = fields(path)
  kind = found.get('general.architecture')
  described = {
    ours: found[f'{kind}.{theirs}']
    for theirs, ours in _DESCRIBED.items()
    if found.get(f'{kind}.{theirs}') is not None
  }
  arrays = {_name(path, tensor.name): _dequantized(path, tensor) for tensor in reader.tensors}
  tokens = found.get('tokenizer.ggml.tokens')
  for name in ('bos', 'eos'):
    described[f'{name}_token_id'] = found.get(f'tokenizer.ggml.{name}_token_id')
  described |= {
    'model_type': kind,
    'vocab_size': len(tokens) if isinstance(tokens, list) else 0,
    'tie_word_embeddings': 'lm_head.weight' not in arrays,
    'attention_bias': 'layers.0.self_attn.o_proj.bias' in arrays,
  }
  if scaling := found.get(f'{kind}.rope.scaling.type'):
    factor = found.get(f'{kind}.rope.scaling.factor')
    described['rope_scaling'] = None if scaling == 'none' else {'type': scaling, 'factor': factor}
  if kind in ('llama', 'mistral'):
    for name, x in arrays.items():
      for end, heads in (('q_proj', 'num_attention_heads'), ('k_proj', 'num_key_value_heads')):
        if name.partition('self_attn.')[2].partition('.')[0] == end:
          count: Any = described.get(heads) or described.get('num_attention_heads')
          if not is_whole(count) or count < 1 or not x.ndim or len(x) % (2 * count):
            raise UserError(
              f'{path} holds {name} of shape {x.shape}, which {count!r} heads do not divide; {_FIX}'
            )
          arrays[name] = _turned_back(x, count)
  return path, described, Weights(path, arrays, 'its description')


def _name(path: pathlib.Path, name: str) -> str:
  """Hugging Face's name of an array."""
  parts = name.split('.')
  place = []
  if parts[0] == 'blk':
    place, parts = ['layers', parts[1]], parts[2:]
  if len(parts) != 2 or parts[0] not in _ARRAYS:
    raise UserError(f'{path} holds {name}, which is not known here; {_FIX}')
  return '.'.join([*place, _ARRAYS[parts[0]], parts[1]])


def _dequantized(path: pathlib.Path, tensor: Any) -> np.ndarray:
  import gguf

  try:
    x = gguf.dequantize(tensor.data, tensor.tensor_type)
    return x.astype(np.float32).reshape(tuple(map(int, reversed(tensor.shape))))
  except Exception as error:  # the library has no reader of some kinds
    raise UserError(f'cannot read {tensor.name} of {path} ({sentence(error)}); {_FIX}') from error


def _turned_back(x: np.ndarray, heads: int) -> np.ndarray:
  """RoPE of GGUF's Llama pairs neighbours, so that its writers interleave the halves of a head."""
  return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

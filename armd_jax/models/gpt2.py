"""GPT-2's published weights as the AR model here: a folder with Hugging Face's names.

The folder holds config.json and model.safetensors. GPT-2 (Radford et al. 2019) is `AR` in the
style 'gpt2'. It has no vector for BOS: its training put the id 50256, the last of its vocabulary,
between documents, whose embedding therefore stands in BOS's place.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from armd_jax import config as config_lib
from armd_jax.errors import UserError, sentence
from armd_jax.models.layers import stack_of

# What the computation here is fixed to, by the names of config.json, and GPT-2's defaults.
_FIXED = {
  'activation_function': 'gelu_new',  # the tanh form
  'layer_norm_epsilon': 1e-5,
  'scale_attn_weights': True,
  'scale_attn_by_inverse_layer_idx': False,
  'tie_word_embeddings': True,
  'n_inner': None,
}


def is_gpt2(path: str | pathlib.Path) -> bool:
  """Whether a folder says that it holds one whose weights are in model.safetensors."""
  try:
    described = json.loads((pathlib.Path(path) / 'config.json').read_text())
  except (OSError, ValueError):
    return False
  is_one = isinstance(described, dict) and described.get('model_type') == 'gpt2'
  return is_one and (pathlib.Path(path) / 'model.safetensors').exists()


def load(folder: str | pathlib.Path) -> tuple[config_lib.ModelConfig, int, Any]:
  """A model's config, its vocabulary size and its parameters.

  Args:
    folder: holds config.json and model.safetensors.
  Returns:
    The config is float32 without dropout; parameters are float32.
  Raises:
    UserError: a file is missing or damaged, is no GPT-2, or lacks an array or has one of another
      shape than config.json says.
  """
  folder = pathlib.Path(folder)
  described = _described(folder)
  config = _config(folder, described)
  arrays = _arrays(folder / 'model.safetensors')
  vocab_size, width, heads = described['vocab_size'], config.embed_dim, config.num_heads
  used = set()

  def take(name, *shape):
    found = arrays.get(name)
    if found is None or found.shape != shape:
      what = 'lacks' if found is None else f'has {found.shape} for'
      raise UserError(
        f'{folder / "model.safetensors"} {what} {name} of shape {shape}, which config.json says; '
        'take both files from one model'
      )
    used.add(name)
    return found.astype(np.float32)

  def norm(name):
    return {'scale': take(f'{name}.weight', width), 'bias': take(f'{name}.bias', width)}

  def dense(name, rows, columns, shape_in=None, shape_out=None):
    kernel = take(f'{name}.weight', rows, columns)
    bias = take(f'{name}.bias', columns)
    shape_in, shape_out = shape_in or (rows,), shape_out or (columns,)
    return {'kernel': kernel.reshape(*shape_in, *shape_out), 'bias': bias.reshape(shape_out)}

  def layer(number):
    # GPT-2 multiplies by one matrix for all three; here queries come from more rows than keys do.
    name = f'h.{number}'
    per_head = heads, width // heads
    attention = dense(f'{name}.attn.c_attn', width, 3 * width, shape_out=(3, *per_head))
    return {
      'attention_norm': norm(f'{name}.ln_1'),
      'query': {'kernel': attention['kernel'][:, 0], 'bias': attention['bias'][0]},
      'key_value': {'kernel': attention['kernel'][:, 1:], 'bias': attention['bias'][1:]},
      'out': dense(f'{name}.attn.c_proj', width, width, shape_in=per_head),
      'mlp_norm': norm(f'{name}.ln_2'),
      'up': dense(f'{name}.mlp.c_fc', width, 4 * width),
      'down': dense(f'{name}.mlp.c_proj', 4 * width, width),
    }

  embedding_VxE = take('wte.weight', vocab_size, width)
  positions_NxE = take('wpe.weight', config.length, width)
  params = {
    'vocabulary': {
      'embedding': np.pad(embedding_VxE, ((0, config.padded(vocab_size) - vocab_size), (0, 0))),
      'bos': embedding_VxE[-1],
      # Nothing of an AR model stands at N, where ARMD's last query does.
      'positions': np.concatenate([positions_NxE, positions_NxE[-1:]]),
    },
    'stack': stack_of(config, [layer(number) for number in range(config.num_layers)]),
    'final_norm': norm('ln_f'),
  }
  for name in sorted(set(arrays) - used):
    # Constants that some files keep, and the tied head.
    if not name.endswith(('.attn.bias', '.attn.masked_bias')) and name != 'lm_head.weight':
      raise UserError(f'{folder / "model.safetensors"} holds {name}, which GPT-2 has not')
  return config, vocab_size, params


def _described(folder: pathlib.Path) -> dict[str, Any]:
  """What config.json says."""
  path = folder / 'config.json'
  try:
    described = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(
      f'cannot read {path} ({sentence(error)}); name a folder with the config.json and '
      'model.safetensors of a GPT-2'
    ) from error
  if not isinstance(described, dict) or described.get('model_type') != 'gpt2':
    raise UserError(f"{path} does not say model_type 'gpt2'; name the folder of a GPT-2")
  for name, value in _FIXED.items():
    if described.get(name, value) != value:
      raise UserError(
        f'{path} says {name} = {described[name]!r}, but only {value!r} is known here; name the '
        'folder of a plain GPT-2'
      )
  return described


def _config(folder: pathlib.Path, described: dict[str, Any]) -> config_lib.ModelConfig:
  names = {'n_positions': 'length', 'n_layer': 'num_layers', 'n_embd': 'embed_dim'}
  names |= {'n_head': 'num_heads'}
  missing = [name for name in (*names, 'vocab_size') if type(described.get(name)) is not int]
  if missing:
    raise UserError(
      f'{folder / "config.json"} has no whole number {missing[0]}; take it from a GPT-2'
    )
  sizes = {ours: described[theirs] for theirs, ours in names.items()}
  raw = {'model': sizes | dict(family='ar', style='gpt2', dropout=0.0, dtype='float32')}
  return config_lib.parse(raw | {'order': {'rho': 0}}).model


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of a file, by name without the prefix that some files have."""
  try:
    arrays = safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
    raise UserError(f'cannot read {path} ({sentence(error)}); fetch it anew') from error
  return {name.removeprefix('transformer.'): x for name, x in arrays.items()}

"""GPT-2's published weights as the AR model here: a folder with Hugging Face's names.

The folder holds config.json and model.safetensors, or the shards of it and their index. GPT-2
(Radford et al. 2019) is `AR` with `architecture='gpt2'`. If the folder has a setting or an array
that would change what the model computes and is not supported here, an error names it. GPT-2 has no
vector for BOS: its training put the id 50256, the last of its vocabulary, between documents. The
embedding of this id is therefore used for BOS.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from armd_jax import config as config_lib
from armd_jax.errors import UserError
from armd_jax.files import paths, whole
from armd_jax.models import weight_files
from armd_jax.models.layers import stack_of
from armd_jax.models.params import Params

# The only values supported here, by the names of config.json; GPT-2's defaults come first.
_FIXED = {
  'activation_function': ('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast'),  # all the tanh form
  'scale_attn_weights': (True,),
  'scale_attn_by_inverse_layer_idx': (False,),
  'tie_word_embeddings': (True,),
  'add_cross_attention': (False,),
}
# Fields without influence here: names, training, other heads, how transformers generates.
_UNUSED = {
  'layer_norm_epsilon',  # read
  'model_type', 'architectures', 'vocab_size', 'n_positions', 'n_ctx', 'n_embd', 'n_layer',
  'n_head', 'n_inner', 'attn_pdrop', 'embd_pdrop', 'resid_pdrop', 'initializer_range',
  'reorder_and_upcast_attn', 'use_cache', 'summary_type', 'summary_use_proj',
  'summary_activation', 'summary_first_dropout', 'summary_proj_to_labels', 'bos_token_id',
  'eos_token_id', 'pad_token_id', 'sep_token_id', 'decoder_start_token_id', 'torch_dtype',
  'dtype', 'torchscript', 'transformers_version', '_name_or_path', 'name', '_num_labels',
  'num_labels', 'id2label', 'label2id', 'problem_type', 'finetuning_task', 'task_specific_params',
  'output_past', 'output_attentions', 'output_hidden_states', 'return_dict', 'use_bfloat16',
  'gradient_checkpointing', 'tokenizer_class', 'prefix', 'language', 'license', 'tags',
  'do_sample', 'early_stopping', 'length_penalty', 'max_length', 'min_length',
  'no_repeat_ngram_size', 'num_beams', 'num_beam_groups', 'num_return_sequences',
  'repetition_penalty', 'temperature', 'top_k', 'top_p', 'typical_p', 'diversity_penalty',
  'encoder_no_repeat_ngram_size', 'bad_words_ids', 'remove_invalid_values',
  'chunk_size_feed_forward', 'output_scores', 'return_dict_in_generate',
  '_attn_implementation_autoset',
}  # fmt: skip
# Old files also contain a causal mask for each layer, and the logit of masked scores.
_MASKS = {
  'bias': lambda mask, length: np.array_equal(
    mask.reshape(-1), np.tri(length, dtype=mask.dtype).reshape(-1)
  ),
  'masked_bias': lambda logit, _: logit.size == 1 and logit.item() <= -1e4,
}


_END = 50256  # <|endoftext|> of GPT-2's own vocabulary, with which its texts begin


def is_gpt2(path: str | pathlib.Path) -> bool:
  """Whether a folder holds a GPT-2, by its config.json, with weights in safetensors files."""
  path = pathlib.Path(path)
  try:
    described = whole.read_json(path / 'config.json', {}, '')
  except (OSError, UserError):
    return False
  return described.get('model_type') == 'gpt2' and weight_files.is_there(path)


def load(folder: str | pathlib.Path) -> tuple[config_lib.ModelConfig, int, Params]:
  """A model's config, its vocabulary size and its parameters.

  Args:
    folder: holds config.json and model.safetensors, or its shards and their index.
  Returns:
    The config is float32 without dropout; parameters are float32, of files in float16, bfloat16,
    float32 or float64.
  Raises:
    UserError: a file is missing or damaged, is no GPT-2, or lacks an array, has one of another
      shape than in config.json, or anything that is not used.
  """
  folder = paths.given(folder, 'the folder of a GPT-2')
  described = _described(folder)
  config = _config(folder, described)
  weights = weight_files.read(folder, 'transformer.')
  take = weights.take
  vocab_size, width, heads = described['vocab_size'], config.embed_dim, config.num_heads

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
      'bos': embedding_VxE[_first(folder, described, vocab_size)],
      # An AR model has no row at position N, where ARMD has its last query.
      'positions': np.concatenate([positions_NxE, positions_NxE[-1:]]),
    },
    'stack': stack_of(config, [layer(number) for number in range(config.num_layers)]),
    'final_norm': norm('ln_f'),
  }
  if 'lm_head.weight' in weights.arrays and not np.array_equal(
    take('lm_head.weight', vocab_size, width), embedding_VxE
  ):
    raise UserError(
      f"{weights.file} holds a lm_head.weight of its own, but GPT-2's head is its embedding "
      'wte.weight; name the folder of a plain GPT-2'
    )
  masks = {
    f'h.{n}.attn.{name}': is_it for n in range(config.num_layers) for name, is_it in _MASKS.items()
  }
  for name in weights.rest():
    if name not in masks:
      raise UserError(
        f'{weights.file} holds {name}, which GPT-2 has not; name the folder of a plain GPT-2'
      )
    if not masks[name](weights.arrays[name], config.length):
      raise UserError(
        f"{weights.file} holds a {name} that is not GPT-2's causal mask; name the folder of a "
        'plain GPT-2'
      )
  return config, vocab_size, params


def _described(folder: pathlib.Path) -> dict[str, Any]:
  """The content of config.json."""
  path = folder / 'config.json'
  fix = 'name a folder with the config.json and model.safetensors of a GPT-2'
  try:
    described = whole.read_json(path, {}, fix)
  except OSError as error:
    raise UserError(f'cannot read {path} ({error.strerror}); {fix}') from error
  if described.get('model_type') != 'gpt2':
    raise UserError(f"{path} does not say model_type 'gpt2'; name the folder of a GPT-2")
  width = described.get('n_embd')
  inner = (None, 4 * width) if isinstance(width, int) else (None,)
  fixed = _FIXED | {'n_inner': inner, 'n_ctx': (described.get('n_positions'),)}
  for name, values in fixed.items():
    if described.get(name, values[0]) not in values:
      raise UserError(
        f'{path} says {name} = {described[name]!r}, but only {" or ".join(map(repr, values))} is '
        'known here; name the folder of a plain GPT-2'
      )
  for name in sorted(described.keys() - fixed.keys() - _UNUSED):
    if described[name]:  # what is off, empty or null changes nothing
      raise UserError(
        f'{path} says {name} = {str(described[name])[:40]!r}, which is not known here; name the '
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
  sizes |= {'norm_epsilon': described.get('layer_norm_epsilon', 1e-5)}
  raw = {'model': sizes | dict(family='ar', architecture='gpt2', dropout=0.0, dtype='float32')}
  return config_lib.parse(raw | {'order': {'max_shuffled': 0}}).model


def _first(folder: pathlib.Path, described: dict[str, Any], vocab_size: int) -> int:
  """The id whose embedding begins a text: as `weight_files.first_id`, but that transformers writes
  GPT-2's into every config.json, so that smaller vocabularies have their last one."""
  if described.get('bos_token_id') is None:
    described = described | {'bos_token_id': _END}
  if described['bos_token_id'] == _END >= vocab_size:
    return vocab_size - 1
  return weight_files.first_id(folder / 'config.json', described, vocab_size)

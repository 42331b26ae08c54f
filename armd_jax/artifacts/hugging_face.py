"""Weights as a folder that transformers opens: `export --hf`.

config.json, model.safetensors     the network (see `plain_models`)
modeling_armd.py                   the class of a network that transformers lacks, in PyTorch
tokenizer.json, tokenizer_config.json, generation_config.json
README.md                          the model card
"""

from __future__ import annotations

import pathlib

import numpy as np
import safetensors.numpy

from armd_jax.artifacts import plain_models
from armd_jax.artifacts.standalone import Export
from armd_jax.data import tokenizer_json
from armd_jax.errors import UserError
from armd_jax.files import whole
from armd_jax.models.params import Params

_CODE = pathlib.Path(__file__).with_name('modeling_armd.py')
_BOS = '<|armd_bos|>'


def check(export: Export) -> None:
  """Refuses what the code in PyTorch does not compute.

  Raises:
    UserError: naming it.
  """
  model = export.config.model
  if model.orders == 'none':
    raise UserError(
      f'--hf writes models that predict along an order; {model.family!r} has none, write --out'
    )
  if model.content_mask != 'block':
    raise UserError(
      f'--hf writes no content_mask {model.content_mask!r}, of family {model.family!r}; write --out'
    )


def write(folder: pathlib.Path, export: Export, params: Params, card: str) -> None:
  """Writes the folder.

  Args:
    folder: to be made.
    export, params: what is exported.
    card: README.md.
  Raises:
    UserError: see `check`.
  """
  check(export)
  tokenizer, model = export.tokenizer, export.config.model
  plain = plain_models.of(model, params, tokenizer.vocab_size)
  is_armd = plain.described['model_type'] == 'armd'
  bos_id = tokenizer.bos_id if plain.bos_id is None else plain.bos_id
  ids = {'bos_token_id': bos_id, 'eos_token_id': tokenizer.eos_id}
  folder.mkdir()
  # Older versions of transformers call it torch_dtype.
  types = {'torch_dtype': 'float32'}
  whole.write_json(folder / 'config.json', plain.described | ids | types)
  arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in plain.arrays.items()}
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})
  if is_armd:
    (folder / _CODE.name).write_text(_CODE.read_text('utf-8'), encoding='utf-8')
  is_new = bos_id == tokenizer.vocab_size
  text = tokenizer_json.text_of(tokenizer, bos_id, _BOS)
  whole.write_text(folder / 'tokenizer.json', text)
  names = tokenizer_json.tokens(text)
  whole.write_json(
    folder / 'tokenizer_config.json',
    {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': names[bos_id],
      'eos_token': names[tokenizer.eos_id],
      'model_max_length': model.num_slots,
      'clean_up_tokenization_spaces': False,
    },
  )
  # No text holds the id of BOS again, if it is one of its own.
  generation = ids | ({'suppress_tokens': [bos_id]} if is_new else {})
  whole.write_json(folder / 'generation_config.json', generation)
  whole.write_text(folder / 'README.md', card)

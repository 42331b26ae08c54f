"""GPT-2 of any size as a judge, in JAX, from local weights; see `models.gpt2` for the folder."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import errors, models
from armd_jax.config import ModelConfig
from armd_jax.data import tokenizer_file, vocabularies
from armd_jax.data.tokenizers import get_tokenizer, vocab_size
from armd_jax.errors import UserError, sentence
from armd_jax.evaluation import quality
from armd_jax.files import whole
from armd_jax.models import gpt2
from armd_jax.models.params import Params
from armd_jax.objectives import armd
from armd_jax.order import left_to_right

Array = jax.Array

_TOKENS_AT_ONCE = 8192  # of padded windows
# Vocabularies of other kinds than GPT-2's, which only a tokenizer.json can be made of.
_OTHER_VOCABULARIES = ('vocab.txt', 'spiece.model', 'sentencepiece.bpe.model', 'tokenizer.model')
_LOSS_CHUNK = 64  # positions per window whose logits exist at once


class Gpt2Judge:
  """See `quality.Judge`; the tokenizer is the folder's tokenizer.json, else GPT-2's own.

  Args:
    folder: holds config.json and model.safetensors; nothing is downloaded.
  Raises:
    UserError: no GPT-2 is there, or it has no tokenizer.
  """

  def __init__(self, folder: str):
    self.name = os.path.basename(os.path.normpath(folder))
    config, self._vocab_size, self._params = gpt2.load(folder)
    # Nothing is put before the first id of a window, not even the separator of documents.
    self._config = dataclasses.replace(config, first_token='given')
    self.context = config.length
    self.encode = _encoder(pathlib.Path(folder), self._vocab_size)

  def nats(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    results: list[Any] = [None] * len(windows)
    for batch, ids_BxT in quality.padded_batches(windows, _TOKENS_AT_ONCE, self._padded):
      nll_BxN = np.asarray(_nats(self._config, self._vocab_size, self._params, ids_BxT))
      for row, number in enumerate(batch):
        results[number] = nll_BxN[row, : len(windows[number]) - 1].astype(np.float64)
    return results

  def features(self, windows: Sequence[np.ndarray]) -> np.ndarray:
    rows: list[Any] = [None] * len(windows)
    for batch, ids_BxT in quality.padded_batches(windows, _TOKENS_AT_ONCE, self._padded):
      last_B = np.array([len(windows[number]) - 1 for number in batch])
      rows_BxE = _features(self._config, self._vocab_size, self._params, ids_BxT, last_B)
      for number, row_E in zip(batch, np.asarray(rows_BxE), strict=True):
        rows[number] = row_E
    return np.stack(rows)

  def _padded(self, length: int) -> int:
    """Powers of two, since every length is a program to compile."""
    return min(self.context, max(16, 1 << (length - 1).bit_length()))


def _encoder(folder: pathlib.Path, size: int) -> Callable[[str], np.ndarray]:
  """From a text to ids, all of it and nothing else; refuses files that it would not use."""
  path = folder / 'tokenizer.json'
  if path.exists():
    import tokenizers

    try:
      with errors.no_panics():
        found = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
      raise UserError(f'cannot read {path} ({sentence(error)}); fetch it anew') from error
    tokens = found.get_vocab()
    if (needed := max(tokens.values(), default=-1) + 1) > size:
      raise UserError(f'{path} has {needed} tokens but the model {size}; take both from one model')
    for token, number in _read_json(folder / 'added_tokens.json').items():
      if tokens.get(token) != number:
        raise UserError(
          f'{folder / "added_tokens.json"} adds {token!r}, which {path} lacks; take both from one '
          'model'
        )
    # A number is of the whole text, and of the same pieces each time.
    tokenizer_file.make_whole(found)
    return lambda text: np.array(tokenizer_file.encode(found, text, str(path)), np.int64)
  if size != vocab_size('gpt2'):
    raise UserError(
      f"{folder} holds a model of {size} tokens, not GPT-2's {vocab_size('gpt2')}, and no "
      'tokenizer.json; put that of the model beside it'
    )
  official = json.loads(vocabularies.GPT2.read())
  is_own = (folder / 'vocab.json').exists() and _read_json(folder / 'vocab.json') != official
  others = [folder / name for name in _OTHER_VOCABULARIES if (folder / name).exists()]
  if _read_json(folder / 'added_tokens.json').items() - official.items():
    others.append(folder / 'added_tokens.json')
  if is_own or others:
    raise UserError(
      f"{folder / 'vocab.json' if is_own else others[0]} is not GPT-2's vocabulary; put the "
      'tokenizer.json of the model beside it, which transformers makes by save_pretrained'
    )
  return get_tokenizer('gpt2').encode


def _read_json(path: pathlib.Path) -> dict[str, int]:
  """Ids by token, none of a file that is not there."""
  try:
    return whole.read_json(path, {str: int}, 'fetch it anew')
  except FileNotFoundError:
    return {}


@functools.partial(jax.jit, static_argnames=('config', 'vocab_size'))
def _nats(config: ModelConfig, vocab_size: int, params: Params, ids_BxT: Array) -> Array:
  """float32 [B, T - 1], of every id but the first."""
  batch, length = ids_BxT.shape
  model, order = models.build(config, vocab_size), left_to_right(length - 1)
  weights_BxN = jnp.zeros((batch, length - 1))
  _, nll_BxN = armd.nll(model, params, ids_BxT, order, weights_BxN, loss_chunk=_LOSS_CHUNK)
  return nll_BxN


@functools.partial(jax.jit, static_argnames=('config', 'vocab_size'))
def _features(
  config: ModelConfig, vocab_size: int, params: Params, ids_BxT: Array, last_B: Array
) -> Array:
  """float32 [B, E], the row that reads the last id."""
  model, order = models.build(config, vocab_size), left_to_right(ids_BxT.shape[1])
  read_BxT = jnp.roll(ids_BxT, -1, axis=1)  # row n of the model reads the first id and n of these
  hidden_BxTxE: Any = model.apply({'params': params}, read_BxT, order, ids_BxT[:, 0])
  return jnp.take_along_axis(hidden_BxTxE, last_B[:, None, None], axis=1)[:, 0]

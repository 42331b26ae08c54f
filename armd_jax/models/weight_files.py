"""Arrays of a model in files of safetensors, whole or in shards with an index, by their names."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from armd_jax.errors import UserError, sentence
from armd_jax.files import whole

WHOLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
# Changes of the weights that others keep beside them.
_ADDED = ('adapter_config.json', 'adapter_model.safetensors', 'adapter_model.bin')


class Weights:
  """Arrays by name, each of which is taken once, so that none is left unread.

  Args:
    file: where they come from, for errors.
    arrays: by name.
    described: the file that gives their shapes.
  """

  def __init__(self, file: pathlib.Path, arrays: dict[str, np.ndarray], described: str):
    self.file = file
    self.arrays = arrays
    self._described = described
    self._taken: set[str] = set()

  def take(self, name: str, *shape: int) -> np.ndarray:
    """An array as float32.

    Raises:
      UserError: it is not there, has another shape, or is of no floating type.
    """
    found = self.arrays.get(name)
    if found is None or found.shape != shape:
      what = 'lacks' if found is None else f'has {found.shape} for'
      raise UserError(
        f'{self.file} {what} {name} of shape {shape}, which {self._described} says; '
        'take both files from one model'
      )
    if found.dtype.name not in FLOATS:
      raise UserError(
        f'{self.file} holds {name} as {found.dtype.name}, which is not read; fetch the weights in '
        'float16 or float32'
      )
    self._taken.add(name)
    return found.astype(np.float32)

  def rest(self) -> list[str]:
    """Names of the arrays that have not been taken."""
    return sorted(self.arrays.keys() - self._taken)


def is_there(folder: pathlib.Path) -> bool:
  """Whether a folder has weights in such files."""
  # Not of `pathlib`, which raises an error of what may not be looked into.
  return any(os.path.exists(folder / name) for name in (WHOLE, INDEX))


def read(folder: pathlib.Path, prefix: str) -> Weights:
  """All arrays of a folder.

  Args:
    folder: holds model.safetensors, or its shards and their index.
    prefix: what names begin with in some files and not in others; it is taken off.
  Raises:
    UserError: a file is missing or damaged, or they do not fit together.
  """
  for name in _ADDED:
    if (folder / name).exists():
      raise UserError(f'{folder / name} would change the model; merge it into the weights first')
  single, index = folder / WHOLE, folder / INDEX
  if single.exists() or not index.exists():
    file, arrays = single, _arrays(single)
  else:
    file, arrays = index, {}
    file_of = _file_of_array(index)
    for name in sorted(set(file_of.values())):
      found = _arrays(folder / name)
      listed = {array for array, where in file_of.items() if where == name}
      if found.keys() != listed:
        odd = min(found.keys() ^ listed)
        raise UserError(
          f'{folder / name} and {index} do not agree about {odd}; fetch all of them anew'
        )
      arrays |= found
  plain = {name.removeprefix(prefix): x for name, x in arrays.items()}
  if len(plain) < len(arrays):
    twice = next(name for name in plain if f'{prefix}{name}' in arrays and name in arrays)
    raise UserError(f'{file} holds {twice} twice, with a prefix and without; fetch it anew')
  return Weights(file, plain, 'config.json')


def _file_of_array(index: pathlib.Path) -> dict[str, str]:
  """The name of its file by the name of each array."""
  form: Any = {'weight_map': {str: str}}
  file_of = whole.read_json(index, form, 'fetch it anew')['weight_map']
  for name in file_of.values():
    if pathlib.PurePath(name).name != name:
      raise UserError(f'{index} names {name!r}, which is no file beside it; fetch it anew')
  return file_of


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    whole.check_ends(path)
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
    raise UserError(f'cannot read {path} ({sentence(error)}); fetch it anew') from error


def first_id(path: pathlib.Path, described: Mapping[str, Any], vocab_size: int) -> int:
  """The id whose embedding begins a text.

  Args:
    path: of config.json.
    described: what it holds.
    vocab_size: V.
  Raises:
    UserError: it is none of the vocabulary.
  """
  for name in ('bos_token_id', 'eos_token_id'):
    value = described.get(name)
    value = value[0] if isinstance(value, list) and value else value
    if value is not None:
      if type(value) is not int or not 0 <= value < vocab_size:
        raise UserError(f'{path} says {name} = {value!r}, no id below {vocab_size}; fetch it anew')
      return value
  return 0

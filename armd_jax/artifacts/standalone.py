"""Exports: trained weights as a folder or a safetensors file that opens without their run.

A folder holds

  export.json    config, tokenizer and its fingerprint, step; size and SHA-256 of the other files
  weights/       the parameters, as orbax writes them
  stablehlo/     programs that run without this package, if asked for (see `stablehlo`)
  README.md      the model card, which may be edited

A safetensors file holds the parameters by name, and in its metadata what export.json says.
Everything is compared with what was written before anything is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from armd_jax import config as config_lib
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError, sentence
from armd_jax.parallel import sharding
from armd_jax.parallel.axes import path_name

_FORMAT = 1
_MANIFEST, _WEIGHTS, _CARD = 'export.json', 'weights', 'README.md'
_KEY = 'armd_jax'  # in the metadata of a safetensors file
_FIX = 'export it again'


@dataclasses.dataclass(frozen=True)
class Export:
  """What an export holds beside its parameters.

  Attributes:
    config: of the run.
    tokenizer: the one of the run, by its fingerprint.
    weights: 'ema' or 'raw'.
    step: of training.
  """

  config: config_lib.Config
  tokenizer: Tokenizer
  weights: str
  step: int


def is_export(path: str | pathlib.Path) -> bool:
  """Whether a path is an export's (or a damaged one's) and not a run's."""
  path = pathlib.Path(path)
  return path.suffix == '.safetensors' or (path / _MANIFEST).exists()


@contextlib.contextmanager
def new_path(path: str | pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """A path to write to, which takes the name of `path` once everything in it is written.

  Raises:
    UserError: something is there that is not to be overwritten, or it cannot be written.
  """
  path = pathlib.Path(path).absolute()
  if path.exists() and not (overwrite and is_export(path)):
    fix = 'write another --out' + (', or --overwrite' if is_export(path) else '')
    raise UserError(f'{path} exists{"" if is_export(path) else " and is no export"}; {fix}')
  part = path.with_name(f'{path.name}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(part)
    yield part
    _remove(path)
    part.rename(path)
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); give another --out') from error


def _remove(path):
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


# ----- writing


def write_folder(folder: pathlib.Path, params: Any, card: str) -> None:
  """Writes parameters and model card; `seal` comes once all that belongs to it is there."""
  folder.mkdir()
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / _WEIGHTS, params)
  (folder / _CARD).write_text(card)


def seal(folder: pathlib.Path, export: Export) -> None:
  """Notes what the folder holds."""
  files = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.name != _CARD]
  found = {str(path.relative_to(folder)): _size_and_sha256(path) for path in files}
  text = json.dumps(_sealed(export, {'files': found}), indent=2)
  (folder / _MANIFEST).write_text(f'{text}\n')


def write_file(path: pathlib.Path, export: Export, params: Any) -> None:
  """Writes a safetensors file."""
  arrays = {name: np.asarray(x) for name, x in sorted(_by_name(params).items())}
  about = json.dumps(_sealed(export, {'parameters': _digest(arrays)}))
  safetensors.numpy.save_file(arrays, path, metadata={_KEY: about})


def _sealed(export, what):
  tokenizer = export.tokenizer
  about = {
    'format': _FORMAT,
    'config': config_lib.to_dict(export.config),
    'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
    'weights': export.weights,
    'step': export.step,
    **what,
  }
  return about | {'sha256': _sha256_of(about)}


def _sha256_of(about):
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _size_and_sha256(path):
  with path.open('rb') as file:
    return [path.stat().st_size, hashlib.file_digest(file, 'sha256').hexdigest()]


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name, x in sorted(arrays.items()):
    digest.update(f'{name} {x.shape} {x.dtype}\0'.encode() + np.ascontiguousarray(x).tobytes())
  return digest.hexdigest()


def _by_name(tree: Any) -> dict[str, Any]:
  """What has a shape in a tree, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  return {path_name(path): x for path, x in leaves}


# ----- reading


def read(path: str | pathlib.Path) -> Export:
  """What an export says of itself, once all of its files are found to be what was written.

  Raises:
    UserError: it is damaged, was changed, or belongs to another vocabulary.
  """
  path = pathlib.Path(path)
  about = dict(_metadata(path) if path.suffix == '.safetensors' else _manifest(path))
  if about.get('format') != _FORMAT:
    raise UserError(f'{path} has format {about.get("format")}, not {_FORMAT}; {_FIX}')
  if about.pop('sha256', None) != _sha256_of(about):
    raise UserError(f'what {path} says of itself was changed after it was written; {_FIX}')
  for name, (size, sha256) in about.get('files', {}).items():
    file = path / name
    if not file.is_file():
      raise UserError(f'export {path} is damaged ({name} is missing); {_FIX}')
    if file.stat().st_size != size:
      raise UserError(
        f'export {path} is damaged ({name} has {file.stat().st_size} of {size} bytes); {_FIX}'
      )
    if _size_and_sha256(file)[1] != sha256:
      raise UserError(
        f'export {path} is damaged ({name} has other bytes than were written); {_FIX}'
      )
  tokenizer = get_tokenizer(about['tokenizer']['name'])
  if tokenizer.fingerprint != about['tokenizer']['fingerprint']:
    raise UserError(
      f'{path} was made with another {tokenizer.name!r} vocabulary than the one here (fingerprint '
      f'{about["tokenizer"]["fingerprint"][:8]}, not {tokenizer.fingerprint[:8]}); {_FIX} here'
    )
  config = config_lib.parse_file(about['config'], path)
  return Export(config, tokenizer, about['weights'], about['step'])


def parameters(path: str | pathlib.Path, abstract: Any) -> Any:
  """The parameters of an export that `read` has approved of.

  Args:
    path: the export.
    abstract: shapes, dtypes and shardings, as `training.abstract_state` gives them.
  Raises:
    UserError: they are not the parameters of that model, or damaged.
  """
  path = pathlib.Path(path).absolute()  # orbax finds nothing under a relative one
  if path.suffix == '.safetensors':
    return _parameters_of_file(path, abstract)
  with ocp.StandardCheckpointer() as checkpointer:
    found = checkpointer.metadata(path / _WEIGHTS).item_metadata
    _check_names(path, {name: x.shape for name, x in _by_name(found.tree).items()}, abstract)
    return checkpointer.restore(path / _WEIGHTS, abstract)


def _parameters_of_file(path, abstract):
  with safetensors.safe_open(path, 'np') as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
  _check_names(path, {name: x.shape for name, x in arrays.items()}, abstract)
  if _digest(arrays) != _metadata(path)['parameters']:
    raise UserError(f'{path} is damaged (its numbers are not those that were written); {_FIX}')
  put = lambda where, x: sharding.put(arrays[path_name(where)].astype(x.dtype), x.sharding)
  return jax.tree_util.tree_map_with_path(put, abstract)


def _check_names(path, have, abstract):
  want = {name: x.shape for name, x in _by_name(abstract).items()}
  for name in sorted(want.keys() ^ have.keys()):
    lacks = 'lacks' if name in want else 'holds'
    raise UserError(f'{path} {lacks} {name!r}, unlike the model of its config; {_FIX}')
  for name in sorted(want):
    if tuple(have[name]) != tuple(want[name]):
      raise UserError(
        f'{name!r} is {tuple(have[name])} in {path} but {tuple(want[name])} in the model of its '
        f'config; {_FIX}'
      )


def _manifest(path):
  try:
    return json.loads((path / _MANIFEST).read_text())
  except ValueError:
    raise UserError(
      f'export {path} is damaged ({_MANIFEST} is cut short or no JSON); {_FIX}'
    ) from None


def _metadata(path):
  try:
    with safetensors.safe_open(path, 'np') as file:
      return json.loads((file.metadata() or {})[_KEY])
  except FileNotFoundError:
    raise UserError(f'{path} is not there; give the path of an export or a run') from None
  except KeyError:
    raise UserError(f'{path} was not written by armd_jax.export; give one that was') from None
  except (safetensors.SafetensorError, ValueError) as error:
    raise UserError(f'export {path} is damaged ({sentence(error)}); {_FIX}') from error

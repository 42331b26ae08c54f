"""Exports: trained weights as a folder or a safetensors file that opens without their run.

A folder holds

  export.json    config, tokenizer and its fingerprint, step, SHA-256 of the text that was trained
                 on; size and SHA-256 of the other files
  weights/       the parameters, as orbax writes them
  stablehlo/     programs that run without this package, if asked for (see `stablehlo`)
  tokenizer.json the vocabulary, where it is such a file
  README.md      the model card, which may be edited

A safetensors file holds the parameters by name, and in its metadata the content of export.json and
of tokenizer.json. Everything is compared with what was written before anything is used.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from armd_jax import config as config_lib
from armd_jax.data import tokenizer_file
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError, sentence
from armd_jax.files import buckets, lock, paths, whole
from armd_jax.models.params import Params
from armd_jax.parallel import sharding
from armd_jax.parallel.axes import path_name

_FORMAT = 1
_FORM = {
  'config': {},
  'tokenizer': {'name': str, 'fingerprint': str},
  'weights': str,
  'step': int,
  'text_sha256': str,
}
_MANIFEST, _WEIGHTS, _CARD = 'export.json', 'weights', 'README.md'
_KEY = 'armd_jax'  # in the metadata of a safetensors file
_FIX = 'export it again'
_PATH = 'the path of a run or an export'
_SECONDS_TO_END = 5.0  # of orbax's threads that still write where another one has failed


@dataclasses.dataclass(frozen=True)
class Export:
  """What an export holds beside its parameters.

  Attributes:
    config: of the run.
    tokenizer: the one of the run, by its fingerprint.
    weights: 'ema' or 'raw'.
    step: of training.
    text_sha256: of the text that it was trained on, hex; '' if that is not known.
  """

  config: config_lib.Config
  tokenizer: Tokenizer
  weights: str
  step: int
  text_sha256: str


def is_export(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an export's (or a damaged one's) and not a run's."""
  found = paths.kept(path, _PATH)
  if buckets.is_bucket(found):
    buckets.check(found, _PATH)
  return found.suffix == '.safetensors' or (found / _MANIFEST).exists()


@contextlib.contextmanager
def new_path(
  path: str | os.PathLike[str], overwrite: bool, name: str = '--out'
) -> Iterator[pathlib.Path]:
  """A path to write to, which takes the name of `path` once everything in it is written. What is to
  be in a bucket is written to a disk, and copied from there: an export has its manifest last.

  Args:
    path: to be there in the end.
    overwrite: whether an export that is there is replaced.
    name: the flag that gave it, for errors.
  Raises:
    UserError: something is there that is not to be overwritten, or it cannot be written.
  """
  place: Any = paths.kept(path, name)
  if buckets.is_bucket(place):
    with _uploaded(place, overwrite, name) as part:
      yield part
    return
  place = place.absolute()
  _check_new(place, overwrite, name)
  part, old = (place.with_name(f'.{place.name}.armd_jax_{what}') for what in ('part', 'old'))
  with lock.held(lock.beside(place), f'{name} {place}'):
    try:
      _remove(part)  # of an export that was killed
      yield part
      _check_new(place, overwrite, name)
      if place.exists() or place.is_symlink():
        _remove(old)
        place.rename(old)
      part.rename(place)
      _remove(old)
    except Exception as error:
      if (reason := whole.refusal(error)) is None:
        raise
      raise UserError(f'cannot write {place} ({reason}); give another {name}') from error
    finally:
      _remove(part)
      if old.exists() and not place.exists():
        old.rename(place)


@contextlib.contextmanager
def _uploaded(path: Any, overwrite: bool, name: str) -> Iterator[pathlib.Path]:
  """`new_path` of a bucket."""
  buckets.check(path, name)
  _check_new(path, overwrite, name)
  try:
    with tempfile.TemporaryDirectory(prefix='armd_jax_') as folder:
      part = pathlib.Path(folder) / path.name
      yield part
      _check_new(path, overwrite, name)
      if part.is_file():
        buckets.put(part, path)
        return
      (path / _MANIFEST).unlink(missing_ok=True)  # with it ends the export that was there
      buckets.remove(path, buckets.contents(path))
      for file in sorted(_files(part), key=lambda file: file == _MANIFEST):
        buckets.put(part / file, path / file)
  except Exception as error:
    if (reason := whole.refusal(error)) is None:
      raise
    raise UserError(f'cannot write {path} ({reason}); give another {name}') from error


def _check_new(path, overwrite, name):
  """Refuses to write over anything but an export, and over what somebody has put into one."""
  if not path.exists() and (buckets.is_bucket(path) or not path.is_symlink()):
    return
  try:
    about = dict(_about(path))
  except (OSError, UserError):
    raise UserError(f'{path} exists and is no export; write another {name}') from None
  if not overwrite:
    raise UserError(f'{path} exists; write another {name}, or --overwrite')
  if not path.is_dir():
    return
  made = {*about.get('files', {}), _MANIFEST, _CARD}
  for other in sorted(_files(path)):
    if other not in made:
      raise UserError(f'{path} holds {other}, which is no part of the export; write another {name}')


def _remove(path):
  # A link is removed as such; its target is not part of the export.
  if not path.is_dir() or path.is_symlink():
    path.unlink(missing_ok=True)
    return
  end = time.monotonic() + _SECONDS_TO_END
  while True:
    try:
      shutil.rmtree(path)
      return
    except OSError:
      if time.monotonic() > end:
        raise
      time.sleep(0.05)


def _files(folder):
  if buckets.is_bucket(folder):
    return [*buckets.contents(folder)]
  return [str(path.relative_to(folder)) for path in folder.rglob('*') if not path.is_dir()]


# ----- writing


def write_folder(folder: pathlib.Path, params: Params, card: str) -> None:
  """Writes parameters and model card; `seal` comes once all that belongs to it is there.

  Raises:
    UserError: orbax does not find what it wrote.
  """
  folder.mkdir()
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(paths.plain(folder) / _WEIGHTS, params)
  _check_names(folder, _shapes_in(folder), params)
  whole.write_text(folder / _CARD, card)


def seal(folder: pathlib.Path, export: Export) -> None:
  """Notes what the folder holds, to which the vocabulary is added."""
  if (text := _vocabulary(export)) is not None:
    whole.write_text(folder / tokenizer_file.FILE, text)
  files = sorted(set(_files(folder)) - {_CARD})
  found = {name: _size_and_sha256(folder / name) for name in files}
  whole.write_json(folder / _MANIFEST, _sealed(export, {'files': found}))


def write_file(path: pathlib.Path, export: Export, params: Params) -> None:
  """Writes a safetensors file."""
  arrays = {name: np.asarray(x) for name, x in sorted(_by_name(params).items())}
  metadata = {_KEY: json.dumps(_sealed(export, {'parameters': _digest(arrays)}))}
  if (text := _vocabulary(export)) is not None:
    metadata[tokenizer_file.FILE] = text  # which the fingerprint seals
  safetensors.numpy.save_file(arrays, path, metadata=metadata)


def _vocabulary(export: Export) -> str | None:
  """The tokenizer.json that is the vocabulary; None of one that the package or a plugin has."""
  tokenizer = export.tokenizer
  return tokenizer.text if isinstance(tokenizer, tokenizer_file.FileTokenizer) else None


def _sealed(export, what):
  tokenizer = export.tokenizer
  about = {
    'format': _FORMAT,
    'config': config_lib.to_dict(export.config),
    'tokenizer': {'name': tokenizer.name, 'fingerprint': tokenizer.fingerprint},
    'weights': export.weights,
    'step': export.step,
    'text_sha256': export.text_sha256,
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


def shapes(params: Params) -> dict[str, tuple[int, ...]]:
  """Of the parameters by name, as a safetensors file has them."""
  return {name: tuple(x.shape) for name, x in _by_name(params).items()}


def _by_name(tree: Any) -> dict[str, Any]:
  """What has a shape in a tree, by its path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  return {path_name(path): x for path, x in leaves}


# ----- reading


@contextlib.contextmanager
def _on_disk(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """An export's path; of one in a bucket that of a copy, which this process removes at its end."""
  place: Any = paths.kept(path, _PATH)
  if not buckets.is_bucket(place):
    yield place
    return
  buckets.check(place, _PATH)
  contents = buckets.contents(place) or buckets.contents(place.parent)
  here = _copied(place, tuple(sorted(contents.items())))
  try:
    yield here
  except UserError as error:
    raise UserError(str(error).replace(os.fspath(here), os.fspath(place))) from error


@functools.lru_cache(maxsize=4)
def _copied(path: Any, contents: tuple[tuple[str, tuple[int, int]], ...]) -> pathlib.Path:
  """A copy of what holds just this."""
  place = pathlib.Path(tempfile.mkdtemp(prefix='armd_jax_'))
  atexit.register(shutil.rmtree, place, ignore_errors=True)
  here = place / path.name
  try:
    if path.suffix == '.safetensors':
      buckets.get(path, here)
    else:
      for name, _ in contents:
        buckets.get(path / name, here / name)
  except FileNotFoundError:
    return here  # which is not there
  except Exception as error:
    if (reason := whole.refusal(error)) is None:
      raise
    raise UserError(f'cannot copy {path} to {place} ({reason}); free space, or copy it') from error
  return here


def read(path: str | pathlib.Path) -> Export:
  """The content of export.json, once all files of the export are found to be what was written.

  Raises:
    UserError: it is damaged, was changed, or belongs to another vocabulary.
  """
  with _on_disk(path) as here, paths.permitted():
    return _read(here, stays=not buckets.is_bucket(path))


def _read(path: pathlib.Path, stays: bool) -> Export:
  about = dict(_about(path))
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
  name, fingerprint = about['tokenizer']['name'], about['tokenizer']['fingerprint']
  text = _text_in(path, fingerprint)

  def own() -> str | None:
    in_file = not stays or path.suffix == '.safetensors'
    return text and (
      tokenizer_file.kept(text) if in_file else str((path / tokenizer_file.FILE).absolute())
    )

  tokenizer = get_tokenizer(tokenizer_file.found(name, fingerprint, own))
  if tokenizer.fingerprint != fingerprint:
    raise UserError(
      f'{path} was made with another {tokenizer.name!r} vocabulary than the one here (fingerprint '
      f'{fingerprint[:8]}, not {tokenizer.fingerprint[:8]}); {_FIX} here'
    )
  config = config_lib.parse_file(about['config'], path)
  if tokenizer.name != name:
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, tokenizer=tokenizer.name)
    )
  return Export(config, tokenizer, about['weights'], about['step'], about['text_sha256'])


def _text_in(path: pathlib.Path, fingerprint: str) -> str | None:
  """The tokenizer.json in an export; None in one that has none, as those of older versions."""
  if path.suffix != '.safetensors':
    return tokenizer_file.text_of(str(path / tokenizer_file.FILE))
  text = _metadata(path).get(tokenizer_file.FILE)
  if text is not None and tokenizer_file.fingerprint_of(text) != fingerprint:
    raise UserError(
      f'export {path} is damaged ({tokenizer_file.FILE} in its metadata is not what was written); '
      f'{_FIX}'
    )
  return text


def text_sha256_of(path: str | os.PathLike[str]) -> str:
  """Of the text that an export's weights were trained on; '' if that is not known.

  Raises:
    UserError: what the export holds of itself is damaged.
  """
  with _on_disk(path) as here:
    return _about(here)['text_sha256']


def parameters(path: str | pathlib.Path, abstract: Any) -> Params:
  """The parameters of an export that `read` has approved of.

  Args:
    path: the export.
    abstract: shapes, dtypes and shardings, as `training.abstract_params` gives them.
  Raises:
    UserError: they are not the parameters of that model, or damaged.
  """
  with _on_disk(path) as here:
    if here.suffix == '.safetensors':
      return _parameters_of_file(here, abstract)
    with ocp.StandardCheckpointer() as checkpointer:
      _check_names(here, _shapes_in(here), abstract)
      return checkpointer.restore(paths.plain(here) / _WEIGHTS, abstract)


def _shapes_in(folder):
  """Shapes of the parameters by name, as orbax finds them; none where it finds nothing."""
  with ocp.StandardCheckpointer() as checkpointer:
    found = checkpointer.metadata(paths.plain(folder) / _WEIGHTS).item_metadata
  return {name: x.shape for name, x in _by_name(getattr(found, 'tree', found)).items()}


def _parameters_of_file(path, abstract):
  with safetensors.safe_open(path, 'np') as file:
    arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
  _check_names(path, {name: x.shape for name, x in arrays.items()}, abstract)
  if _digest(arrays) != _about(path)['parameters']:
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


def _about(path):
  """The content of export.json, found to be what was written.

  Raises:
    UserError: there is none, or it is not what was written.
  """
  is_file = path.suffix == '.safetensors'
  form = _FORM | ({'parameters': str} if is_file else {'files': {str: [int, str]}})
  try:
    about = whole.parse_json(_header(path) if is_file else whole.read_bytes(path / _MANIFEST), {})
    if about.get('format') != _FORMAT:
      raise UserError(f'{path} has format {about.get("format")!r}, not {_FORMAT}; {_FIX}')
    if about.pop('sha256', None) != _sha256_of(about):
      raise UserError(f'what {path} says of itself was changed after it was written; {_FIX}')
    about.setdefault('text_sha256', '')  # exports of older versions have none
    whole.check_form(about, form)
  except UserError:
    raise
  except OSError as error:
    reason = error.strerror or sentence(error)  # safetensors gives no number of an error
    raise UserError(f'cannot read {path} ({reason}); give another') from error
  except ValueError as error:
    name = 'its metadata' if is_file else _MANIFEST
    raise UserError(f'export {path} is damaged ({name} {error}); {_FIX}') from None
  return about


def _header(path):
  """The text that an export has in the metadata of a safetensors file."""
  if (text := _metadata(path).get(_KEY)) is None:
    raise UserError(f'{path} was not written by armd_jax.export; give one that was')
  return text


def _metadata(path):
  """What is in a safetensors file beside the parameters, by name."""
  try:
    whole.check_ends(path)
    with _on_disk(path) as here, safetensors.safe_open(here, 'np') as file:
      return file.metadata() or {}
  except FileNotFoundError:
    raise UserError(f'{path} is not there; give the path of an export or a run') from None
  except safetensors.SafetensorError as error:
    raise UserError(f'export {path} is damaged ({sentence(error)}); {_FIX}') from error

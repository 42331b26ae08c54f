"""A trained model packed for others, and where a packed model is found by its name."""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax.artifacts import cards, standalone, weights
from armd_jax.artifacts.standalone import Export
from armd_jax.errors import UserError
from armd_jax.files import paths, whole

FOLDER_VARIABLE = 'ARMD_JAX_MODELS'
_TIME = (2020, 1, 1, 0, 0, 0)  # of all files, so that equal models make equal archives


def pack(
  workdir: pathlib.Path, name: str, measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> pathlib.Path:
  """Exports a run to `model/` in its folder, and that as NAME.zip, which a release can carry.

  Args:
    workdir: of the run.
    name: of the folder in the archive, which `armd_jax.load` takes.
    measured: tables of the model card, by where their numbers come from.
  Returns:
    The archive.
  Raises:
    UserError: it cannot be written.
  """
  config, tokenizer, params, step = weights.load_ema(workdir)
  export = Export(config, tokenizer, 'ema', step, weights.text_sha256_of(workdir))
  out, archive = workdir / 'model', workdir / f'{name}.zip'
  with standalone.new_path(out, overwrite=standalone.is_export(out)) as part:
    standalone.write_folder(part, params, cards.model_card(export, params, measured))
    standalone.seal(part, export)
  try:
    with whole.replacing(archive) as part, zipfile.ZipFile(part, 'w', zipfile.ZIP_DEFLATED) as file:
      for path in sorted(path for path in out.rglob('*') if path.is_file()):
        inside = f'{name}/{path.relative_to(out).as_posix()}'
        file.writestr(zipfile.ZipInfo(inside, _TIME), path.read_bytes(), zipfile.ZIP_DEFLATED)
  except OSError as error:
    raise UserError(f'cannot write {archive} ({error.strerror}); free space') from error
  return archive


def find(path: str | pathlib.Path) -> str | pathlib.Path:
  """The path, or, where nothing is there and it is a bare name, the model of that name that was
  unpacked into $ARMD_JAX_MODELS (by default ~/.cache/armd_jax/models) or installed beside the code.

  Raises:
    UserError: it is a name, and no such model is there.
  """
  if not isinstance(path, str) or not path.isidentifier() or os.path.exists(path):
    return path
  given = os.environ.get(FOLDER_VARIABLE) or '~/.cache/armd_jax/models'
  folders = paths.given(given, FOLDER_VARIABLE), pathlib.Path(__file__).parents[1] / 'trained'
  for folder in folders:
    for found in (folder / path, folder / f'{path}.safetensors'):
      if found.exists() and standalone.is_export(found):
        return found
  raise UserError(
    f'there is no {path!r} here, and no model of that name in {folders[0]}; unpack {path}.zip '
    'there, or give the path of a run or an export'
  )

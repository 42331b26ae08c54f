"""Open models by name or folder, without a run of their own: `armd_jax.load('hf:NAME')`."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from armd_jax.artifacts import starts
from armd_jax.config import Config, DataConfig
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.errors import UserError, sentence
from armd_jax.models import weight_files

PREFIX = 'hf:'


def is_open(path: str | os.PathLike[str]) -> bool:
  """Whether it names a model on the Hub, or a folder as Hugging Face keeps them."""
  if isinstance(path, str) and path.startswith(PREFIX):
    return True
  return isinstance(path, str | os.PathLike) and weight_files.is_there(
    pathlib.Path(os.path.expanduser(path))
  )


def load(path: str | os.PathLike[str]) -> tuple[Config, Tokenizer, Any, int]:
  """What `weights.load_ema` returns of a run, at step 0.

  Args:
    path: 'hf:OWNER/NAME', which `huggingface_hub` finds in its cache or fetches; or a folder.
  Raises:
    UserError: it cannot be had, or holds no model that is known here.
  """
  name = os.fspath(path)
  folder = _fetched(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else name
  start = starts.from_hugging_face(folder, DataConfig.source, '', 0)
  has_own = start.tokenizer is not None
  own = os.path.join(folder, starts.TOKENIZER)
  tokenizer = get_tokenizer(own if has_own else start.config.data.tokenizer)
  return start.config, tokenizer, start.params, 0


def _fetched(name: str) -> str:
  """The folder of a model of the Hub."""
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f'{PREFIX}{name} needs huggingface_hub; pip install huggingface_hub, or give the folder'
    ) from error
  try:
    return huggingface_hub.snapshot_download(
      name, allow_patterns=['*.json', '*.safetensors', '*.model']
    )
  except Exception as error:  # of the network, of names, of permissions
    raise UserError(
      f'{PREFIX}{name} cannot be fetched ({sentence(error)}); check the name and the network, or '
      'give the folder of a copy'
    ) from error

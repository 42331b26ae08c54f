"""Auto-regressive masked diffusion in JAX.

import armd_jax
model = armd_jax.load('work/quickstart')  # a run's folder, an export's, or a safetensors file
print(model.generate('Once upon a time', streams=4))
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pathlib
import sys
import typing
from collections.abc import Iterable
from typing import Any

from armd_jax import command
from armd_jax.parallel import ends

if typing.TYPE_CHECKING:
  from armd_jax import orders, register
  from armd_jax.artifacts.loaded import Model

__all__ = ['fit', 'load', 'orders', 'register']

# One of the programs is being started, and first imports for seconds.
if sys.argv[:1] == ['-m'] and any(word.startswith('armd_jax.') for word in sys.orig_argv):
  command.leave_with_help(sys.orig_argv)
  ends.leave_on_interrupt()


def load(path: str | pathlib.Path) -> Model:
  """The trained model of a run or an export, by its path, or of an unpacked model by its name
  (`armd_jax.artifacts.pack.find`); see `armd_jax.artifacts.loaded.Model`.

  Raises:
    UserError: there is none, or it is damaged.
  """
  from armd_jax.artifacts import loaded  # what runs a model takes seconds to import

  return loaded.load(path)


def fit(texts: Iterable[str], workdir: str | pathlib.Path, **overrides: Any) -> Model:
  """Trains a model on texts; see `armd_jax.artifacts.fitted.fit`.

  Raises:
    UserError: an override is no field of a config, or the texts are too few.
  """
  from armd_jax.artifacts import fitted

  return fitted.fit(texts, workdir, **overrides)


def __getattr__(name: str) -> Any:
  if name in ('orders', 'register'):
    return importlib.import_module(f'armd_jax.{name}')
  if name == '__version__':
    return importlib.metadata.version('armd_jax')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  """With what is imported when it is asked for, so that notebooks complete it."""
  return sorted({*globals(), *__all__, '__version__'})

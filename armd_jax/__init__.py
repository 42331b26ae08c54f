"""Auto-regressive masked diffusion in JAX.

import armd_jax
model = armd_jax.load('work/quickstart')  # a run's folder, an export's, or a safetensors file
print(model.generate('Once upon a time', streams=4))
"""

from __future__ import annotations

import pathlib
import typing

if typing.TYPE_CHECKING:
  from armd_jax.artifacts.loaded import Model


def load(path: str | pathlib.Path) -> Model:
  """The trained model of a run or an export; see `armd_jax.artifacts.loaded.Model`.

  Raises:
    UserError: there is none, or it is damaged.
  """
  from armd_jax.artifacts import loaded  # what runs a model takes seconds to import

  return loaded.load(path)

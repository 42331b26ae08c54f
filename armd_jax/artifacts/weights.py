"""The weights, config and tokenizer of a run or an export."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.artifacts import standalone
from armd_jax.config import Config, MeshConfig
from armd_jax.data.tokenizers import Tokenizer, get_tokenizer
from armd_jax.parallel import distributed, sharding
from armd_jax.training import checkpoint, text
from armd_jax.training import workdir as workdir_lib


def text_sha256_of(path: str | pathlib.Path) -> str:
  """Of the text that a run or an export was trained on, hex; '' if that is not known.

  Raises:
    UserError: the file that holds it is damaged.
  """
  is_export = standalone.is_export(path)
  return standalone.text_sha256_of(path) if is_export else text.sha256_of(path)


def load_ema(
  workdir: str | pathlib.Path, mesh_config: MeshConfig | None = None
) -> tuple[Config, Tokenizer, Any, int]:
  """Config, tokenizer, averaged parameters and step of a run's newest checkpoint, or an export's.

  Args:
    workdir: the run's, or an export's path.
    mesh_config: where the parameters go; None: on the run's mesh if it makes up the devices
      that are here, else on all of them along data.
  Returns:
    The config's mesh is the one that the parameters are on.
  Raises:
    UserError: nothing is there, it is damaged or from another config, or the mesh does not make up
      the devices or cannot share the model.
  """
  export = standalone.read(workdir) if standalone.is_export(workdir) else None
  config = export.config if export else workdir_lib.read_config(workdir)
  if mesh_config is None:
    fits = sharding.axis_sizes(config.mesh, jax.device_count()) is not None
    mesh_config = config.mesh if fits else MeshConfig()
  config = dataclasses.replace(config, mesh=mesh_config)
  distributed.agree('the run', {'config': config_lib.to_dict(config)})
  tokenizer = get_tokenizer(config.data.tokenizer)
  if not export:
    text.check_tokenizer(workdir, tokenizer)
  mesh = sharding.make_mesh(config.mesh)
  if export:
    params = training.abstract_params(config, tokenizer.vocab_size, mesh)
    return config, tokenizer, standalone.parameters(workdir, params), export.step
  abstract = training.abstract_state(config, tokenizer.vocab_size, mesh)
  state, _ = checkpoint.Checkpoints(workdir).restore(abstract)
  return config, tokenizer, training.network_params(config, state), int(state.step)

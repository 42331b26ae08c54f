"""Starts a run from other weights: GPT-2's, or an AR run's as ARMD.

  armd convert --gpt2=FOLDER --workdir=DIR      config.json, model.safetensors of it
  armd convert --warm_start=AR_RUN --workdir=DIR

DIR then holds a run at step 0, which `evaluate` and `sample` read, and another run can go on from:

  armd train --config=... --config.model.query_seed=warm --config.init_from=DIR

A warm start predicts at step 0 what the AR run predicts; of GPT-2 it has
--config.model.architecture=gpt2.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from armd_jax import cli, training
from armd_jax.artifacts import weights
from armd_jax.config import Config, DataConfig, OrderConfig
from armd_jax.data import tokenizers
from armd_jax.errors import UserError
from armd_jax.files import paths
from armd_jax.flags import flag
from armd_jax.models import conversion, gpt2
from armd_jax.models.params import Params
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib


def write(config: Config, params: Params, workdir: pathlib.Path) -> None:
  """A run that has not begun, with these parameters.

  Raises:
    UserError: something is in the work directory, or it cannot be written to.
  """
  if workdir.exists() and any(workdir.iterdir()):
    raise UserError(f'{workdir} is not empty; use another --workdir')
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  state = training.TrainState(
    step=jnp.zeros((), jnp.int32),
    skipped=jnp.zeros((), jnp.int32),
    params=params,
    ema=params,
    opt_state=training.make_optimizer(config.optimizer).init(params),
  )
  workdir_lib.write_config(workdir, config)
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(0, state, 0, None)
  checkpoints.close()


def from_gpt2(folder: str, source: str, tokenizer: str) -> tuple[Config, Params]:
  """A run of GPT-2's weights.

  Args:
    folder: see `gpt2.load`.
    source, tokenizer: of the text that it is to be measured on, see `config.DataConfig`.
  Raises:
    UserError: there is no GPT-2, or it has another vocabulary.
  """
  model, vocab_size, params = gpt2.load(folder)
  expected = tokenizers.vocab_size(tokenizer)
  if vocab_size != expected:
    raise UserError(
      f'the model in {folder} has a vocabulary of {vocab_size} but --tokenizer={tokenizer} one of '
      f'{expected}; name the tokenizer it was trained with'
    )
  data = DataConfig(source=source, tokenizer=tokenizer)
  return Config(
    model=model, order=OrderConfig(ar_steps=0, perm_steps=0, max_shuffled=0), data=data
  ), params


def from_ar(workdir: str, num_two_stream_layers: int) -> tuple[Config, Params]:
  """ARMD's run from an AR run; see `conversion.warm_start`.

  Raises:
    UserError: no AR run is there, or it has fewer layers.
  """
  config, tokenizer, params, _ = weights.load_ema(workdir)
  layers = config.model.num_layers
  count = layers // 2 if num_two_stream_layers < 0 else num_two_stream_layers
  if count > layers:
    raise UserError(f'--two_stream_layers is {count}; write at most the {layers} of the run')
  model, params = conversion.warm_start(config.model, tokenizer.vocab_size, params, count)
  return dataclasses.replace(config, model=model, init_from=''), params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  workdir: str = flag('Where the new run goes.')
  gpt2: str | None = flag("Folder with GPT-2's config.json, model.safetensors.", None)
  source: str = flag('With --gpt2: config.data.source.', DataConfig.source)
  tokenizer: str = flag('With --gpt2: its tokenizer.', 'gpt2')
  warm_start: str | None = flag('An AR run, to go on from as ARMD.', None)
  two_stream_layers: int = flag(
    'With --warm_start: layers with a content stream; -1: half of them.', -1
  )


def main(options: Options) -> None:
  if (options.gpt2 is None) == (options.warm_start is None):
    raise UserError('write either --gpt2=FOLDER or --warm_start=AR_RUN')
  if options.warm_start is not None:
    config, params = from_ar(options.warm_start, options.two_stream_layers)
  elif options.gpt2 is not None:
    config, params = from_gpt2(options.gpt2, options.source, options.tokenizer)
  write(config, params, paths.given(options.workdir, '--workdir'))
  print(f'{options.workdir} holds a run of family {config.model.family!r} at step 0')


if __name__ == '__main__':
  cli.run(main, Options)

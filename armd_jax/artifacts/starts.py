"""Runs that start from other weights: an open model's, or an AR run's as ARMD."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.artifacts import weights
from armd_jax.config import Config, DataConfig, ModelConfig, OrderConfig
from armd_jax.data import gguf_vocabulary, tokenizer_file, tokenizers
from armd_jax.errors import UserError
from armd_jax.files import paths, whole
from armd_jax.models import conversion, gguf_file, gpt2, llama
from armd_jax.models.params import Params
from armd_jax.parallel import axes
from armd_jax.training import checkpoint, text
from armd_jax.training import workdir as workdir_lib

TOKENIZER = tokenizer_file.FILE


@dataclasses.dataclass(frozen=True)
class Start:
  """A run that has not begun.

  Attributes:
    config, params: of the run.
    tokenizer: tokenizer.json of a model's own; None: the config names one that is known.
  """

  config: Config
  params: Params
  tokenizer: str | None = None


def write(start: Start, workdir: pathlib.Path) -> None:
  """Writes the run; where that fails, nothing of it stays.

  Raises:
    UserError: something is in the work directory, it cannot be written to, a weight is not finite,
      or the config is none that a run could be read with.
  """
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    what = 'not empty' if workdir.is_dir() else 'a file'
    raise UserError(f'{workdir} is {what}; use another --workdir')
  config = start.config
  config_lib.parse(config_lib.to_dict(config))  # which refuses what could not be read again
  for path, x in jax.tree_util.tree_leaves_with_path(start.params):
    if not np.isfinite(np.asarray(x, np.float32)).all():
      raise UserError(
        f'{axes.path_name(path)} holds numbers that are not finite; get the model again'
      )
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start.params)
  state = training.state_of(config, params)
  if start.tokenizer is not None:
    name = str((workdir / TOKENIZER).absolute())
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=name))
  made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
  try:
    workdir_lib.write_config(workdir, config)
    if start.tokenizer is not None:
      whole.write_text(workdir / TOKENIZER, start.tokenizer)
    if tokenizer_file.is_named(config.data.tokenizer):
      text.keep_tokenizer(workdir, tokenizers.get_tokenizer(config.data.tokenizer))
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
      checkpoints.save(0, state, 0, None)
  except BaseException:
    workdir_lib.delete(workdir)
    for folder in made:
      with contextlib.suppress(OSError):  # it was not made, or something was put there
        folder.rmdir()
    raise


def from_hugging_face(folder: str, source: str, tokenizer: str, length: int) -> Start:
  """A run of an open model's weights.

  Args:
    folder: see `gpt2.load` and `llama.load`.
    source: of the text that it is to be measured on, see `config.DataConfig`.
    tokenizer: a known one; '': the folder's own, without one GPT-2's for a GPT-2.
    length: N; 0: as many as the model has learned positions, or see `llama.load`.
  Raises:
    UserError: there is no model that is known here, or no tokenizer that fits it.
  """
  path = paths.given(folder, '--hf')
  is_gpt2 = gpt2.is_gpt2(path)
  if is_gpt2:
    model, vocab_size, params = gpt2.load(path)
    if length not in (0, model.length):
      raise UserError(
        f'--length is {length}, but a GPT-2 has learned {model.length} positions; leave it out'
      )
  else:
    model, vocab_size, params = llama.load(path, length)
  own = None if tokenizer else _own_tokenizer(path)
  if own is None and not tokenizer and not is_gpt2:
    raise UserError(
      f'{path} holds no {TOKENIZER}; put that of the model beside it, which transformers makes by '
      'save_pretrained'
    )
  name = tokenizer or 'gpt2'
  known = tokenizers.vocab_size(name) if own is None else own[1]
  if known > vocab_size or (is_gpt2 and known != vocab_size):
    raise UserError(
      f'the model in {path} has a vocabulary of {vocab_size} but '
      f'{f"--tokenizer={name}" if own is None else TOKENIZER} one of {known}; name the tokenizer '
      'it was trained with'
    )
  config = Config(
    model=_padded(model, known, vocab_size),
    order=OrderConfig(ar_steps=0, perm_steps=0, max_shuffled=0),
    data=DataConfig(source=source, tokenizer=name),
  )
  return Start(config, params, None if own is None else own[0])


def _own_tokenizer(path: pathlib.Path) -> tuple[str, int] | None:
  """tokenizer.json of a folder, or of what a file of GGUF holds, and its V."""
  beside = (path if path.is_dir() else path.parent) / TOKENIZER
  if beside.exists():
    known = tokenizers.vocab_size(str(beside))  # which refuses what is no text
    return beside.read_text('utf-8'), known
  if not gguf_file.is_there(path):
    return None
  file, found, _ = gguf_file.fields(path)
  made = gguf_vocabulary.tokenizer_json(file, found)
  with tempfile.TemporaryDirectory() as folder:
    written = pathlib.Path(folder) / TOKENIZER
    written.write_text(made, 'utf-8')
    return made, tokenizers.vocab_size(str(written))


def _padded(model: ModelConfig, known: int, vocab_size: int) -> ModelConfig:
  """Rows of a model's embedding beyond its tokenizer's V become padding, which no text holds."""
  rows = model.padded(vocab_size)
  return model if model.padded(known) == rows else dataclasses.replace(model, vocab_multiple=rows)


def from_ar(workdir: str, num_two_stream_layers: int) -> Start:
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
  own = tokenizer_file.text_of(config.data.tokenizer)
  return Start(dataclasses.replace(_alone(config), model=model), params, own)


def _alone(config: Config) -> Config:
  """A config without the run that its own went on from, and what goes with that."""
  optimizer = config.optimizer
  if optimizer.schedule_restarts and optimizer.schedule != 'constant':
    # It was counted from where it began anew.
    steps = max(optimizer.schedule_steps, config.train.steps)
    optimizer = dataclasses.replace(optimizer, schedule_steps=steps)
  optimizer = dataclasses.replace(optimizer, schedule_restarts=False)
  return dataclasses.replace(config, init_from='', init_step=-1, optimizer=optimizer)

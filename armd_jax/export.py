"""Exports trained weights: `python -m armd_jax.export --workdir=RUN --out=DIR`.

Writes a folder that `sample`, `evaluate` and `armd_jax.load` open without the run, or, where --out
ends in .safetensors, one file. --workdir may be an export of either kind, too.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import flags

from armd_jax import cli, training
from armd_jax.artifacts import stablehlo, standalone
from armd_jax.artifacts.cards import _held_out, measured_in, model_card
from armd_jax.artifacts.standalone import Export
from armd_jax.config import MeshConfig, check_streams
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.models.vocabulary import BOS
from armd_jax.parallel import sharding
from armd_jax.show.columns import num_parameters
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib


def load(path: str | pathlib.Path, weights: str) -> tuple[Export, Any]:
  """A run's newest weights, or an export's, on one device.

  Args:
    path: of either.
    weights: 'ema' or 'raw'.
  Raises:
    UserError: there are none such, or they are damaged.
  """
  saved = standalone.read(path) if standalone.is_export(path) else None
  if saved and saved.weights != weights:
    raise UserError(f'{path} holds {saved.weights} weights; write --weights={saved.weights}')
  config = saved.config if saved else workdir_lib.read_config(path)
  tokenizer = get_tokenizer(config.data.tokenizer)
  mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
  abstract = training.abstract_state(config, tokenizer.vocab_size, mesh)
  if saved:
    return saved, standalone.parameters(path, abstract.ema)
  state, _ = checkpoint.Checkpoints(path).restore(abstract)
  params = state.ema if weights == 'ema' else state.params
  return Export(config, tokenizer, weights, int(state.step)), params


def main() -> None:
  out = pathlib.Path(_OUT.value)
  is_file = out.suffix == '.safetensors'
  if is_file and (_STABLEHLO.value or _SCORES.value):
    raise UserError(
      '--stablehlo and --scores go into a folder; write an --out without .safetensors'
    )
  with standalone.new_path(out, _OVERWRITE.value) as part:
    export, params = load(_WORKDIR.value, _WEIGHTS.value)
    model = export.config.model
    if is_file:
      standalone.write_file(part, export, params)
    else:
      measured = {path: measured_in(path, export.step) for path in _SCORES.value}
      if held_out := _held_out(_WORKDIR.value, export.step):
        measured['while training'] = held_out
      standalone.write_folder(part, params, model_card(export, params, measured))
      if _STABLEHLO.value:
        if model.orders == 'none':
          raise UserError(
            f'--stablehlo writes programs that decode along an order; {model.family!r} has none, '
            'leave it out'
          )
        streams = 1 if model.orders == 'left_to_right' else _STREAMS.value
        check_streams(streams, model.num_slots, '--streams')
        first_token = export.tokenizer.eos_id if model.bos == 'first_token_given' else BOS
        stablehlo.write(
          part / 'stablehlo', model, export.tokenizer.vocab_size, params, first_token,
          streams=streams, batch_size=_BATCH.value,
        )  # fmt: skip
      standalone.seal(part, export)
  print(f'{out}: {export.weights} weights of step {export.step}, {num_parameters(params)} numbers')


if __name__ == '__main__':
  _WORKDIR = cli.workdir_flag('A training run, or an export.')
  _OUT = flags.DEFINE_string('out', None, 'Folder, or .safetensors file, to write.', required=True)
  _WEIGHTS = flags.DEFINE_enum('weights', 'ema', ['ema', 'raw'], 'Averaged, or as trained.')
  _SCORES = flags.DEFINE_list('scores', [], 'Files of evaluate --json, for the model card.')
  _OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Replace an export that is there.')
  _STABLEHLO = flags.DEFINE_bool('stablehlo', False, 'Write programs that run without armd_jax.')
  _STREAMS = flags.DEFINE_integer('streams', 4, 'S of these programs.')
  _BATCH = flags.DEFINE_integer('batch_size', 1, 'Texts per call of these programs.', lower_bound=1)
  cli.run(main)

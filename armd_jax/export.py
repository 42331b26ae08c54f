"""Exports trained weights: `armd export --workdir=RUN --out=DIR`.

Writes a folder that `sample`, `evaluate` and `armd_jax.load` open without the run, or, where --out
ends in .safetensors, one file. --workdir may be an export of either kind, too.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax

from armd_jax import cli, training
from armd_jax.artifacts import stablehlo, standalone
from armd_jax.artifacts.cards import _held_out, measured_in, model_card
from armd_jax.artifacts.standalone import Export
from armd_jax.config import MeshConfig, check_streams
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.files import paths
from armd_jax.flags import flag
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import BOS
from armd_jax.parallel import sharding
from armd_jax.show.columns import num_parameters
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib


def load(path: str | pathlib.Path, weights: str) -> tuple[Export, Params]:
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  workdir: str = flag('A training run, or an export.')
  out: str = flag('Folder, or .safetensors file, to write.')
  weights: str = flag('Averaged, or as trained.', 'ema', choices=('ema', 'raw'))
  scores: tuple[str, ...] = flag('Files of evaluate --json, for the model card.', ())
  overwrite: bool = flag('Replace an export that is there.', False)
  stablehlo: bool = flag('Write programs that run without armd_jax.', False)
  streams: int = flag('S of these programs.', 4)
  batch_size: int = flag('Texts per call of these programs.', 1, at_least=1)


def main(options: Options) -> None:
  out = paths.given(options.out, '--out')
  is_file = out.suffix == '.safetensors'
  if is_file and (options.stablehlo or options.scores):
    raise UserError(
      '--stablehlo and --scores go into a folder; write an --out without .safetensors'
    )
  with standalone.new_path(out, options.overwrite) as part:
    export, params = load(options.workdir, options.weights)
    model = export.config.model
    if is_file:
      standalone.write_file(part, export, params)
    else:
      measured = {path: measured_in(path, export.step) for path in options.scores}
      if held_out := _held_out(options.workdir, export.step):
        measured['while training'] = held_out
      standalone.write_folder(part, params, model_card(export, params, measured))
      if options.stablehlo:
        if model.orders == 'none':
          raise UserError(
            f'--stablehlo writes programs that decode along an order; {model.family!r} has none, '
            'leave it out'
          )
        streams = 1 if model.orders == 'left_to_right' else options.streams
        check_streams(streams, model.num_slots, '--streams')
        first_token = export.tokenizer.eos_id if model.first_token == 'given' else BOS
        stablehlo.write(
          part / 'stablehlo', model, export.tokenizer.vocab_size, params, first_token,
          streams=streams, batch_size=options.batch_size, tokenizer=export.tokenizer.name,
        )  # fmt: skip
      standalone.seal(part, export)
  print(f'{out}: {export.weights} weights of step {export.step}, {num_parameters(params)} numbers')


if __name__ == '__main__':
  cli.run(main, Options)

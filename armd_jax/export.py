"""Exports trained weights: `armd export --workdir=RUN --out=DIR`.

Writes a folder that `sample`, `evaluate` and `armd_jax.load` open without the run, or, where --out
ends in .safetensors, one file. --workdir may be an export of either kind, too. With --hf=DIR, a
folder that transformers opens with `AutoModelForCausalLM.from_pretrained`.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax

from armd_jax import cli, training
from armd_jax.artifacts import hugging_face, stablehlo, standalone
from armd_jax.artifacts.cards import hugging_face_card, measured, model_card
from armd_jax.artifacts.standalone import Export
from armd_jax.config import MeshConfig
from armd_jax.config_rules import check_streams
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.files import paths
from armd_jax.flags import flag
from armd_jax.models.params import Params
from armd_jax.models.vocabulary import BOS
from armd_jax.parallel import sharding
from armd_jax.show.columns import num_parameters
from armd_jax.training import checkpoint
from armd_jax.training import text as run_text
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
  if saved:
    abstract = training.abstract_params(config, tokenizer.vocab_size, mesh)
    return saved, standalone.parameters(path, abstract)
  state, _ = checkpoint.Checkpoints(path).restore(
    training.abstract_state(config, tokenizer.vocab_size, mesh)
  )
  params = training.network_params(config, state, averaged=weights == 'ema')
  text_sha256 = run_text.sha256_of(path)
  return Export(config, tokenizer, weights, int(state.step), text_sha256), params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  workdir: str = flag('A training run, or an export.', is_path='or a bucket')
  out: str = flag('Folder, or .safetensors file, to write.', '', is_path='or a bucket')
  hf: str = flag('Folder to write for transformers, in place of --out.', '', is_path=True)
  weights: str = flag('Averaged, or as trained.', 'ema', choices=('ema', 'raw'))
  scores: tuple[str, ...] = flag('Files of evaluate --json, for the model card.', (), is_path=True)
  overwrite: bool = flag('Replace an export that is there.', False)
  stablehlo: bool = flag('Write programs that run without armd_jax.', False)
  streams: int = flag('S of these programs.', 4)
  batch_size: int = flag('Texts per call of these programs.', 1, at_least=1, at_most=2**16)


def main(options: Options) -> None:
  if bool(options.out) == bool(options.hf):
    raise UserError('write either --out=DIR or --hf=DIR')
  name = '--hf' if options.hf else '--out'
  where = paths.given if options.hf else paths.kept
  out = where(options.hf or options.out, name)
  is_file = not options.hf and out.suffix == '.safetensors'
  if (options.stablehlo and (is_file or options.hf)) or (options.scores and is_file):
    raise UserError(
      '--stablehlo and --scores go into a folder; write an --out without .safetensors'
    )
  with standalone.new_path(out, options.overwrite, name) as part:
    export, params = load(options.workdir, options.weights)
    rows = {} if is_file else measured(options.workdir, options.scores, export.step)
    if is_file:
      standalone.write_file(part, export, params)
    elif options.hf:
      hugging_face.write(part, export, params, hugging_face_card(export, params, rows))
    else:
      standalone.write_folder(part, params, model_card(export, params, rows))
      if options.stablehlo:
        _write_programs(part / 'stablehlo', options, export, params)
      standalone.seal(part, export)
  print(f'{out}: {export.weights} weights of step {export.step}, {num_parameters(params)} numbers')


def _write_programs(folder: pathlib.Path, options: Options, export: Export, params: Params) -> None:
  model = export.config.model
  if model.orders == 'none':
    raise UserError(
      f'--stablehlo writes programs that decode along an order; {model.family!r} has none, '
      'leave it out'
    )
  streams = 1 if model.orders == 'left_to_right' else options.streams
  check_streams(streams, model.num_slots, '--streams')
  first_token = export.tokenizer.eos_id if model.first_token == 'given' else BOS
  stablehlo.write(
    folder, model, export.tokenizer.vocab_size, params, first_token,
    streams=streams, batch_size=options.batch_size, tokenizer=export.tokenizer.name,
  )  # fmt: skip


if __name__ == '__main__':
  cli.run(main, Options)

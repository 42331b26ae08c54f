"""Exports trained weights: `python -m armd_jax.export --workdir=RUN --out=DIR`.

Writes a folder that `sample`, `evaluate` and `armd_jax.load` open without the run, or, where --out
ends in .safetensors, one file. --workdir may be an export of either kind, too.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from armd_jax import checkpoint, cli, sharding, stablehlo, standalone, training
from armd_jax.bench.timing import num_parameters
from armd_jax.config import MeshConfig, check_streams
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.errors import UserError
from armd_jax.models.armd import BOS
from armd_jax.standalone import Export


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
  config = saved.config if saved else checkpoint.read_config(path)
  tokenizer = get_tokenizer(config.data.tokenizer)
  mesh = sharding.make_mesh(MeshConfig(), jax.local_devices()[:1])
  abstract = training.abstract_state(config, tokenizer.vocab_size, mesh)
  if saved:
    return saved, standalone.parameters(path, abstract.ema)
  state, _ = checkpoint.Checkpoints(path).restore(abstract)
  params = state.ema if weights == 'ema' else state.params
  return Export(config, tokenizer, weights, int(state.step)), params


def model_card(
  export: Export, params: Any, measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
  """README.md of an export.

  Args:
    export, params: what is exported.
    measured: rows of numbers by where they come from.
  """
  model, data = export.config.model, export.config.data
  average = 'averaged (EMA)' if export.weights == 'ema' else 'raw'
  tables = '\n\n'.join(f'{name}:\n\n{_markdown(rows)}' for name, rows in measured.items())
  return f"""# {model.family} model, {num_parameters(params) / 1e6:.1f}M parameters

{model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, {model.length} tokens of
the vocabulary `{export.tokenizer.name}`; {average} weights of step {export.step},
trained on `{data.source}`.

```python
import armd_jax
model = armd_jax.load('THIS_FOLDER')
print(model.generate('Once', streams={1 if model.family == 'ar' else 4}))
```

## Measured

{tables or 'Nothing: no `--scores` were given.'}
"""


def _markdown(rows):
  text = lambda x: f'{x:.4f}' if isinstance(x, float) else str(x)
  lines = [list(rows[0]), ['---'] * len(rows[0]), *([text(x) for x in r.values()] for r in rows)]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def measured_in(path: str | pathlib.Path, step: int) -> list[Mapping[str, Any]]:
  """The scores that `evaluate --json` wrote.

  Raises:
    UserError: they are no such scores, or of other weights.
  """
  try:
    numbers = json.loads(pathlib.Path(path).read_text())
    scores, measured_step = numbers['scores'], numbers['step']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'--scores={path} is nothing that evaluate wrote ({error}); make it by '
      f'python -m armd_jax.evaluate --workdir=RUN --json={path}'
    ) from error
  if measured_step != step:
    raise UserError(
      f'--scores={path} were measured at step {measured_step}, not {step}; evaluate again'
    )
  return scores


def _held_out(workdir, step):
  """The last number of the run's own log, as rows."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else ()
  rows = [row for row in map(json.loads, lines) if row.get('held_out') and row['step'] <= step]
  return [{'step': rows[-1]['step'], 'held_out nats/token': rows[-1]['held_out']}] if rows else []


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
      measured = {f'`{path}`': measured_in(path, export.step) for path in _SCORES.value}
      if held_out := _held_out(_WORKDIR.value, export.step):
        measured['while training'] = held_out
      standalone.write_folder(part, params, model_card(export, params, measured))
      if _STABLEHLO.value:
        streams = 1 if model.family == 'ar' else _STREAMS.value
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

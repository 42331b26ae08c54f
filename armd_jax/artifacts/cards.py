"""The model card of an export, and the numbers that it quotes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax.artifacts import parameters, standalone
from armd_jax.artifacts.standalone import Export
from armd_jax.data import mixture
from armd_jax.errors import UserError
from armd_jax.evaluation.scores import check_rows
from armd_jax.files import paths, whole
from armd_jax.models.params import Params
from armd_jax.show import history
from armd_jax.show.columns import num_parameters

_CELL = (str, float, type(None))  # of a table


def model_card(
  export: Export, params: Params, measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
  """README.md of an export.

  Args:
    export, params: what is exported.
    measured: rows of numbers by where they come from.
  """
  model = export.config.model
  return f"""{_head(export, params)}

```python
import armd_jax
model = armd_jax.load('THIS_FOLDER')
print(model.generate('Once', streams={1 if model.orders == 'left_to_right' else 4}))
```

## Measured

{_tables(measured)}

## Parameters

{parameters.section(model, export.tokenizer.vocab_size, standalone.shapes(params))}
"""


def hugging_face_card(
  export: Export, params: Params, measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
  """README.md of a folder for transformers; see `model_card`."""
  model = export.config.model
  is_ordered = model.orders == 'any'
  use = """output = model.generate(ids, max_length=LENGTH)"""
  more = ''
  if is_ordered:
    use = """output = model.generate(ids, streams=4)   # four tokens a step"""
    more = """
`model(ids).logits` are those of the next token, left to right; `model.token_logits(ids, position,
block)` those of every token along any generation order: an exact log-likelihood in one pass. The
code of the model is beside this file, in `modeling_armd.py`; it needs torch and transformers."""
  trusted = ', trust_remote_code=True' if is_ordered else ''
  return f"""---
library_name: transformers
pipeline_tag: text-generation
---

{_head(export, params)}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained('THIS_FOLDER'{trusted})
tokenizer = AutoTokenizer.from_pretrained('THIS_FOLDER'{trusted})
ids = tokenizer('Once', return_tensors='pt').input_ids
{use.replace('LENGTH', str(model.num_slots))}
print(tokenizer.decode(output[0]))
model.push_to_hub('YOU/NAME')   # if you want it there
```
{more}

## Measured

{_tables(measured)}
"""


def _head(export, params):
  model, data = export.config.model, export.config.data
  average = 'averaged (EMA)' if export.weights == 'ema' else 'raw'
  return f"""# {model.family} model, {num_parameters(params) / 1e6:.1f}M parameters

{model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, {model.length} tokens of
the vocabulary {_code(export.tokenizer.name)}; {average} weights of step {export.step},
trained on {', '.join(map(_code, mixture.sources(data)))}."""


def _tables(measured):
  tables = '\n\n'.join(f'{_code(name)}:\n\n{_markdown(rows)}' for name, rows in measured.items())
  return tables or 'Nothing: no `--scores` were given.'


def measured(
  workdir: str | os.PathLike[str], scores: Sequence[str], step: int
) -> dict[str, list[Mapping[str, Any]]]:
  """Rows of numbers by where they come from: files of scores, and the run's own log.

  Raises:
    UserError: see `measured_in`.
  """
  found = {path: measured_in(path, step) for path in scores}
  if held_out := _held_out(workdir, step):
    found['while training'] = held_out
  return found


def _markdown(rows):
  text = lambda x: f'{x:.4f}' if isinstance(x, float) else '-' if x is None else _plain(str(x))
  lines = [map(_plain, rows[0]), ['---'] * len(rows[0])]
  lines += [[text(x) for x in row.values()] for row in rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _plain(text):
  """Text that Markdown shows as it is, in one line of a table."""
  return re.sub(r'([\\`*_{}\[\]<>()#|&!~$])', r'\\\1', ' '.join(text.split()))


def _code(text):
  """Text as a code span, which ends at a run of as many backquotes as it began with."""
  text = ' '.join(text.split())
  fence = '`' * (1 + max(map(len, re.findall('`+', text)), default=0))
  space = ' ' if '`' in text else ''
  return f'{fence}{space}{text}{space}{fence}'


def measured_in(path: str | os.PathLike[str], step: int) -> list[Mapping[str, Any]]:
  """The scores that `evaluate --json` wrote.

  Raises:
    UserError: they are no such scores, or of other weights.
  """
  file = paths.given(path, '--scores')
  try:
    data = whole.read_bytes(file)
    numbers = whole.parse_json(data, {'step': int, 'scores': [{str: _CELL}]})
    scores, measured_step = numbers['scores'], numbers['step']
    if not scores or any(row.keys() != scores[0].keys() for row in scores):
      raise ValueError('has rows of different columns, or none')
    check_rows(scores)
  except (OSError, ValueError) as error:
    reason = error.strerror if isinstance(error, OSError) else f'it {error}'
    raise UserError(
      f'--scores={path} is nothing that evaluate wrote ({reason}); make it by '
      f'armd evaluate --workdir=RUN --json={path}'
    ) from error
  if measured_step != step:
    raise UserError(
      f'--scores={path} were measured at step {measured_step}, not {step}; evaluate again'
    )
  return scores


def _held_out(workdir, step):
  """The last number of the run's own log, as rows."""
  path = paths.kept(workdir, '--workdir') / 'metrics.jsonl'
  records = history.read(path) if path.exists() else {}
  if (found := history.held_out(records, step)) is None:
    return []
  nats = 'not finite' if found[1] is None else found[1]
  return [{'step': found[0], 'held_out nats/token': nats}]

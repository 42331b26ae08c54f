"""The model card of an export, and the numbers that it quotes."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax.artifacts.standalone import Export
from armd_jax.errors import UserError
from armd_jax.show.columns import num_parameters


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
print(model.generate('Once', streams={1 if model.orders == 'left_to_right' else 4}))
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

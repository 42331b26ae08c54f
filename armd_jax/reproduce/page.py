"""reproduction.json, reproduction.md and the pictures."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import ml_collections

from armd_jax import cli
from armd_jax.data.corpus import Corpus
from armd_jax.errors import UserError
from armd_jax.files import whole
from armd_jax.hardware import machines
from armd_jax.reproduce import claims, front_tables, pictures, tables
from armd_jax.reproduce.pieces import Piece
from armd_jax.reproduce.place import Place, results_of
from armd_jax.reproduce.results import Results

_PACKAGES = ('jax', 'flax', 'optax', 'numpy')


def numbers(
  raw: ml_collections.ConfigDict,
  place: Place,
  pieces: Sequence[Piece],
  command: str,
  corpus: Corpus,
) -> dict[str, Any]:
  """All that the page is made of.

  Args:
    raw: the experiment's config.
    place: where the results are.
    pieces: all of the reproduction.
    command: that makes all of it again.
    corpus: the text.
  """
  found = results_of(place, pieces)
  config = raw.to_dict()
  del config['data']['source']
  return {
    'command': command,
    'text': {'description': corpus.description, 'sha256': corpus.sha256},
    'machine': machines.machine(),
    'versions': {
      'python': platform.python_version(),
      **{name: importlib.metadata.version(name) for name in _PACKAGES},
    },
    'config': config,
    'missing': [piece.name for piece in pieces if piece.name not in found],
    'pieces': {
      name: {k: record[k] for k in ('kind', 'seconds', 'result')} for name, record in found.items()
    },
  }


def write(numbers: dict[str, Any], out: pathlib.Path) -> None:
  """Writes everything into a folder.

  Raises:
    UserError: it cannot be written to.
  """
  numbers = _rounded(numbers)
  cli.write_json(out / 'records' / 'reproduction.json', numbers)
  results = Results(numbers)
  drawn = pictures.draw(results, out)
  path = out / 'reproduction.md'
  try:
    whole.write_text(path, text(results, drawn))
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); give another --out') from error


def text(results: Results, drawn: Sequence[tuple[str, str]]) -> str:
  """The page.

  Args:
    results: what there is.
    drawn: file names of pictures and what they show.
  """
  sections = {
    'What the paper claims, and what was seen': claims.table(claims.claims(results)),
    'What this project wants of its recipe': claims.table(claims.goals(results)),
    'Held-out likelihood': tables.held_out(results),
    'What a training step costs': tables.cost(results),
    'How far S can go': tables.farthest(results),
    'Near a junction': tables.junctions(results),
    'Strided generation': tables.strided(results),
    'Layers with two streams': tables.depths(results),
    'All systems on one front': front_tables.front(results),
    'Texts': front_tables.texts(results),
    'Ablations': tables.ablations(results),
    'Learning rates': tables.rates(results),
    'Optimizers and schedules': tables.optimizers(results),
  }
  parts = [_head(results)]
  parts += [f'![{shown}]({name})' for name, shown in drawn]
  parts += [f'## {title}\n\n{body}' for title, body in sections.items()]
  return '\n\n'.join(parts) + '\n'


def _head(results):
  n = results.numbers
  config = results.config
  seconds = sum(piece['seconds'] for piece in n['pieces'].values())
  versions = ', '.join(f'{name} {version}' for name, version in n['versions'].items())
  missing = 'All pieces are there.'
  if n['missing']:
    missing = f'**{len(n["missing"])} pieces are missing**: {", ".join(n["missing"])}.'
  model, train = config.model, config.train
  return (
    '# The comparison of systems in miniature\n\n'
    'Written by the command below, as are the pictures; the numbers are in '
    '[reproduction.json](records/reproduction.json).\n\n'
    f'    {n["command"]}\n\n'
    f'- Text: {n["text"]["description"]}; sha256 `{n["text"]["sha256"]}`\n'
    f'- Machine: {n["machine"]["device"]}, {n["machine"]["cpu_cores"]} CPU cores\n'
    f'- Versions: {versions}\n'
    f'- Every system: {model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, '
    f'{model.length} bytes, batch {train.batch_size}, {train.steps} steps, '
    f'{model.dtype}, the same optimizer; the learning rate of each from the same sweep\n'
    f'- ARMD: query_seed={model.query_seed!r}, query_seed_norm={model.query_seed_norm!r}, '
    f'num_two_stream_layers={model.num_two_stream_layers}, '
    f'segments_prob={config.order.segments_prob}; the first ablation is the published recipe\n'
    f'- Time: {seconds / 60:.0f} minutes of processes with a core each. {missing}'
  )


def _rounded(value):
  """Numbers to seven digits, which is more than any of them means."""
  if isinstance(value, dict):
    return {name: _rounded(x) for name, x in value.items()}
  if isinstance(value, list | tuple):
    return [_rounded(x) for x in value]
  return float(f'{value:.7g}') if isinstance(value, float) else value

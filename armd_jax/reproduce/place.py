"""Where results are kept, and what decides them.

A result is kept with a key: a digest of the piece, its config, the text, the code that decides it
and the keys of what it builds on. Where the key is another one, the piece is done anew.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.reproduce import pieces as pieces_lib
from armd_jax.reproduce.pieces import Piece

ROOT = pathlib.Path(__file__).parents[1]
_TRAINING = (
  'order.py', 'training.py', 'train.py', 'models/*.py', 'objectives/*.py', 'data/*.py',
  'attention/__init__.py', 'attention/reference.py',
)  # fmt: skip
# The code that decides a result, beside what it builds on.
SOURCES = {
  'train': _TRAINING,
  'evaluate': (
    'evaluation/likelihood.py', 'evaluation/scores.py', 'evaluation/bounds.py', 'bench/decode.py',
    'reproduce/work.py',
  ),
  'speed': ('decode/*.py', 'bench/decode.py', 'bench/timing.py', 'reproduce/work.py'),
  'cost': (*_TRAINING, 'flops.py', 'bench/train_step.py', 'bench/timing.py', 'reproduce/work.py'),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
  """Where and on what the pieces are run.

  Attributes:
    workdir: takes pieces/, runs/ and logs/.
    raw: fields of the experiment's config, with the text as its data.source.
    text_sha256: of the text.
  """

  workdir: pathlib.Path
  raw: dict[str, Any]
  text_sha256: str

  def result(self, name: str) -> dict[str, Any] | None:
    """What is kept of a piece, whether or not it is still of this text and code."""
    try:
      return json.loads(self._file(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
      return None

  def keep(self, name: str, record: dict[str, Any]) -> None:
    """Leaves a whole file at any time."""
    part = self._file(name).with_suffix('.part')
    cli.write_json(part, record)
    part.replace(self._file(name))

  def run_folder(self, name: str, key: str) -> pathlib.Path:
    """Work directory of a training piece; another key is another run."""
    return self.workdir / 'runs' / f'{name}-{key[:12]}'

  def _file(self, name):
    return self.workdir / 'pieces' / f'{name}.json'


def results_of(place: Place, pieces: Sequence[Piece]) -> dict[str, dict[str, Any]]:
  """The records that are there and up to date, by name of their piece."""
  found, keys = {}, {}
  for piece in pieces:
    if all(need in keys for need in piece.needs):
      key, record = key_of(piece, place, keys), place.result(piece.name)
      if record and record['key'] == key:
        keys[piece.name], found[piece.name] = key, record
  return found


# ----- what decides a result


def config_of(piece: Piece, place: Place) -> config_lib.Config:
  """The config of a training piece, whose needs are there.

  Raises:
    UserError: a change that the config does not take.
  """
  raw = ml_collections.ConfigDict(copy.deepcopy(place.raw))
  raw.update_from_flattened_dict(piece.overrides)
  if piece.rate_of:
    raw.optimizer.learning_rate = chosen_rate(piece.rate_of, place)
  every = pieces_lib.checkpoint_every(piece.steps)
  raw.train.update(checkpoint_every=every, keep_every=every, keep_last=1, keep_best=0)
  return config_lib.parse(raw)


def chosen_rate(system: str, place: Place) -> float:
  """The learning rate with the lowest held-out nats of the system's own objective."""
  nats = {}
  for rate in pieces_lib.RATES:
    record = place.result(pieces_lib.evaluated(pieces_lib.rate_name(system, rate)))
    (rows,) = record['result'].values()
    nats[rate] = own_row(rows, system)['nats_per_byte']
  return min(nats, key=nats.get)


def own_row(rows: Sequence[dict[str, Any]], system: str) -> dict[str, Any]:
  """The score that a system is trained for: ARMD on uniform orders has a bound, others one kind."""
  return random_row(rows) if system == 'armd_uniform' else rows[0]


def random_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The bound over random orders, one of them per text."""
  return next(row for row in rows if row['kind'] == 'bound')


def key_of(piece: Piece, place: Place, keys: Mapping[str, str]) -> str:
  """Hex digits that change with anything that decides the result.

  Args:
    piece: to be run.
    place: with the results of what it needs.
    keys: of what it needs.
  """
  what = dataclasses.asdict(piece)
  del what['weight']
  if piece.kind == 'train':
    what['config'] = config_lib.to_dict(config_of(piece, place))
  elif piece.kind == 'cost':
    what['config'] = copy.deepcopy(place.raw)
  if 'config' in what:
    del what['config']['data']['source'], what['config']['init_from']
  what['text'] = place.text_sha256
  # A sweep decides a run by the rate alone, which is in the config.
  builds_on = piece.needs if piece.kind != 'train' else filter(None, [piece.base])
  what['needs'] = [keys[name] for name in builds_on]
  what['code'] = code_digest(SOURCES[piece.kind])
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_digest(globs: tuple[str, ...]) -> str:
  """Of source files; comments, docstrings and layout do not count."""
  digest = hashlib.sha256()
  for path in sorted({path for glob in globs for path in ROOT.glob(glob)}):
    tree = ast.parse(path.read_text('utf-8'))
    for node in ast.walk(tree):
      body = getattr(node, 'body', None)
      if isinstance(body, list) and body and _is_docstring(body[0]):
        del body[0]
    digest.update(f'{path.relative_to(ROOT)}\0{ast.dump(tree)}'.encode())
  return digest.hexdigest()


def _is_docstring(node):
  return (
    isinstance(node, ast.Expr)
    and isinstance(node.value, ast.Constant)
    and isinstance(node.value.value, str)
  )

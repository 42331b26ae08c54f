"""Where results are kept, and what decides them.

A result is kept with a key: a digest of the piece, its config, the text, the code that decides it
and the keys of what it builds on. Where the key is another one, the piece is done anew.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from armd_jax import config as config_lib
from armd_jax import records
from armd_jax.reproduce import pieces as pieces_lib
from armd_jax.reproduce.pieces import Piece

# The programs that decide a result, beside what it builds on.
ENTRIES = {
  'train': ('armd_jax/train.py',),
  'evaluate': ('armd_jax/reproduce/work.py',),
  'speed': ('armd_jax/reproduce/work.py',),
  'cost': ('armd_jax/reproduce/work.py',),
  'front': ('armd_jax/reproduce/generated.py',),
  'texts': ('armd_jax/reproduce/generated.py',),
}
# What runs here is a CPU, with the XLA reference; and what only reports.
WITHOUT = (
  'armd_jax/attention/hopper*.py', 'armd_jax/attention/tpu*.py', 'armd_jax/cli.py',
  'armd_jax/flags.py', 'armd_jax/parallel/distributed.py', 'armd_jax/show/*.py',
  'armd_jax/training/hooks.py', 'armd_jax/training/metrics.py',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Place:
  """Where and on what the pieces are run.

  Attributes:
    workdir: takes pieces.json, runs/ and logs/.
    raw: fields of the experiment's config, with the text as its data.source.
    text_sha256: of the text.
    judge: path of the model that judges generated texts; '': none does.
  """

  workdir: pathlib.Path
  raw: dict[str, Any]
  text_sha256: str
  judge: str = ''

  def result(self, name: str) -> dict[str, Any] | None:
    """What is kept of a piece, whether or not it is still of this text and code."""
    return copy.deepcopy(self._read().get(name))

  def keep(self, name: str, key: str, record: dict[str, Any]) -> None:
    """Leaves a whole file at any time."""
    self.kept.add(name, key, record)

  def _read(self) -> dict[str, Any]:
    try:
      stat = self.kept.path.stat()
    except FileNotFoundError:
      return {}
    return _read_once(self.kept.path, stat.st_ino, stat.st_mtime_ns, stat.st_size)

  @property
  def kept(self) -> records.Records:
    return records.Records(self.workdir / 'pieces.json')

  def run_folder(self, name: str, key: str) -> pathlib.Path:
    """Work directory of a training piece; another key is another run."""
    return self.workdir / 'runs' / f'{name}-{key[:12]}'


@functools.lru_cache(maxsize=2)
def _read_once(path: pathlib.Path, *_version: int) -> dict[str, Any]:
  """Hundreds of pieces are looked up between two that are added."""
  return records.Records(path).read()


def has_weights(piece: Piece, place: Place, key: str) -> bool:
  """Whether the last checkpoint of a training piece is here; True of other pieces."""
  folder = place.run_folder(piece.name, key) / 'checkpoints'
  return piece.kind != 'train' or (folder / str(piece.steps[-1])).is_dir()


def results_of(place: Place, pieces: Sequence[Piece]) -> dict[str, dict[str, Any]]:
  """The records that are there and up to date, by name of their piece."""
  found, keys = {}, {}  # type: dict[str, dict[str, Any]], dict[str, str]
  for piece in pieces:
    if all(need in keys for need in piece.needs):
      key, record = key_of(piece, place, keys), place.result(piece.name)
      if record and record['stamp'] == key:
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
    record: Any = place.result(pieces_lib.evaluated(pieces_lib.rate_name(system, rate)))
    (rows,) = record['result'].values()
    nats[rate] = own_row(rows, system)['nats_per_byte']
  return min(nats, key=nats.get)  # type: ignore[arg-type]


def own_row(rows: Sequence[dict[str, Any]], system: str) -> dict[str, Any]:
  """The score that a system is trained for: ARMD on uniform orders has a bound, others one kind."""
  return random_row(rows) if system == 'armd_uniform' else rows[0]


def random_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The bound over random orders, one of them per text."""
  return next(row for row in rows if row['kind'] == 'bound')


def _without_paths(config: config_lib.Config) -> dict[str, Any]:
  """What of a config decides a result: of a file, what it holds does, which is in the key."""
  return config_lib.to_dict(config_lib.reset(config, 'is_path'))


@functools.lru_cache(maxsize=1)
def _held_by(path: str) -> dict[str, str]:
  """Digests of a file, or of the files of a folder, by name; nothing of ''."""
  where = pathlib.Path(path).expanduser()
  files = sorted(where.iterdir()) if where.is_dir() else [where]
  found = {}
  for file in filter(pathlib.Path.is_file, files):
    with file.open('rb') as opened:
      found[file.name] = hashlib.file_digest(opened, 'sha256').hexdigest()
  return found if path else {}


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
    what['config'] = _without_paths(config_of(piece, place))
  elif piece.kind == 'cost':
    what['config'] = _without_paths(config_lib.parse(copy.deepcopy(place.raw)))
  elif piece.kind in ('front', 'texts'):
    what['judge'] = _held_by(place.judge)
  what['text'] = place.text_sha256
  # A sweep decides a run by the rate alone, which is in the config.
  builds_on = piece.needs if piece.kind != 'train' else filter(None, [piece.base])
  what['needs'] = [keys[name] for name in builds_on]
  what['code'] = records.digest(ENTRIES[piece.kind], WITHOUT)
  return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

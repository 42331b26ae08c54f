"""Runs the pieces whose results are missing, one process per core, and keeps each at once.

A result is kept with a key: a digest of the piece, its config, the text, the code that decides it
and the keys of what it builds on. Where the key is another one, the piece is done anew.
"""

from __future__ import annotations

import ast
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.errors import UserError
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


def results(place: Place, pieces: Sequence[Piece]) -> dict[str, dict[str, Any]]:
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


# ----- one piece


def execute(piece: Piece, place: Place, key: str) -> dict[str, Any]:
  """Runs a piece and keeps its record; what the programs print goes to a log of its own."""
  from armd_jax.reproduce import work  # which starts jax, once the process has its core

  log = place.workdir / 'logs' / f'{piece.name}.log'
  log.parent.mkdir(parents=True, exist_ok=True)
  begin = time.perf_counter()
  with (
    log.open('w') as file,
    contextlib.redirect_stdout(file),
    contextlib.redirect_stderr(file),
  ):
    try:
      result = _work(work, piece, place, key)
    except BaseException:
      traceback.print_exc()
      raise
  seconds = round(time.perf_counter() - begin, 1)
  record = {'piece': piece.name, 'kind': piece.kind, 'key': key, 'seconds': seconds}
  place.keep(piece.name, record | {'result': result})
  return record


def _work(work, piece, place, key):
  if piece.kind == 'cost':
    return work.cost(place.raw)
  if piece.kind == 'train':
    config = config_of(piece, place)
    if piece.base:
      base = place.run_folder(piece.base, place.result(piece.base)['key'])
      config = dataclasses.replace(config, init_from=str(base))
    return work.train(piece, config, place.run_folder(piece.name, key))
  run = piece.needs[0]
  folder = place.run_folder(run, place.result(run)['key'])
  if piece.kind == 'speed':
    return work.speed(piece, folder)
  return work.evaluate(piece, folder, config_lib.parse(copy.deepcopy(place.raw)).data)


# ----- all pieces


def chosen(pieces: Sequence[Piece], only: str) -> list[Piece]:
  """The pieces whose name matches, and all that they need.

  Raises:
    UserError: it is no regular expression, or nothing matches.
  """
  try:
    wanted = {piece.name for piece in pieces if re.search(only, piece.name)}
  except re.error as error:
    raise UserError(f'--only={only} is no regular expression ({error}); mend it') from error
  if not wanted:
    raise UserError(f'--only={only} matches no piece; write part of a name, such as core.armd')
  for piece in reversed(pieces):
    if piece.name in wanted:
      wanted.update(piece.needs)
  return [piece for piece in pieces if piece.name in wanted]


def run(
  pieces: Sequence[Piece],
  place: Place,
  jobs: int,
  do: Callable[[Piece, Place, str], dict[str, Any]] = execute,
) -> list[str]:
  """Runs what is missing.

  Args:
    pieces: each after those that it needs.
    place: where.
    jobs: processes, each on a core of its own; 1: this process, on all cores.
    do: runs a piece and keeps its record.
  Returns:
    Names of the pieces that failed, and of those that needed them.
  """
  keys: dict[str, str] = {}
  failed: dict[str, str] = {}
  running: dict[concurrent.futures.Future, Piece] = {}
  waiting = list(pieces)
  progress = Progress(pieces)
  with _pool(jobs) as pool:
    while waiting or running:
      for piece in list(waiting):
        if any(need in failed for need in piece.needs):
          waiting.remove(piece)
          failed[piece.name] = 'what it needs failed'
          continue
        if not all(need in keys for need in piece.needs):
          continue
        key = key_of(piece, place, keys)
        if (record := place.result(piece.name)) and record['key'] == key:
          waiting.remove(piece)
          keys[piece.name] = key
          progress.found(piece)
          continue
        alone = piece.is_alone or any(p.is_alone for p in running.values())
        if len(running) >= jobs or (running and alone):
          break
        waiting.remove(piece)
        progress.started(piece)
        running[pool.submit(do, piece, place, key)] = piece
        if jobs == 1:
          break
      done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        piece = running.pop(future)
        error = future.exception()
        if error is None:
          keys[piece.name] = future.result()['key']
          progress.ended(piece, future.result()['seconds'])
        else:
          failed[piece.name] = str(error)
          where = place.workdir / 'logs' / f'{piece.name}.log'
          print(f'{piece.name} failed ({error}); see {where}', file=sys.stderr, flush=True)
  return list(failed)


class _Here:
  """As an executor, in this process."""

  def submit(self, function, *args):
    future = concurrent.futures.Future()
    try:
      future.set_result(function(*args))
    except Exception as error:
      future.set_exception(error)
    return future


@contextlib.contextmanager
def _pool(jobs: int) -> Iterator[Any]:
  if jobs == 1:
    yield _Here()
    return
  context = multiprocessing.get_context('spawn')
  cores = context.Queue()
  for index in range(jobs):
    cores.put(index)
  pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _pin, (cores,))
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _pin(cores: Any) -> None:
  """Gives this process a core of its own, before jax makes its threads."""
  if hasattr(os, 'sched_setaffinity'):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})


class Progress:
  """Says what has ended, and about how long the rest will take."""

  def __init__(self, pieces: Sequence[Piece]):
    self._count, self._ended = len(pieces), 0
    self._left = sum(piece.weight for piece in pieces)
    self._done = 0.0  # weight of what was run here
    self._begin = time.monotonic()

  def found(self, piece: Piece) -> None:
    """It was there already."""
    self._ended += 1
    self._left -= piece.weight
    print(f'[{self._ended}/{self._count}] {piece.name}: there already', flush=True)

  def started(self, piece: Piece) -> None:
    print(f'{piece.name} starts', flush=True)

  def ended(self, piece: Piece, seconds: float) -> None:
    self._ended += 1
    self._left -= piece.weight
    self._done += piece.weight
    minutes = (time.monotonic() - self._begin) / 60
    left = max(0, minutes * self._left / self._done)
    print(
      f'[{self._ended}/{self._count}] {piece.name}: {seconds:.1f} s; {minutes:.1f} min so far, '
      f'about {left:.0f} min left',
      flush=True,
    )

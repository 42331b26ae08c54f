"""Runs the pieces whose results are missing, one process per core, and keeps each at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from armd_jax import config as config_lib
from armd_jax.errors import UserError
from armd_jax.reproduce.pieces import Piece
from armd_jax.reproduce.place import Place, config_of, has_weights, key_of

# ----- one piece


def execute(piece: Piece, place: Place, key: str) -> dict[str, Any]:
  """Runs a piece and keeps its record; what the programs print goes to a log of its own."""
  # These start jax, once the process has its core.
  from armd_jax.reproduce import generated, work

  log = place.workdir / 'logs' / f'{piece.name}.log'
  log.parent.mkdir(parents=True, exist_ok=True)
  begin = time.perf_counter()
  with (
    log.open('w', encoding='utf-8') as file,
    contextlib.redirect_stdout(file),
    contextlib.redirect_stderr(file),
  ):
    try:
      result = _work(work, generated, piece, place, key)
    except BaseException:
      traceback.print_exc()
      raise
  seconds = round(time.perf_counter() - begin, 1)
  place.keep(piece.name, key, {'kind': piece.kind, 'seconds': seconds, 'result': result})
  return {'stamp': key, 'seconds': seconds}


def _work(work, generated, piece, place, key):
  if piece.kind == 'cost':
    return work.cost(piece, place.raw)
  if piece.kind == 'train':
    config = config_of(piece, place)
    if piece.base:
      base = place.run_folder(piece.base, place.result(piece.base)['stamp'])
      config = dataclasses.replace(config, init_from=str(base))
    return work.train(piece, config, place.run_folder(piece.name, key))
  folders = [place.run_folder(name, place.result(name)['stamp']) for name in piece.needs]
  folder, data = folders[0], config_lib.parse(copy.deepcopy(place.raw)).data
  if piece.kind == 'front':
    systems = [name.split('.')[1] for name in piece.needs]
    return generated.front(piece, dict(zip(systems, folders, strict=True)), data, place.judge)
  if piece.kind == 'texts':
    return generated.texts(piece, folder, data, place.judge)
  if piece.kind == 'speed':
    return work.speed(piece, folder)
  return work.evaluate(piece, folder, data)


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

  A run whose result is there and whose checkpoints are not, such as where pieces.json came from
  another machine, is trained again only if a missing piece reads its weights.

  Args:
    pieces: each after those that it needs.
    place: where.
    jobs: processes, each on a core of its own; 1: this process, on all cores.
    do: runs a piece and keeps its record.
  Returns:
    Names of the pieces that failed, and of those that needed them.
  """
  by_name = {piece.name: piece for piece in pieces}
  keys: dict[str, str] = {}
  failed: dict[str, str] = {}
  made: set[str] = set()  # in this call
  again: set[str] = set()  # to be made, though their results are there
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
        record = place.result(piece.name)
        if record and record['stamp'] == key and piece.name not in again:
          waiting.remove(piece)
          keys[piece.name] = key
          progress.found(piece)
          continue
        needs = [by_name[need] for need in piece.needs if need not in made]
        if gone := [need for need in needs if not has_weights(need, place, keys[need.name])]:
          again.update(need.name for need in gone)
          waiting[:0] = gone  # before what needs them
          for need in gone:
            del keys[need.name]
            progress.lacks(need)
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
          keys[piece.name] = future.result()['stamp']
          made.add(piece.name)
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
  pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _start, (cores,))
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _start(cores: Any) -> None:
  """Gives this process a core of its own, before jax makes its threads, and ends it with its
  parent, however that ends."""
  threading.Thread(target=_end_with_parent, daemon=True).start()
  if hasattr(os, 'sched_setaffinity'):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[cores.get() % len(allowed)]})


def _end_with_parent():
  multiprocessing.parent_process().join()
  os._exit(1)


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

  def lacks(self, piece: Piece) -> None:
    """Its result was there, its weights are not."""
    self._ended -= 1
    self._left += piece.weight
    print(f'{piece.name}: only its result is there; its weights are needed', flush=True)

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

"""What each kind of piece does, by the library's own programs."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from armd_jax import config as config_lib
from armd_jax import families, training
from armd_jax.bench import decode, train_step
from armd_jax.config import Config
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.tokenizers import get_tokenizer
from armd_jax.evaluation import likelihood, scores
from armd_jax.evaluation.journal import Journal
from armd_jax.evaluation.order_costs import order_costs
from armd_jax.hardware import machines
from armd_jax.parallel import sharding
from armd_jax.reproduce.pieces import Piece
from armd_jax.show import columns, history
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import train as train_run

BATCH = 16  # windows per call of an evaluation
STEP_REPEATS, SAMPLE_REPEATS = 15, 5


@functools.lru_cache(maxsize=3)
def corpus_of(data: config_lib.DataConfig, length: int) -> corpus_lib.Corpus:
  return corpus_lib.load(data, length)


def train(piece: Piece, config: Config, folder: pathlib.Path) -> dict[str, Any]:
  """Trains, or resumes training, and keeps the checkpoints that are to be measured.

  Returns:
    loss and held_out (own objective, nats per token, few windows), each [step, value] pairs;
    learning_rate; parameters.
  """
  state = train_run(config, folder, corpus=corpus_of(config.data, config.model.length))
  for path in (folder / 'checkpoints').iterdir():
    if path.name.isdecimal() and int(path.name) not in piece.steps:
      shutil.rmtree(path)
  records = history.read(folder / 'metrics.jsonl')
  curve = lambda name: [
    [step, round(r[name], 4)] for step, r in records.items() if r.get(name) is not None
  ]
  return {
    'loss': curve('loss'),
    'held_out': curve('held_out'),
    'learning_rate': config.optimizer.learning_rate,
    'parameters': columns.num_parameters(state.params),
  }


def evaluate(piece: Piece, folder: pathlib.Path, data: config_lib.DataConfig) -> dict[str, Any]:
  """Likelihoods of the averaged weights at every step of the piece.

  Returns:
    By step: rows of `scores.Score` with monte_carlo_error, nats per token, of what is random in
    a bound; or, where the piece has streams, rows of `evaluation.order_costs`.
  """
  found = {}
  for step in piece.steps:
    config, mesh, params = restored(folder, step)
    model = families.build(config.model, _vocab_size(config))
    # The text may be elsewhere by now, the vocabulary is the run's.
    data = dataclasses.replace(data, tokenizer=config.data.tokenizer)
    windows_WxN = spread(corpus_of(data, config.model.length).held_out_WxN, piece.windows)
    if piece.streams:
      found[str(step)] = order_costs(model, params, windows_WxN, piece.streams, mesh)
    else:
      found[str(step)] = _suite(config, params, windows_WxN, piece.draws, mesh)
  return found


def restored(folder: pathlib.Path, step: int | None) -> tuple[Config, Any, Any]:
  """Config, mesh and averaged weights of a run at a step; None: its newest checkpoint."""
  config = workdir_lib.read_config(folder)
  mesh = sharding.make_mesh(config.mesh)
  abstract = training.abstract_state(config, _vocab_size(config), mesh)
  state, _ = checkpoint.Checkpoints(folder).restore(abstract, step)
  return config, mesh, training.network_params(config, state)


def _vocab_size(config):
  return get_tokenizer(config.data.tokenizer).vocab_size


def spread(windows_WxN: Any, count: int) -> np.ndarray:
  """Windows at equal distances, so that all parts of a text are there."""
  index_W = np.linspace(0, len(windows_WxN) - 1, min(count, len(windows_WxN))).astype(int)
  return np.stack([windows_WxN[i] for i in index_W])


def _suite(config, params, windows_WxN, draws, mesh):
  suite = likelihood.standard_suite(config.model, ())
  parts = [scores.ScoredWindows(p, windows_WxN, '', 1 if p.streams else draws) for p in suite]
  journal, tokenizer = Journal(), get_tokenizer(config.data.tokenizer)
  how = dict(batch_size=BATCH, journal=journal)
  model = families.build(config.model, tokenizer.vocab_size)
  found = scores.score(model, tokenizer, params, parts, mesh, **how)
  errors = {}
  for number, part in enumerate(parts):
    nats_KxW = journal.rows(number).reshape(part.orders, -1) / config.model.num_slots
    if part.orders > 1:
      variance_W = nats_KxW.var(axis=0, ddof=1) / part.orders
      errors[part.protocol.name] = math.sqrt(variance_W.sum()) / len(variance_W)
  names = ('name', 'kind', 'orders', 'nats_per_byte', 'nats_per_token', 'standard_error')
  return [
    {name: score.row()[name] for name in names}
    | {'monte_carlo_error': errors.get(score.name.split(', K=')[0])}
    for score in found
  ]


def speed(piece: Piece, folder: pathlib.Path) -> dict[str, Any]:
  """Seconds of sampling one text at every S, in turns, with AR of the same size beside them.

  Returns:
    machine, and rows of `bench.decode.measure`.
  """
  config, _, params = restored(folder, piece.steps[-1])
  model = dataclasses.asdict(config.model)
  compared = decode.systems(model, _vocab_size(config), piece.streams, params)
  timed = [decode.compiled(system, 1) for system in compared]
  rows = decode.measure(timed, config.model.num_slots, 1, SAMPLE_REPEATS)
  names = ('system', 'streams', 'steps', 'seconds', 'tokens_per_second', 'over_first')
  return {
    'machine': machines.machine(),
    'systems': [{name: row[name] for name in names} for row in rows],
  }


def cost(piece: Piece, raw: Mapping[str, Any]) -> dict[str, Any]:
  """A training step of every variant of the piece, in turns.

  Args:
    piece: with the overrides of each.
    raw: fields of the config that they change.
  Returns:
    machine, and by variant the numbers of `bench.train_step.measure`.
  """
  configs = {}
  for name, overrides in piece.variants.items():
    changed = ml_collections.ConfigDict(copy.deepcopy(dict(raw)))
    changed.update_from_flattened_dict(overrides)
    configs[name] = config_lib.parse(changed)
  vocab = get_tokenizer(configs['ar'].data.tokenizer).vocab_size
  numbers = train_step.measure(configs, vocab, STEP_REPEATS)
  for row in numbers.values():
    row['all_seconds'] = [round(s, 5) for s in row['all_seconds']]
  return {'machine': machines.machine(), 'steps': numbers}

"""Trains, goes on, evaluates, exports and generates in one process, and prints what came out."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import tiny_run

import armd_jax
from armd_jax import cli, config, export, models
from armd_jax.artifacts import standalone, weights
from armd_jax.evaluation import scores, suites
from armd_jax.evaluation.journal import Journal
from armd_jax.flags import flag
from armd_jax.parallel import sharding
from armd_jax.training import loop


def losses(folder: pathlib.Path, name: str) -> list[float]:
  """Of a run that is stopped at step 1 and goes on to step 2."""
  raw = tiny_run.config(folder)
  raw.train.update(eval_every=2, checkpoint_every=1)
  for steps in (1, 2):
    raw.train.steps = steps
    loop.train(config.parse(raw), folder / name)
  return list(tiny_run.losses(folder / name).values())


def text(folder: pathlib.Path, name: str) -> str:
  """What the run generates."""
  return armd_jax.load(folder / name).generate('al', streams=2)


def text_of_export(folder: pathlib.Path, name: str) -> str:
  """What an export of the run generates."""
  path = folder / f'{name}.safetensors'
  standalone.write_file(path, *export.load(folder / name, 'ema'))
  return armd_jax.load(path).generate('al', streams=2)


def nats(folder: pathlib.Path, name: str) -> list[float]:
  """What the run's held-out windows cost under every kind of order."""
  found, tokenizer, params, _ = weights.load_ema(folder / name)
  task = suites.likelihood_task(found, [], orders=1, num_windows=4)
  journal = Journal(folder / 'partial', {})
  model, mesh = models.build(found.model, tokenizer.vocab_size), sharding.make_mesh(found.mesh)
  how = {'batch_size': 4, 'journal': journal}
  measured = scores.score(model, tokenizer, params, task.parts, mesh, **how)
  return [row.row()['nats_per_token'] for row in measured]


def all_of(folder: pathlib.Path, name: str = 'run') -> dict:
  """By what it is."""
  return {one.__name__: one(folder, name) for one in (losses, text, text_of_export, nats)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  out: str = flag('Where runs, and all.json, are kept.')


def main(options: Options) -> None:
  out = pathlib.Path(options.out)
  (out / 'all.json').write_text(json.dumps(all_of(out)))


if __name__ == '__main__':
  cli.run(main, Options)

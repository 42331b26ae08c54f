"""Trains a model: `python -m armd_jax.train --config=experiments/quickstart.py --workdir=DIR`.

The same command goes on from the last checkpoint, with the same data and randomness, as if the run
had never stopped. SIGTERM saves, and ends it with exit code 75.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from armd_jax import checkpoint, cli, distributed, sharding, training
from armd_jax import config as config_lib
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.pipeline import training_batches
from armd_jax.errors import STOPPED, UserError
from armd_jax.evaluation import likelihood


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  *,
  corpus: corpus_lib.Corpus | None = None,
  overwrite: bool = False,
) -> training.TrainState:
  """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

  Args:
    config: the experiment.
    workdir: where config.json, metrics.jsonl and checkpoints go.
    corpus: what `config.data` says, if it is loaded already.
    overwrite: delete the run that is in `workdir` first.
  Returns:
    The state after the last step.
  Raises:
    UserError: bad config, text, or work directory.
    SystemExit: with code 75, when SIGTERM came and the state was saved.
  """
  workdir = pathlib.Path(workdir)
  corpus = corpus or distributed.together(lambda: corpus_lib.load(config.data, config.model.length))
  vocab_size = corpus.tokenizer.vocab_size
  mesh, (part, parts) = distributed.together(lambda: _mesh(config))

  # ----- where to go on from
  distributed.together(lambda: distributed.is_first() and _prepare(workdir, config, overwrite))
  checkpoints = checkpoint.Checkpoints(workdir, config.train.keep_last, config.train.keep_best)
  abstract = training.abstract_state(config, vocab_size, mesh)
  if checkpoints.latest() is not None:
    state, next_index = distributed.together(lambda: checkpoints.restore(abstract))
  elif config.init_from:
    state, next_index = distributed.together(lambda: _restore_other(config.init_from, abstract))
  else:
    state, next_index = training.new_state(config, vocab_size, mesh), 0
  first_step = int(state.step)
  _describe(config, corpus, state, first_step, workdir)
  if first_step >= config.train.steps:
    return state

  # ----- the loop; metrics are read one step late, so that the device never waits for the host
  step_fn = training.train_step(config, vocab_size, mesh)
  batches = training_batches(
    corpus.train_WxN,
    config.train.batch_size,
    config.seed,
    next_index,
    part,
    parts,
    num_workers=config.data.workers,
    prefetch_bytes=config.data.prefetch_mib * 2**20,
  )
  log = _Log(workdir / 'metrics.jsonl', config, first_step)
  notice = distributed.StopNotice(mesh)
  saved, held_out = first_step, None
  try:
    for step in range(first_step + 1, config.train.steps + 1):
      text_BxN = sharding.global_batch(mesh, next(batches).tokens_BxN)
      state, metrics = step_fn(state, text_BxN)
      log.step(step, metrics | {'input_seconds': batches.input_seconds})
      is_last = step == config.train.steps
      stop = notice.reached() and not is_last
      if is_last or (step % config.train.eval_every == 0 and not stop):
        held_out = evaluate(config, corpus, state, mesh)
        log.held_out(step, held_out)
      if step % config.train.checkpoint_every == 0 or is_last or stop:
        checkpoints.save(step, state, batches.next_index, held_out)
        saved, held_out = step, None
      if stop:
        break
  finally:
    notice.close()
    log.close()
    batches.close()
    checkpoints.close()
  if saved < config.train.steps:
    if distributed.is_first():
      print(f'stopped by SIGTERM; step {saved} is saved, and the same command goes on from there')
    sys.exit(STOPPED)
  return state


def check_batch(config: config_lib.Config, mesh: jax.sharding.Mesh) -> None:
  """Refuses a micro-batch that the data-parallel devices cannot share.

  Raises:
    UserError: if they cannot.
  """
  parallel = mesh.shape['data'] * mesh.shape['fsdp']
  micro_batch = config.train.batch_size // config.train.accumulation
  if micro_batch % parallel:
    raise UserError(
      f'config.train.batch_size / accumulation is {micro_batch}, which {parallel} data-parallel '
      f'devices cannot share; write a multiple of {parallel}'
    )


def evaluate(config, corpus, state, mesh) -> float:
  """Held-out left-to-right nats per token of the averaged weights."""
  batch_size = config.train.batch_size // config.train.accumulation
  windows_WxN = corpus.held_out_WxN[: config.train.eval_windows]
  nll = likelihood.nll(
    config.model,
    corpus.tokenizer.vocab_size,
    state.ema,
    windows_WxN,
    likelihood.LEFT_TO_RIGHT,
    mesh,
    batch_size=batch_size,
  )
  return likelihood.mean_nats(nll)[0]


def _mesh(config: config_lib.Config) -> tuple[jax.sharding.Mesh, tuple[int, int]]:
  """The mesh, and which part of a batch this process reads."""
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh)
  return mesh, sharding.process_part(mesh)


def _restore_other(workdir: str, abstract: training.TrainState) -> tuple[training.TrainState, int]:
  checkpoint.read_config(workdir)  # says so if no run is there
  return checkpoint.Checkpoints(workdir).restore(abstract)


def _prepare(workdir: pathlib.Path, config: config_lib.Config, overwrite: bool) -> None:
  """Makes the work directory, or checks that the run in it is this one."""
  if workdir.is_dir() and any(workdir.iterdir()):
    if overwrite:
      for name in ('checkpoints', 'config.json', 'metrics.jsonl'):
        path = workdir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif (workdir / 'config.json').exists():
      checkpoint.check_same_run(workdir, config)
      return
    elif (workdir / 'checkpoints').exists():
      raise UserError(
        f'{workdir} holds checkpoints but no config.json; use another --workdir, or --overwrite '
        'to delete them'
      )
  try:
    checkpoint.write_config(workdir, config)
  except OSError as error:
    raise UserError(
      f'cannot write to {workdir} ({error.strerror}); use another --workdir'
    ) from error


def _describe(config, corpus, state, first_step, workdir) -> None:
  if not distributed.is_first():
    return
  num_parameters = sum(x.size for x in jax.tree.leaves(state.params))
  print(f'text      {corpus.description}, sha256 {corpus.sha256[:16]}')
  print(
    f'windows   {len(corpus.train_WxN)} to train on, {len(corpus.held_out_WxN)} held out, of '
    f'{config.model.length} tokens ({corpus.tokenizer.name})'
  )
  print(f'model     {config.model.family}, {num_parameters / 1e6:.2f}M parameters')
  print(f'devices   {jax.device_count()} x {jax.devices()[0].device_kind}')
  print(f'workdir   {workdir}')
  if first_step:
    print(f'going on from step {first_step} of {config.train.steps}')


class _Log:
  """Progress bar and metrics.jsonl, by process 0; metrics are fetched after the next step is
  started."""

  def __init__(self, path: pathlib.Path, config: config_lib.Config, first_step: int):
    self._file = (path if distributed.is_first() else pathlib.Path(os.devnull)).open('a')
    self._bar = tqdm(
      total=config.train.steps,
      initial=first_step,
      unit='step',
      desc='train',
      mininterval=0.5,
      disable=not distributed.is_first(),
    )
    self._tokens_per_step = config.train.batch_size * config.model.num_slots
    self._every = config.train.log_every
    self._last = config.train.steps
    self._pending = None
    self._losses = []
    self._start = None  # the first step compiles, so the rate counts from its end

  def step(self, step, metrics):
    if self._pending is not None:
      self._flush()
    self._pending = (step, metrics)

  def held_out(self, step, nats):
    self._flush()
    self._write({'step': step, 'held_out': nats})
    if distributed.is_first():
      self._bar.write(f'step {step}: held-out left-to-right {nats:.4f} nats per token')

  def close(self):
    self._flush()
    self._bar.close()
    self._file.close()

  def _flush(self):
    if self._pending is None:
      return
    (step, metrics), self._pending = self._pending, None
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    now = time.perf_counter()
    if self._start is None:
      self._start = (step, now)
    done, seconds = step - self._start[0], now - self._start[1]
    rate = done * self._tokens_per_step / seconds if done else 0.0
    self._losses.append(values['loss'])
    self._bar.set_postfix_str(f'loss {values["loss"]:.3f}, {rate:,.0f} tokens/s', refresh=False)
    self._bar.update(step - self._bar.n)
    if step % self._every == 0 or step == self._last:
      loss, self._losses = float(np.mean(self._losses)), []
      self._write({'step': step, **values, 'loss': loss, 'tokens_per_second': rate})

  def _write(self, record):
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()


def main() -> None:
  config = config_lib.parse(cli.experiment(_CONFIG))
  distributed.start(_CLUSTER())
  train(config, _WORKDIR.value, overwrite=_OVERWRITE.value)


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file('config', help_string='Experiment file.')
  _WORKDIR = cli.workdir_flag('Where the run is kept.')
  _OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Delete the run in --workdir first.')
  _CLUSTER = distributed.define_flags()
  flags.mark_flag_as_required('config')
  cli.run(main)

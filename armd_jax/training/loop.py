"""The training loop: where a run starts from, what surrounds its steps, and the steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.mixture import Mixture
from armd_jax.data.pipeline import training_batches
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import STOPPED, UserError
from armd_jax.files import buckets, lock, paths
from armd_jax.hardware import starts
from armd_jax.parallel import ambient, distributed, ends, sharding
from armd_jax.show import columns, goodput, header, history
from armd_jax.training import adapters, checkpoint, hooks, metrics, optimizers, text
from armd_jax.training import workdir as workdir_lib

_READING = 'the text to be read and cut into tokens'
_NOTHING_TO_SAVE = (
  'stopped by SIGTERM at once, as there is nothing to save; the same command goes on from the last '
  'checkpoint'
)


@ambient.settled()
def train(
  config: config_lib.Config,
  workdir: str | os.PathLike[str],
  *,
  corpus: corpus_lib.Corpus | None = None,
  overwrite: bool = False,
) -> training.TrainState:
  """Trains to `config.train.steps`, from the last checkpoint in `workdir` if there is one.

  Args:
    config: the experiment.
    workdir: where config.json, metrics and checkpoints go.
    corpus: the text of `config.data`, if it is loaded already.
    overwrite: delete the run that is in `workdir` first.
  Returns:
    The state after the last step.
  Raises:
    UserError: bad config, text, or work directory; no space left; losses that are not finite.
    SystemExit: with code 75, when SIGTERM or Ctrl-C came and the state was saved, or SIGTERM before
      there was anything to save.
  """
  began = starts.take()
  parts = {'import': time.time() - began} if began else {}
  workdir = workdir_lib.place(workdir)
  if config.init_from:
    paths.kept(config.init_from, 'config.init_from')
  if config.train.profile_steps and buckets.is_bucket(workdir):
    raise UserError(
      f'config.train.profile_steps is {config.train.profile_steps}, but a trace cannot be written '
      'to a bucket; write (), or use a --workdir on a disk'
    )
  # First, so that it is closed last: closing the others may hang, too.
  store = workdir if buckets.is_bucket(workdir) else None
  with (
    contextlib.closing(hooks.Watchdog(config.train.hang_seconds, _READING, store)) as watchdog,
    ends.stopping_at_once(_NOTHING_TO_SAVE),
  ):
    return _train(config, workdir, corpus, overwrite, watchdog, parts)


def _train(
  config: config_lib.Config,
  workdir: pathlib.Path,
  corpus: corpus_lib.Corpus | None,
  overwrite: bool,
  watchdog: hooks.Watchdog,
  parts_of_start: dict[str, float],
) -> training.TrainState:
  begin = time.time()
  with contextlib.ExitStack() as stack:
    enter, is_first = stack.enter_context, distributed.is_first()
    opened = lambda thing: enter(contextlib.closing(thing))
    held: Any = contextlib.nullcontext()  # a bucket has no locks
    if not buckets.is_bucket(workdir):
      held = lock.held(workdir / lock.FOLDER_LOCK, f'--workdir {workdir}')
    distributed.together(lambda: is_first and enter(held))
    distributed.agree('the config', {'config': config_lib.to_dict(config)})
    corpus = corpus or distributed.together(
      lambda: corpus_lib.load(config.data, config.model.length)
    )
    distributed.agree('the text', {f'sha256 of {corpus.description}': corpus.sha256})
    vocab_size = corpus.tokenizer.vocab_size
    parts_of_start['data'] = time.time() - begin
    begin = time.time()
    mesh, (part, parts) = distributed.together(lambda: _mesh(config))

    # ----- where to start from; everything is checked before anything is changed
    # One process changes the folder; the others wait, and fail with it where it fails.
    is_new = distributed.together(lambda: is_first and _is_new(workdir, config, corpus, overwrite))
    kept = config.train.keep_last, config.train.keep_every, config.train.keep_best
    checkpoints = opened(checkpoint.Checkpoints(workdir, *kept))
    abstract = training.abstract_state(config, vocab_size, mesh)
    watchdog.progress('the state to start from')
    # In this order, so that a job that is started again continues where it was:
    # 1. this work directory's own checkpoint, with its place in the data;
    # 2. another run's, its step, optimizer and average included: fine-tuning continues them; or,
    #    where it has trained other parameters, its average alone;
    # 3. new parameters.
    if checkpoints.found() and not overwrite:
      state, next_index = distributed.together(lambda: checkpoints.restore(abstract))
    elif config.init_from:
      state, next_index = distributed.together(
        lambda: _restore_other(config, corpus.tokenizer, mesh)
      )
    else:
      state, next_index = training.new_state(config, vocab_size, mesh), 0
    first_step, last_step = int(state.step), config.train.steps
    ideal_seconds = metrics.ideal_seconds(config, vocab_size, state.params, mesh)
    _describe(config, corpus, state, first_step, workdir, ideal_seconds, mesh)
    if is_first and is_new and config.init_from:
      other = workdir_lib.read_config(config.init_from).optimizer
      told = f'the averaged weights of {config.init_from} alone; the optimizer begins'
      if adapters.same(config.optimizer, other):
        steps = first_step - int(state.skipped)
        told = optimizers.taken_over(config.optimizer, other, steps)
        told = f'step {first_step} of {config.init_from}: {told}'
      print(f'start     {told}', flush=True)
    if first_step >= last_step:
      if is_first and not (workdir / 'training.png').exists():  # it was stopped in its last save
        _show(workdir, config)
      return state
    begun = workdir_lib.begun(workdir, config, overwrite)
    distributed.together(lambda: is_new and enter(begun))
    distributed.together(
      lambda: is_first and text.keep(workdir, config, corpus)  # type: ignore[func-returns-value]
    )

    # ----- what surrounds the steps, closed in reverse order
    watchdog.progress('the first batch, or the step to compile')
    batches = opened(
      training_batches(
        corpus.train_WxN,
        config.train.batch_size,
        config.seed,
        next_index,
        part,
        parts,
        num_workers=config.data.workers,
        prefetch_bytes=config.data.prefetch_mib * 2**20,
      )
    )
    parts_of_start['restore'] = time.time() - begin
    make_log = functools.partial(
      metrics.Log, workdir, config, first_step, ideal_seconds, parts_of_start
    )
    log = opened(distributed.together(make_log))
    notice = opened(distributed.StopNotice(mesh))
    profile = opened(hooks.Profile(config.train.profile_steps, workdir / 'profile'))
    all_hooks = [hooks.evaluation(config, corpus, mesh), hooks.samples(config, corpus, mesh)]
    saves = config.train.checkpoint_every, config.train.keep_every
    step_fn = training.train_step(config, vocab_size, mesh)

    # ----- the steps
    for step in range(first_step + 1, last_step + 1):
      profile.before(step)
      batch = next(batches)
      state, step_metrics = step_fn(state, sharding.global_batch(mesh, batch.tokens_BxN))
      examples = (batch.index_B[0], batches.next_index - 1)  # as the first process sees them
      log.step(step, step_metrics, batches.input_seconds, examples)
      watchdog.progress('a step, an evaluation or a save')
      # Asked at every step, also by processes that got no signal: the answer is a collective. Until
      # then there is nothing to save, and the first step compiles, which may take minutes.
      stop = notice.reached() and step < last_step
      due = [hook for hook in all_hooks if hook.is_due(step, last_step) and not stop]
      save = stop or step == last_step or any(every and step % every == 0 for every in saves)
      # Most steps end here: what follows waits for the devices.
      if not due and not save and not profile.ends_after(step):
        continue
      with log.paused(step):
        if profile.ends_after(step):
          profile.close()
        found: history.Record = {}
        for hook in due:
          with log.beside(hook.name):
            found |= (record := hook.run(state))
          log.record(step, record)
          watchdog.progress('an evaluation, a sample or a save')
        if save:
          # The loss counts among the best only if it was measured at this very step.
          arguments = step, state, batches.next_index, found.get('held_out')
          with log.beside('save'):
            distributed.together(functools.partial(checkpoints.save, *arguments))
            if stop or step == last_step:
              distributed.together(checkpoints.wait)
          watchdog.progress('a step')
      if stop:
        break
    came = notice.came()  # it may have in the last save

  if came is not None:
    if is_first:
      print(
        f'stopped by {notice.cause}; step {step} is saved, and the same command goes on from there '
        f'({time.monotonic() - came:.1f} s after the signal)',
        flush=True,
      )
    sys.exit(STOPPED)
  if is_first:
    _show(workdir, config)
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


def _mesh(config: config_lib.Config) -> tuple[jax.sharding.Mesh, tuple[int, int]]:
  """The mesh, and which part of a batch this process reads."""
  mesh = sharding.make_mesh(config.mesh)
  check_batch(config, mesh)
  return mesh, sharding.process_part(mesh)


def _restore_other(
  config: config_lib.Config, tokenizer: Tokenizer, mesh: jax.sharding.Mesh
) -> tuple[training.TrainState, int]:
  other = workdir_lib.read_config(config.init_from)  # which refuses a folder without a run
  text.check_tokenizer(config.init_from, tokenizer)
  vocab_size = tokenizer.vocab_size
  # Its optimizer may have remembered more, or less.
  as_other = dataclasses.replace(config, optimizer=other.optimizer)
  abstract = training.abstract_state(as_other, vocab_size, mesh)
  checkpoints = checkpoint.Checkpoints(config.init_from)
  with contextlib.closing(checkpoints):
    step, there = config.init_step, checkpoints.found()
    if step >= 0 and step not in there:
      raise UserError(
        f'config.init_step is {step}, but {config.init_from} has checkpoints of the steps '
        f'{", ".join(map(str, there)) or "(none)"}; write one of them, or -1 for the last'
      )
    state, next_index = checkpoints.restore(abstract, None if step < 0 else step)
  if not adapters.same(config.optimizer, other.optimizer):
    # Moments of other parameters are of no use for these.
    where = jax.tree.map(lambda x: x.sharding, training.abstract_state(config, vocab_size, mesh))
    make = jax.jit(functools.partial(training.state_of, config), out_shardings=where)
    return make(training.network_params(as_other, state)), 0
  if (step := int(state.step)) >= config.train.steps:
    raise UserError(
      f'config.init_from = {config.init_from!r} is at step {step}, and config.train.steps is '
      f'{config.train.steps}, so that no step is left to train; write more than {step}'
    )
  return training.taken_over(config, other.optimizer, state, vocab_size, mesh), next_index


def _is_new(
  workdir: pathlib.Path, config: config_lib.Config, corpus: corpus_lib.Corpus, overwrite: bool
) -> bool:
  """Whether a run begins in the folder, rather than the one that is there being resumed.

  Raises:
    UserError: it can do neither.
  """
  workdir_lib.put_back(workdir)
  workdir_lib.check_free(workdir, overwrite)
  if overwrite or not (workdir / 'config.json').exists():
    return True
  workdir_lib.check_same_run(workdir, config)
  text.check(workdir, corpus)
  return False


def _describe(
  config: config_lib.Config,
  corpus: corpus_lib.Corpus,
  state: training.TrainState,
  first_step: int,
  workdir: pathlib.Path,
  ideal_seconds: Mapping[str, float],
  mesh: jax.sharding.Mesh,
) -> None:
  if not distributed.is_first():
    return
  num_parameters = columns.num_parameters(state.params)
  model, windows = config.model, len(corpus.train_WxN)
  examples = config.train.steps * config.train.batch_size
  print('\n'.join(header.lines(model, mesh)))
  if ideal_seconds:
    per_step = ', '.join(f'{name} {1e3 * s:.3f} ms' for name, s in ideal_seconds.items())
    print(f'at peak   a step would take: {per_step}')
  print(f'text      {corpus.description}, sha256 {corpus.sha256[:16]}')
  print(
    f'windows   {windows:,} to train on, {len(corpus.held_out_WxN):,} held out, of '
    f'{model.length} tokens ({corpus.tokenizer.name})'
  )
  print(
    f'epoch     {windows * model.length:,} tokens; {config.train.steps:,} steps are '
    f'{examples / windows:.2f} epochs'
  )
  if isinstance(corpus.train_WxN, Mixture):
    for name, share in corpus.train_WxN.shares.items():
      epochs = share * examples / len(corpus.train_WxN.parts[name])
      print(f'mixture   {share:.1%} {name}, {epochs:.2f} epochs of it')
  part = ''
  if not adapters.is_all(config.optimizer):
    part = f', of which {columns.num_parameters(state.ema) / 1e6:.2f}M are trained'
  print(f'model     {model.family}, {num_parameters / 1e6:.2f}M parameters{part}')
  print(f'workdir   {workdir}', flush=True)
  if first_step:
    print(f'going on from step {first_step} of {config.train.steps}')


def _show(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Prints what was logged as a table, and draws it, where anything was."""
  from armd_jax.show import plots  # which takes a second that a start need not

  records = history.read(workdir / 'metrics.jsonl')
  if found := goodput.of(history.lines(workdir / 'metrics.jsonl')):
    print(found.text())
  rows = history.overview(records)
  if not rows:  # it was stopped before, and now told to end where it is
    print(
      'no table and no picture, since no loss was logged so far: config.train.log_every is '
      f'{config.train.log_every}'
    )
    return
  print(columns.table(rows))
  path = workdir / 'training.png'
  try:
    plots.training(records, config.order, path)
  except UserError as error:
    print(f'warning: the picture is not drawn, all else is saved: {error}', file=sys.stderr)

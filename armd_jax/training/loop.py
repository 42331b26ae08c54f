"""The training loop: where a run starts from, what surrounds its steps, and the steps."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import shutil
import sys

import jax

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.pipeline import training_batches
from armd_jax.errors import STOPPED, UserError
from armd_jax.parallel import ambient, distributed, sharding
from armd_jax.show import columns, history
from armd_jax.training import checkpoint, hooks, metrics

# What a run leaves in its work directory.
_MADE = (
  'checkpoints', 'config.json', 'metrics.jsonl', 'tensorboard', 'profile', 'training.png',
)  # fmt: skip


@ambient.settled()
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
    workdir: where config.json, metrics and checkpoints go.
    corpus: what `config.data` says, if it is loaded already.
    overwrite: delete the run that is in `workdir` first.
  Returns:
    The state after the last step.
  Raises:
    UserError: bad config, text, or work directory; no space left; losses that are not finite.
    SystemExit: with code 75, when SIGTERM came and the state was saved.
  """
  workdir = pathlib.Path(workdir)
  corpus = corpus or distributed.together(lambda: corpus_lib.load(config.data, config.model.length))
  vocab_size = corpus.tokenizer.vocab_size
  mesh, (part, parts) = distributed.together(lambda: _mesh(config))

  # ----- where to go on from
  # One process changes the folder; the others wait, and fail with it where it fails.
  distributed.together(lambda: distributed.is_first() and _prepare(workdir, config, overwrite))
  kept = config.train.keep_last, config.train.keep_every, config.train.keep_best
  checkpoints = checkpoint.Checkpoints(workdir, *kept)
  abstract = training.abstract_state(config, vocab_size, mesh)
  # In this order, so that a job that is started again goes on where it was:
  # 1. this work directory's own checkpoint, with its place in the data;
  # 2. another run's, its step, optimizer and average included: fine-tuning goes on with them;
  # 3. new parameters.
  if checkpoints.found():
    state, next_index = distributed.together(lambda: checkpoints.restore(abstract))
  elif config.init_from:
    state, next_index = distributed.together(lambda: _restore_other(config.init_from, abstract))
  else:
    state, next_index = training.new_state(config, vocab_size, mesh), 0
  first_step, last_step = int(state.step), config.train.steps
  ideal_seconds = metrics.ideal_seconds(config, vocab_size, state.params, mesh)
  _describe(config, corpus, state, first_step, workdir, ideal_seconds)
  if first_step >= last_step:
    return state

  # ----- what surrounds the steps, closed in reverse order
  with contextlib.ExitStack() as stack:
    opened = lambda thing: stack.enter_context(contextlib.closing(thing))
    # First, so that it is closed last: closing the others may hang, too.
    watchdog = opened(hooks.Watchdog(config.train.hang_seconds))
    opened(checkpoints)
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
    make_log = functools.partial(metrics.Log, workdir, config, first_step, ideal_seconds)
    log = opened(distributed.together(make_log))
    notice = opened(distributed.StopNotice(mesh))
    profile = opened(hooks.Profile(config.train.profile_steps, workdir / 'profile'))
    all_hooks = [hooks.evaluation(config, corpus, mesh), hooks.samples(config, corpus)]
    saves = config.train.checkpoint_every, config.train.keep_every
    step_fn = training.train_step(config, vocab_size, mesh)

    # ----- the steps
    for step in range(first_step + 1, last_step + 1):
      profile.before(step)
      batch = next(batches)
      state, step_metrics = step_fn(state, sharding.global_batch(mesh, batch.tokens_BxN))
      examples = (batch.index_B[0], batches.next_index - 1)  # as the first process sees them
      log.step(step, step_metrics, batches.input_seconds, examples)
      watchdog.progress()
      # Asked at every step, also by processes that got no signal: the answer is a collective.
      stop = notice.reached() and step < last_step
      due = [hook for hook in all_hooks if hook.is_due(step, last_step) and not stop]
      save = stop or step == last_step or any(every and step % every == 0 for every in saves)
      # Most steps end here: what follows waits for the devices.
      if not due and not save and not profile.ends_after(step):
        continue
      with log.paused():
        if profile.ends_after(step):
          profile.close()
        found = {}
        for hook in due:
          found |= (record := hook.run(state))
          log.record(step, record)
          watchdog.progress()
        if save:
          # The loss counts among the best only if it was measured at this very step.
          arguments = step, state, batches.next_index, found.get('held_out')
          distributed.together(functools.partial(checkpoints.save, *arguments))
          watchdog.progress()
      if stop:
        break
    distributed.together(checkpoints.wait)

  if step < last_step:
    if distributed.is_first():
      print(f'stopped by SIGTERM; step {step} is saved, and the same command goes on from there')
    sys.exit(STOPPED)
  if distributed.is_first():
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


def _restore_other(workdir: str, abstract: training.TrainState) -> tuple[training.TrainState, int]:
  checkpoint.read_config(workdir)  # says so if no run is there
  return checkpoint.Checkpoints(workdir).restore(abstract)


def _prepare(workdir: pathlib.Path, config: config_lib.Config, overwrite: bool) -> None:
  """Makes the work directory, or checks that the run in it is this one."""
  if workdir.is_dir() and any(workdir.iterdir()):
    if overwrite:
      for name in _MADE:
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


def _describe(config, corpus, state, first_step, workdir, ideal_seconds) -> None:
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
  if ideal_seconds:
    per_step = ', '.join(f'{name} {1e3 * s:.3f} ms' for name, s in ideal_seconds.items())
    print(f'at peak   a step would take: {per_step}')
  else:
    print('at peak   no peak FLOP/s is known of these devices, so no MFU is logged')
  print(f'workdir   {workdir}')
  if first_step:
    print(f'going on from step {first_step} of {config.train.steps}')


def _show(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Prints what was logged as a table, and draws it."""
  from armd_jax.show import plots  # which takes a second that a start need not

  records = history.read(workdir / 'metrics.jsonl')
  print(columns.table(history.overview(records)))
  path = workdir / 'training.png'
  try:
    plots.training(records, config.order, path)
  except OSError as error:
    print(f'warning: {path} is not drawn ({error.strerror}); all else is saved', file=sys.stderr)

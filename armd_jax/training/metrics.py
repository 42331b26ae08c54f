"""What a run reports while it trains: averages over steps, and the places they are written to.

A record is a dict of the numbers of a step, and texts. Process 0 writes each to the console, to
metrics.jsonl, as TensorBoard's event files and, if `train.wandb` is set, to Weights & Biases.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import pathlib
import re
import secrets
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from armd_jax import config as config_lib
from armd_jax.errors import MetByAll, UserError, sentence
from armd_jax.files import buckets, whole
from armd_jax.hardware import device
from armd_jax.hardware.chips import peak_flops
from armd_jax.models.flops import training_flops
from armd_jax.models.params import Params
from armd_jax.objectives.armd import ORDER_KINDS
from armd_jax.parallel import distributed
from armd_jax.show.history import Record
from armd_jax.training import by_layer
from armd_jax.training.workdir import WANDB

# Parts of the time to a first step, in order; 'compile' is what is left up to the end of that step.
STARTS = ('import', 'data', 'restore', 'compile')
_NOT_FINITE = 'not finite'

# ----- places


class Writer(Protocol):
  """Takes records, in the order of their steps."""

  def write(self, step: int, record: Record) -> None: ...

  def close(self) -> None: ...


class Console:
  """A progress bar with the loss, and one line a record above it; without a terminal the lines
  alone, and one before and after what compiles."""

  def __init__(self, steps: int, first_step: int):
    self._steps = steps
    self._begin: float | None = time.perf_counter()  # None once the first step is done
    self._bar = tqdm(
      total=steps, initial=first_step, unit='step', desc='compiling ...', mininterval=0.5,
      disable=None,
    )  # fmt: skip
    if self._bar.disable:
      print('compiling ...', flush=True)

  def progress(self, step: int, loss: float) -> None:
    if self._begin is not None:
      seconds, self._begin = time.perf_counter() - self._begin, None
      self._bar.set_description('train', refresh=False)
      self._bar.write(f'compiled in {seconds:.0f} s, with the first step')
      sys.stdout.flush()
    self._bar.set_postfix_str(f'loss {loss:.4f}', refresh=False)
    if not self._bar.disable:
      self._bar.update(step - self._bar.n)

  def write(self, step: int, record: Record) -> None:
    if text := line(step, self._steps, record):
      self._bar.write(text)
      sys.stdout.flush()

  def close(self) -> None:
    self._bar.close()


def line(step: int, steps: int, record: Record) -> str:
  """A record for a reader: its main numbers in one line, and its texts below.

  Examples:
    >>> line(5, 20, {'loss': 2.5, 'step_seconds': 0.25, 'tokens_per_second': 12345.6})
    'step 5/20  loss 2.5000  12,346 tokens/s  step 250.0 ms  left 0:00:04'
  """
  parts = [f'step {step}/{steps}']
  if 'loss' in record:
    parts.append(_NOT_FINITE if record['loss'] is None else f'loss {record["loss"]:.4f}')
  if 'held_out' in record:
    nats = record['held_out']
    parts.append(f'held-out {_NOT_FINITE if nats is None else f"{nats:.4f} nats per token"}')
  parts += [
    f'S={match[1]} {_NOT_FINITE if value is None else f"{value:.4f}"}'
    for name, value in record.items()
    if (match := re.fullmatch(r'held_out_s(\d+)', name))
  ]
  if 'tokens_per_second' in record:
    parts.append(f'{record["tokens_per_second"]:,.0f} tokens/s')
  for name in ('step', 'input'):
    if f'{name}_seconds' in record:
      parts.append(f'{name} {1e3 * record[f"{name}_seconds"]:.1f} ms')
  if 'mfu' in record:
    parts.append(f'MFU {record["mfu"]:.1%} (6ND {record["mfu_6nd"]:.1%})')
  if 'start_seconds' in record:
    of = lambda name: f'{name} {record[f"start_{name}_seconds"]:.1f} s'
    parts.append(
      f'first step {record["start_seconds"]:.1f} s after the start: '
      + ', '.join(of(name) for name in STARTS if f'start_{name}_seconds' in record)
    )
  if 'step_seconds' in record:
    left = datetime.timedelta(seconds=round(record['step_seconds'] * (steps - step)))
    parts.append(f'left {left}')
  texts = [f'{name}: {text}' for name, text in record.items() if isinstance(text, str)]
  if len(parts) == 1 and not texts:
    return ''
  return '\n'.join(['  '.join(parts), *texts])


class JsonLines:
  """metrics.jsonl: one record a line, whole lines only, never rewritten."""

  def __init__(self, path: pathlib.Path):
    if path.exists():
      whole.check_ends(path)
      data = path.read_bytes()
      if not data.endswith(b'\n'):  # cut off by a crash or a full disk
        os.truncate(path, data.rfind(b'\n') + 1)
    # Without a buffer, every line is in the file once it is written, even if the process is killed.
    self._file = path.open('ab', buffering=0)

  def write(self, step: int, record: Record) -> None:
    self._file.write(json.dumps({'step': step, **record}, allow_nan=False).encode() + b'\n')

  def close(self) -> None:
    self._file.close()


_PART_LINES = 1000
_SECONDS_BETWEEN = 5.0  # writes of an object that grows


class BucketLines:
  """metrics.jsonl/ in a bucket, where nothing can be added to: parts of whole lines, the last of
  which is written anew as it grows."""

  def __init__(self, folder: Any):
    self._folder = folder
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    self._number = int(names[-1].partition('.')[0]) + 1 if names else 0
    self._lines: list[bytes] = []
    self._written, self._count = time.perf_counter(), 0

  def write(self, step: int, record: Record) -> None:
    self._lines.append(json.dumps({'step': step, **record}, allow_nan=False).encode() + b'\n')
    if time.perf_counter() - self._written > _SECONDS_BETWEEN:
      self.flush()

  def flush(self) -> None:
    if len(self._lines) > self._count:
      (self._folder / f'{self._number:06}.jsonl').write_bytes(b''.join(self._lines))
    self._written, self._count = time.perf_counter(), len(self._lines)
    if self._count >= _PART_LINES:
      self._number, self._lines, self._count = self._number + 1, [], 0

  def close(self) -> None:
    self.flush()


class TensorBoard:
  """Event files, without TensorFlow; without a thread, which could not report a full disk. For a
  bucket they are made on a disk, and copied now and then."""

  def __init__(self, folder: Any, first_step: int):
    self._bucket = folder if buckets.is_bucket(folder) else None
    self._copied = time.perf_counter()
    if self._bucket is not None:
      self._scratch = tempfile.TemporaryDirectory()
      folder = pathlib.Path(self._scratch.name)
    self._local = folder
    folder.mkdir(parents=True, exist_ok=True)
    self._events = event_file_writer.EventsWriter(str(folder / 'events'))
    # What an earlier start logged of later steps is done again, and shown once.
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step + 1, session_log=restart)

  def write(self, step: int, record: Record) -> None:
    for name, value in record.items():
      if isinstance(value, str):
        self._write(step, summary=summary.text(name, value))
      elif isinstance(value, (int, float)):
        self._write(step, summary=summary.scalar(name, value))
    self._events.flush()
    if time.perf_counter() - self._copied > 10 * _SECONDS_BETWEEN:
      self._copy()

  def _copy(self) -> None:
    if self._bucket is not None:
      for path in self._local.iterdir():
        (self._bucket / path.name).write_bytes(path.read_bytes())
    self._copied = time.perf_counter()

  def _write(self, step: int, **what: Any) -> None:
    self._events.write_event(event_pb2.Event(step=step, wall_time=time.time(), **what))

  def close(self) -> None:
    self._events.close()
    self._copy()
    if self._bucket is not None:
      self._scratch.cleanup()


class Wandb:
  """A run of Weights & Biases that a restarted job continues.

  Raises:
    UserError: there is no wandb, or it starts no run.
  """

  def __init__(self, project: str, workdir: pathlib.Path, config: config_lib.Config):
    where = workdir if buckets.is_bucket(workdir) else workdir.absolute()
    run_id = _wandb_id(workdir)
    try:
      import wandb

      self._run = wandb.init(
        project=project,
        id=run_id,
        name=where.name,
        resume='allow',
        dir=None if buckets.is_bucket(workdir) else str(workdir),
        config=config_lib.to_dict(config),
      )
    except ImportError:
      raise UserError(
        f'config.train.wandb is {project!r} but wandb is not installed; pip install wandb, or '
        "write ''"
      ) from None
    except Exception as error:  # whatever a login, a project and a network raise
      raise UserError(
        f'config.train.wandb is {project!r} but Weights & Biases starts no run '
        f'({sentence(error)}); log in by wandb login or WANDB_API_KEY, name a project of yours, '
        "set WANDB_MODE=offline, or write ''"
      ) from error

  def write(self, step: int, record: Record) -> None:
    shown = {name: value for name, value in record.items() if not isinstance(value, list)}
    self._run.log(shown, step=step)

  def close(self) -> None:
    self._run.finish()


def _wandb_id(workdir: pathlib.Path) -> str:
  """By which the run in a folder is found again: drawn once, since many machines have a /work/run,
  and --overwrite begins another run."""
  path = workdir / WANDB
  try:
    return whole.read_json(path, {'id': str}, 'delete it, for a new run of W&B')['id']
  except FileNotFoundError:
    run_id = secrets.token_hex(8)
    whole.write_json(path, {'id': run_id})
    return run_id


# ----- averages


class Log:
  """The metrics of steps, read one step late, so that the devices never wait for the host.

  Every process has one, since all look whether losses are finite; the first one writes.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    config: config_lib.Config,
    first_step: int,
    ideal_seconds: dict[str, float],
    parts: Mapping[str, float] = types.MappingProxyType({}),
  ):
    """Opens the places.

    Args:
      workdir: of the run.
      config: of the run.
      first_step: steps done before.
      ideal_seconds: what a step would take at the devices' peak, by name of its share; see
        `ideal_seconds`.
      parts: seconds that parts of the start took so far, by names of STARTS.
    Raises:
      UserError: a file cannot be written.
    """
    self._parts, self._opened = dict(parts), time.time()
    self._beside: dict[str, float] = {}  # seconds of a pause, by what was done
    self._workdir, self._config = workdir, config
    self._ideal_seconds = ideal_seconds
    self._pending: tuple[int, Any, float, tuple[int, int]] | None = None
    self._done: list[dict[str, Any]] = []  # steps since the last record
    self._not_finite = 0  # steps in a row, up to the last
    self._since: float | None = None  # the first step compiles, so time counts from its end
    self._console, self._writers = None, []  # type: Console | None, list[Writer]
    if distributed.is_first():
      with self._writing():
        self._console = Console(config.train.steps, first_step)
        self._writers.append(self._console)
        lines = BucketLines if buckets.is_bucket(workdir) else JsonLines
        self._writers.append(lines(workdir / 'metrics.jsonl'))
        self._writers.append(TensorBoard(workdir / 'tensorboard', first_step))
        if config.train.wandb:
          self._writers.append(Wandb(config.train.wandb, workdir, config))

  def step(self, step: int, metrics: Any, input_seconds: float, examples: tuple[int, int]) -> None:
    """Takes a step's metrics, which may not be there yet, and reads those of the one before.

    Args:
      step: which one, from 1.
      metrics: of `training.train_step`.
      input_seconds: how long it waited for its batch.
      examples: global indices of its first and its last example.
    Raises:
      UserError: too many steps in a row were not finite, or a file cannot be written.
    """
    self._read()
    self._pending = (step, metrics, input_seconds, examples)

  def record(self, step: int, record: Record) -> None:
    """Writes a record. A number that is not finite, which JSON has not, becomes None.

    Raises:
      UserError: a file cannot be written.
    """
    bad = [name for name, x in record.items() if isinstance(x, float) and not math.isfinite(x)]
    if bad and self._writers:  # those of the first process, which alone has some
      record = record | dict.fromkeys(bad)
      print(
        f'warning: {", ".join(bad)} of step {step} {"is" if len(bad) == 1 else "are"} not finite, '
        'and null in metrics.jsonl; lower config.optimizer.learning_rate if this goes on',
        file=sys.stderr,
        flush=True,
      )
    with self._writing():
      for writer in self._writers:
        writer.write(step, record)

  @contextlib.contextmanager
  def paused(self, step: int) -> Iterator[None]:
    """Around what is done beside steps after one of them, and does not count as a step's time; a
    record of it has the seconds of what was `beside`."""
    self._read()
    yield
    self.record(step, {f'{name}_seconds': x for name, x in self._beside.items()} | _now())
    self._beside = {}
    with self._writing():
      for writer in self._writers:
        if isinstance(writer, BucketLines):  # no record of a step that is saved is ever lost
          writer.flush()
    if self._since is not None:
      self._since = time.perf_counter()

  @contextlib.contextmanager
  def beside(self, name: str) -> Iterator[None]:
    """Counts the seconds of something that is done in a pause."""
    begin = time.perf_counter()
    yield
    self._beside[name] = self._beside.get(name, 0.0) + time.perf_counter() - begin

  def close(self) -> None:
    """Closes the places."""
    with self._writing():
      for writer in self._writers:
        writer.close()

  def _read(self) -> None:
    if self._pending is None:
      return
    (step, metrics, input_seconds, examples), self._pending = self._pending, None
    # In a run of steps the devices have the next one already, and work on while the host waits.
    values = jax.device_get(metrics)  # waits for the step
    now = time.perf_counter()
    done = {'values': values, 'input_seconds': input_seconds, 'examples': examples}
    done['finite'] = bool(values['finite'])
    if self._since is not None:
      done['seconds'] = now - self._since
    is_first, self._since = self._since is None, now
    self._done.append(done)
    if self._console is not None:
      self._console.progress(step, float(values['loss']))
    if is_first:
      parts = self._parts | {'compile': time.time() - self._opened}
      each = {f'start_{name}_seconds': seconds for name, seconds in parts.items()}
      self.record(step, {'start_seconds': sum(parts.values())} | each | _now())
    if step % self._config.train.log_every == 0 or step == self._config.train.steps:
      self.record(step, self._average())
    self._not_finite = 0 if done['finite'] else self._not_finite + 1
    if self._not_finite >= self._config.train.max_not_finite:
      raise MetByAll(
        f'loss, gradient or update was not finite, or the gradient far above the recent ones, in '
        f'{self._not_finite} steps in a row, up to step '
        f'{step}; all were skipped, so checkpoints hold the last good parameters: lower '
        'config.optimizer.learning_rate, or look at the text of the examples that '
        f'{self._workdir / "metrics.jsonl"} names'
      )

  def _average(self) -> Record:
    """The record of the steps since the last one."""
    steps, self._done = self._done, []
    # One skipped step would make every average NaN.
    finite = [step['values'] for step in steps if step['finite']]
    mean = lambda name: float(np.mean([v[name] for v in finite])) if finite else None
    last = steps[-1]['values']
    record: Record = {'loss': mean('loss'), 'gradient_norm': mean('gradient_norm')}
    if finite:
      nats_K, count_K = np.sum(  # type: ignore[misc]  # an array, of arrays
        [values['kinds_2xK'] for values in finite], axis=0, dtype=np.float64
      )
      for kind, nats, count in zip(ORDER_KINDS, nats_K, count_K, strict=True):
        if count:
          record[f'loss_{kind}'] = nats / count
          record[f'share_{kind}'] = count / count_K.sum()
      if 'layers' in last:
        means = jax.tree.map(
          lambda *x: np.mean(x, axis=0), *(values['layers'] for values in finite)
        )
        record |= by_layer.rows(means)
    for name in ('learning_rate', 'shuffled', 'skipped'):
      record[name] = float(last[name])
    record['input_seconds'] = float(np.mean([step['input_seconds'] for step in steps]))
    record['examples'] = [int(steps[0]['examples'][0]), int(steps[-1]['examples'][1])]
    timed = [step['seconds'] for step in steps if 'seconds' in step]
    if timed:
      config = self._config
      record['step_seconds'] = seconds = float(np.mean(timed))
      record['timed_steps'] = len(timed)
      record['tokens_per_second'] = config.train.batch_size * config.model.num_slots / seconds
      record |= {name: ideal / seconds for name, ideal in self._ideal_seconds.items()}
    return record | memory(jax.local_devices()) | _now()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      if (reason := whole.refusal(error)) is None:
        raise
      raise UserError(
        f'cannot write to {self._workdir} ({reason}); free space or make it writable, and '
        'give the same command again to go on from the last checkpoint'
      ) from error


def _now() -> Record:
  """When a record was written, in Unix seconds, so that the time between records is known."""
  return {'time': time.time()}


def ideal_seconds(config: config_lib.Config, vocab_size: int, params: Params, mesh: Mesh) -> Record:
  """Seconds that a step's matrix products take at the devices' peak.

  Returns:
    `mfu`, of the model's products: attention counted by the keys that each row sees, nothing
    counted twice; and `mfu_6nd`, of 6 FLOPs a parameter and token, as is common. Nothing where no
    peak is known.
  """
  peak = peak_flops(device.current().chip)
  if peak is None:
    return {}
  num_parameters = sum(x.size for x in jax.tree.leaves(params))
  per_sequence = {
    'mfu': training_flops(config.model, vocab_size),
    'mfu_6nd': 6 * num_parameters * config.model.num_slots,
  }
  return {
    name: flops * config.train.batch_size / peak / mesh.size for name, flops in per_sequence.items()
  }


def memory(devices: Sequence[Any]) -> Record:
  """Most memory that any of the devices has used so far, and has; nothing if none reports it."""
  stats = [stats for device in devices if (stats := device.memory_stats())]
  names = {'peak_bytes_in_use': 'memory_gib', 'bytes_limit': 'memory_limit_gib'}
  return {
    ours: max(s[theirs] for s in stats) / 2**30
    for theirs, ours in names.items()
    if stats and all(theirs in s for s in stats)
  }

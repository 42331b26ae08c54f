"""What a run does beside its steps: evaluation, samples, profiles, and a watch over hangs."""

from __future__ import annotations

import dataclasses
import faulthandler
import pathlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from armd_jax import families
from armd_jax.config import Config
from armd_jax.data import documents, mixture
from armd_jax.data.corpus import Corpus
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import CRASHED, USER_ERROR
from armd_jax.evaluation import likelihood
from armd_jax.files import buckets
from armd_jax.parallel import distributed, ends, others
from armd_jax.show.history import Record
from armd_jax.training import TrainState, network_params

_SECONDS_BEFORE_ASKING = 60.0  # a bucket, whether it answers


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something to do every so many steps and after the last one.

  Attributes:
    name: what it does, for the time that it takes.
    every: steps; 0: never.
    run: takes the state, and returns a record for the log; every process runs it.
  """

  name: str
  every: int
  run: Callable[[TrainState], Record]

  def is_due(self, step: int, last: int) -> bool:
    """Whether to run after `step`, where training ends at `last`."""
    return self.every > 0 and (step % self.every == 0 or step == last)


def evaluation(config: Config, corpus: Corpus, mesh: Mesh) -> Hook:
  """Logs `held_out`: nats per token of the averaged weights, left-to-right, or the bound of a
  diffusion baseline; and for every S of `config.train.eval_streams` `held_out_sS`, S at once. Of a
  mixture these are means by shares, and a corpus's own have its name behind them."""
  model = families.build(config.model, corpus.tokenizer.vocab_size)
  batch_size = config.train.batch_size // config.train.accumulation
  parts: dict[str, Any] = {
    name: windows[: config.train.eval_windows]
    for name, windows in mixture.parts_of(corpus.held_out_WxN).items()
  }
  scored = {
    name: int(documents.num_scored(windows_WxN[:, -config.model.num_slots :]).sum())
    for name, windows_WxN in parts.items()
  }

  protocols = {'held_out': likelihood.standard_suite(config.model, ())[0]}
  for streams in config.train.eval_streams:
    protocols[f'held_out_s{streams}'] = likelihood.strided_protocols(streams)[0]

  def run(state: TrainState) -> Record:
    params = network_params(config, state)
    score = lambda windows_WxN, protocol: likelihood.nll(
      model, params, windows_WxN, protocol, mesh, batch_size=batch_size
    )
    record: Record = {}
    for key, protocol in protocols.items():
      found = {
        name: likelihood.mean_nats(score(windows_WxN, protocol), scored[name])[0]
        for name, windows_WxN in parts.items()
      }
      record[key] = mixture.mean(corpus.held_out_WxN, found)
      record |= {f'{key}_{name}': nats for name, nats in found.items() if name}
    return record

  return Hook('evaluation', config.train.eval_every, run)


def samples(config: Config, corpus: Corpus, mesh: Mesh) -> Hook:
  """Logs `sample`: a text from the averaged weights, always with the same draws; left-to-right
  before the strided phase of training, and with the most streams of it from there on."""
  family = families.of(config.model)
  model = families.build(config.model, corpus.tokenizer.vocab_size)
  request = requests.continue_prompts([''], config.model.num_slots, corpus.tokenizer)

  def run(state: TrainState) -> Record:
    params = network_params(config, state)
    decoder = requests.Decoder(model, params, corpus.tokenizer, mesh)
    is_strided = 0 <= config.order.strided_start < state.step
    streams = max(config.order.strided_streams) if is_strided else 1
    (text,), _ = family.generate(decoder, request, Sampling(), streams=streams)
    return {'sample': text}

  return Hook('sample', config.train.sample_every, run)


class Profile:
  """A profiler's trace of the steps from a first to a last, taken by the first process.

  Args:
    steps: first and last step, or () for no trace.
    folder: where TensorBoard and XProf will look for it.
  """

  def __init__(self, steps: tuple[int, ...], folder: pathlib.Path):
    # All processes run the same program, and one folder holds one trace.
    self._steps = steps if distributed.is_first() else ()
    self._folder = folder
    self._running = False

  def before(self, step: int) -> None:
    """To be called before each step is started."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def ends_after(self, step: int) -> bool:
    """Whether to close it once this step is done."""
    return self._running and step == self._steps[1]

  def close(self) -> None:
    """Ends a trace that runs."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


class Watchdog:
  """Ends the process, with the stacks of all its threads, where nothing has progressed for long.

  A lost network or a dead file system makes a step wait for ever; ended with `CRASHED`, the job is
  started again.

  Args:
    seconds: without progress; 0: for ever.
    waits_for: what comes first, for people.
    store: a folder in a bucket, which is asked, after a minute without progress, whether it answers
      at all; where it does not, that is the reason and the end. None: there is none.
  """

  def __init__(self, seconds: int, waits_for: str, store: Any = None):
    self._seconds, self._store = seconds, store
    self._closed = threading.Event()
    self.progress(waits_for)
    if seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    if store is not None:
      threading.Thread(target=self._ask, daemon=True).start()

  def progress(self, waits_for: str) -> None:
    """Resets the timer; `waits_for` names what comes next."""
    self._last = time.monotonic(), waits_for

  def close(self) -> None:
    self._closed.set()

  def _ask(self) -> None:
    while not self._closed.wait(min(5.0, _SECONDS_BEFORE_ASKING / 4)):
      since, waits_for = self._last
      if time.monotonic() - since < _SECONDS_BEFORE_ASKING:
        continue
      reason = buckets.why_not(self._store)
      if reason and self._last == (since, waits_for):
        ends.leave(
          USER_ERROR,
          f'error: process {distributed.own_number()} waited for {waits_for}, and the bucket of '
          f'{self._store} does not answer ({reason}); see that it can be reached, and give the '
          'same command again to go on from the last checkpoint',
        )

  def _watch(self) -> None:
    while not self._closed.wait(min(1.0, self._seconds / 4)):
      since, waits_for = self._last
      if time.monotonic() - since > self._seconds:
        faulthandler.dump_traceback(sys.stderr)
        missing = f', and {absent}' if (absent := others.missing()) else ''
        ends.leave(
          CRASHED,
          f'error: process {distributed.own_number()} waited for {waits_for} longer than '
          f'config.train.hang_seconds = {self._seconds}{missing}; its stacks are '
          'above; start the job again to go on from the last checkpoint',
        )

"""Decoding speed and what it costs: `python -m armd_jax.bench.decode --shape=weight_bound`.

AR with a key/value cache beside ARMD at every S (and, with --mdlm, the sampler of a diffusion
baseline), of the same size and code, taken in turns. Prefill (of a prompt of half the length) and
compilation are timed apart. With trained weights (--workdir) the exact NLL of held-out text, or of
--text, is given for every S, split into what the order costs, by distance from the junctions of two
streams, too, and what independence costs (`evaluation.order_costs`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from armd_jax import cli, models
from armd_jax import config as config_lib
from armd_jax.artifacts import weights
from armd_jax.bench import decode_peers, timing
from armd_jax.compiled import flops
from armd_jax.config import Config
from armd_jax.config_rules import check_streams
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.decode import diffusion, step
from armd_jax.decode.generate import compile_generate, plan_of, prepare, task_of
from armd_jax.decode.network import Network
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request, Task
from armd_jax.errors import UserError
from armd_jax.evaluation import order_costs, suites
from armd_jax.flags import flag
from armd_jax.hardware import clock, machines
from armd_jax.models.ar import AR as ARModel
from armd_jax.models.armd import ARMD
from armd_jax.models.params import Params
from armd_jax.objectives.mdlm import MDLM
from armd_jax.order import left_to_right, num_blocks, strided
from armd_jax.parallel import sharding
from armd_jax.show import columns

AR = 'AR, cached'


@dataclasses.dataclass(frozen=True)
class System:
  """A network and how many tokens it makes at once; its weights are prepared for decoding."""

  name: str
  model: ARMD | ARModel
  network: Network
  streams: int


@dataclasses.dataclass(frozen=True)
class Timed:
  """What is timed.

  Attributes:
    name, streams: of the system.
    steps: forward passes after the prefill.
    run, prefill: generate a batch; only its beginning, None where it cannot be run alone.
    step_floor: (bytes, FLOPs) that no step does without: weights, each read once, and matrix
      products, with the keys that are there in mid-text. None if they are not counted.
    compile_seconds, memory_bytes: None if they are not known.
  """

  name: str
  streams: int
  steps: int
  run: Callable[[], Any]
  prefill: Callable[[], Any] | None = None
  step_floor: tuple[int, float] | None = None
  compile_seconds: float | None = None
  memory_bytes: int | None = None


def systems(
  model: dict[str, Any],
  vocab_size: int,
  streams: Sequence[int],
  params: Params = None,
) -> list[System]:
  """AR, and ARMD at every S.

  Args:
    model: fields of ModelConfig.
    vocab_size: V.
    streams: stride counts.
    params: ARMD's; random if None. AR's are random.
  Raises:
    UserError: an S is more than the tokens.
  """
  made = {}
  for family in ('ar', 'armd'):
    raw = {'model': model | {'family': family}, 'order': {'max_shuffled': 0}}
    config = config_lib.parse(raw).model
    trained = params if family == 'armd' else None
    weights = _random_parameters(config, vocab_size) if trained is None else trained
    network = models.build(config, vocab_size)
    made[family] = network, prepare(network, weights)
  for count in streams:
    check_streams(count, made['armd'][0].config.num_slots, '--streams')
  return [
    System(AR, *made['ar'], 1),
    *(System(f'ARMD S={count}', *made['armd'], count) for count in streams),
  ]


def _random_parameters(config, vocab_size):
  network = models.build(config, vocab_size)
  tokens_1xN = np.zeros((1, config.num_slots), np.int32)
  order = left_to_right(config.num_slots)
  return jax.jit(network.init)(jax.random.key(0), tokens_1xN, order)['params']


def compiled(system: System, batch_size: int) -> Timed:
  """A system for a batch of texts of the model's full length."""
  num_slots = system.model.config.num_slots
  tokens_BxN = np.zeros((batch_size, num_slots), np.int32)

  def task(given, length, streams):
    given_BxN = np.arange(num_slots) < np.full((batch_size, 1), given)
    return task_of(given_BxN, np.full(batch_size, length), streams)

  of = lambda task: compile_generate(system.model, system.network, task)
  everything = task(0, num_slots, system.streams)
  whole = of(everything)
  # Half a text given and one token asked for: the prefill, and one step.
  half = of(task(num_slots // 2, num_slots // 2 + 1, 1))
  return Timed(
    name=system.name,
    streams=system.streams,
    steps=int(num_blocks(strided(num_slots, system.streams))[0]),
    run=lambda: whole.run(tokens_BxN),
    prefill=lambda: half.run(tokens_BxN).tokens_BxN,
    step_floor=step_floor(system, everything),
    compile_seconds=whole.seconds,
    memory_bytes=whole.bytes,
  )


def step_floor(system: System, task: Task) -> tuple[int, float]:
  """See `Timed`; of a step in mid-text that makes S tokens of each text."""
  num_slots, width = task.order.num_slots, system.streams
  tokens_BxN = np.zeros((len(task.first_B), num_slots), np.int32)
  network = jax.eval_shape(Network.whole, system.network)  # as products, which are counted
  plan = plan_of(system.model, task)
  begin = lambda network: step.start(network, plan, task, tokens_BxN)
  middle_1 = np.array([num_slots // 2], np.int32)
  state = jax.eval_shape(begin, network)
  state = state.replace(filled_B=middle_1, committed_B=middle_1 + 1 - width)
  one_step = lambda network, state: step.predict(network, task, state, width)[0]
  weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(network))
  return weights, flops.count(one_step, network, state).visible


def denoisers(
  model: dict[str, Any], vocab_size: int, batch_size: int, steps: Sequence[int]
) -> list[Timed]:
  """MDLM of the same size, with random weights, sampling in so many steps T; the network runs in
  those that reveal something."""
  config = config_lib.parse(
    {'model': model | {'family': 'mdlm'}, 'order': {'max_shuffled': 0}}
  ).model
  network, num_slots = models.build(config, vocab_size), config.num_slots
  tokens_BxN = np.zeros((batch_size, num_slots), np.int32)
  params = jax.jit(network.init)(jax.random.key(0), tokens_BxN[:1])['params']
  request = Request(tokens_BxN, tokens_BxN > 0, np.full(batch_size, num_slots))
  method = MDLM()

  def timed(count):
    plan = diffusion.plan_of(method, network, count, 'ancestral')
    run = functools.partial(diffusion.generate, network, params, request, Sampling(), plan)
    return Timed(name=f'MDLM T={count}', streams=1, steps=int(run().steps), run=run)

  return [timed(count) for count in steps]


def measure(timed: Sequence[Timed], num_slots: int, batch_size: int, repeats: int) -> list[dict]:
  """Times every system that memory holds, in turns.

  Args:
    timed: what to compare; the first is what the others are compared with.
    num_slots: tokens per text.
    batch_size: texts generated together.
    repeats: timed rounds.
  Returns:
    A row per system: steps, memory_bytes, compile_seconds; and, None if it needs more memory than
    there is, seconds per batch (median) and per sequence, tokens per second, ms per step,
    over_first (speed-up over the first system), prefill_seconds.
  """
  there = memory_limit()
  fits = [one for one in timed if (one.memory_bytes or 0) <= there]
  calls = {(one.name, 'run'): one.run for one in fits}
  calls |= {(one.name, 'prefill'): one.prefill for one in fits if one.prefill}
  medians = clock.medians(clock.interleaved(calls, repeats))
  tokens = batch_size * num_slots
  first = medians.get((timed[0].name, 'run'))
  rows = []
  for one in timed:
    seconds = medians.get((one.name, 'run'))
    rows.append(
      {
        'system': one.name,
        'streams': one.streams,
        'batch_size': batch_size,
        'steps': one.steps,
        'tokens': tokens,
        'prefill_tokens': num_slots // 2,
        'step_bytes': one.step_floor and one.step_floor[0],
        'step_flops': one.step_floor and one.step_floor[1],
        'compile_seconds': one.compile_seconds,
        'memory_bytes': one.memory_bytes,
        'seconds': seconds,
        'seconds_per_sequence': seconds and seconds / batch_size,
        'tokens_per_second': seconds and tokens / seconds,
        'ms_per_step': seconds and 1e3 * seconds / one.steps,
        'over_first': seconds and first and first / seconds,
        'prefill_seconds': medians.get((one.name, 'prefill')),
      }
    )
  return rows


def memory_limit() -> int:
  """Bytes that a program may take on the first device."""
  stats = jax.devices()[0].memory_stats() or {}
  here = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return stats.get('bytes_limit', here)


def report(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as text."""
  rate = lambda row, name: row['seconds'] and row[name] and row[name] / row['ms_per_step'] / 1e6
  return columns.table(
    [
      {
        'system': row['system'],
        'batch': row['batch_size'],
        'steps': row['steps'],
        's/sequence': row['seconds_per_sequence'],
        'tokens/s': row['tokens_per_second'],
        'ms/step': row['ms_per_step'],
        'GB/s': rate(row, 'step_bytes'),
        'GFLOP/s': rate(row, 'step_flops'),
        'x AR': row['over_first'],
        'prefill s': row['prefill_seconds'],
        'compile s': row['compile_seconds'],
        'GiB': row['memory_bytes'] and row['memory_bytes'] / 2**30,
      }
      for row in rows
    ]
  )


def quality_report(rows: Sequence[dict[str, Any]]) -> str:
  """Rows of `order_costs` as text: a table per S, and one by distance from a junction."""
  with_error = lambda row, name: (
    f'{row[name]:.5f}' + (f' +- {row[f"{name}_error"]:.5f}' if row[f'{name}_error'] else '')
  )
  tables = [
    columns.table(
      [
        {
          'S': row['streams'],
          'nats/token': row['nats'],
          'order': with_error(row, 'order_cost'),
          'nats/junction': row['order_nats_per_junction'],
          'won back': f'{row["won_back"]:.0%}' if row['won_back'] is not None else None,
          'independence': with_error(row, 'independence_cost'),
        }
        for row in rows
      ]
    )
  ]
  sides = [(row, side) for row in rows if row['streams'] > 1 for side in ('starts', 'ends')]
  if sides:
    tables += [
      'nats per junction, of the first tokens of a stream (starts) and the last before one (ends)',
      columns.table([_nearest(row, side) for row, side in sides]),
    ]
  return '\n'.join(tables)


def _nearest(row, side):
  """What the nearest 1, 2, 4, ... tokens on a side of a junction cost together."""
  cost_D = row[side] if side == 'starts' else row[side][::-1]
  sums = {
    str(near): f'{sum(cost_D[:near]):+.3f}' if near <= len(cost_D) else None
    for near in (1, 2, 4, 8, order_costs.OFFSETS)
  }
  return {'S': row['streams'], 'tokens': side} | sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(timing.ModelShape):
  workdir: str | None = flag('A run or export whose weights are used.', None, is_path=True)
  streams: tuple[int, ...] = flag('Stride counts S.', (1, 2, 4, 8, 16, 32), at_least=1)
  batch_sizes: tuple[int, ...] = flag('Texts generated together, like 1,8,64.', (1,), at_least=1)
  behind: str | None = flag(
    'Also costs of streams that begin behind this text, of one token: a space, of a byte model.',
    None,
  )
  text: str | None = flag(
    'NAME=FILE: this text is scored in place of held-out windows, as by evaluate --suite=sedd.',
    None,
  )
  mdlm: tuple[int, ...] = flag('Also MDLM, in so many steps: 1024,256,64.', (), at_least=1)
  fill_memory: bool = flag('Then double the batch while memory holds it.', False)
  transformers: bool = flag("Beside transformers' cached GPT-2.", False)
  windows: int = flag('Windows to score.', 64, at_least=0)
  repeats: int = flag('Timed rounds.', 5, at_least=1)
  json: str | None = cli.json_file()
  png: str | None = flag(
    'Also draw the numbers to this file.', None, is_path=True, writes='picture'
  )


def _single_token(text: str, tokenizer: Tokenizer) -> int:
  ids_k = tokenizer.encode(text)
  if len(ids_k) != 1:
    raise UserError(
      f'--behind={text!r} is {len(ids_k)} tokens of {tokenizer.name}; write a text that is one'
    )
  return int(ids_k[0])


def windows_of(
  text: str | None, count: int, config: Config, tokenizer: Tokenizer
) -> tuple[np.ndarray, str]:
  """The first windows of NAME=FILE, or held-out ones of a run, and what they are called.

  Raises:
    UserError: the text cannot be read, or fills no window.
  """
  if text is None:
    held_out_WxN: Any = corpus_lib.load(config.data, config.model.length).held_out_WxN
    return held_out_WxN[:count], 'held-out windows'
  name, _, source = text.partition('=')
  task = suites.zero_shot_task('sedd', {name: source}, config, tokenizer, (), 1, count)
  return task.parts[0].windows_WxN, f'windows of {task.parts[0].text}'


def main(options: Options) -> None:
  streams, batches = options.streams, list(options.batch_sizes)
  params = scores = scores_behind = before = None
  for name in ('behind', 'text'):
    if getattr(options, name) is not None and not options.workdir:
      raise UserError(f'--{name} measures a trained model; write --workdir=RUN')
  if options.workdir:
    config, tokenizer, params, _ = weights.load_ema(options.workdir)
    if config.model.family != 'armd':
      raise UserError(f'{options.workdir} is of family {config.model.family!r}; give an ARMD run')
    model, vocab_size = dataclasses.asdict(config.model), tokenizer.vocab_size
    if options.behind is not None:
      before = _single_token(options.behind, tokenizer)
    if options.windows:  # before anything is timed, since the text may be missing
      windows_WxN, what = windows_of(options.text, options.windows, config, tokenizer)
  else:
    model, vocab_size = options.values()
  compared = systems(model, vocab_size, streams, params)
  machine, shape = machines.machine(), compared[0].model.config
  parameters = columns.num_parameters(jax.eval_shape(Network.whole, compared[-1].network))
  sizes = ', '.join(map(str, batches))
  print(f'decoding: {timing.shape_line(shape, vocab_size, sizes)}, {parameters / 1e6:.1f}M')
  line = machines.machine_line(machine)
  print(f'{line}; medians of {options.repeats} rounds in turns', flush=True)
  rows = []
  while batches:
    batch_size = batches.pop(0)
    timed = [compiled(system, batch_size) for system in compared]
    timed += denoisers(model, vocab_size, batch_size, options.mdlm)
    if options.transformers:
      timed.append(Timed(**decode_peers.gpt2(shape, vocab_size, batch_size)))
    new = measure(timed, shape.num_slots, batch_size, options.repeats)
    print(report(new), flush=True)
    rows += new
    if options.fill_memory and not batches and all(row['seconds'] for row in new):
      batches.append(2 * batch_size)
  print(
    f'prefill: {rows[0]["prefill_tokens"]} tokens given, with the one step after them; GiB: what'
  )
  print('the program needs at once; a system that needs more than there is is not timed; GB/s and')
  print('GFLOP/s: of what no step does without, weights read once and matrix products')
  if params is not None and options.windows:
    network, mesh = models.build(config.model, vocab_size), sharding.make_mesh(config.mesh)
    costs = functools.partial(order_costs.order_costs, network, params, windows_WxN, streams, mesh)
    scores = costs()
    print(f'exact NLL of {len(windows_WxN)} {what}; costs in nats per token')
    print(quality_report(scores))
    if before is not None:
      scores_behind = costs(before=before)
      print(f'streams that begin behind {options.behind!r}, where it is within half a stream')
      print(quality_report(scores_behind))
  numbers = {
    'machine': machine,
    'shape': dataclasses.asdict(shape) | {'vocab_size': vocab_size},
    'parameters': parameters,
    'systems': rows,
    'quality': scores,
    'quality_behind': scores_behind,
  }
  if options.json:
    cli.write_json(options.json, numbers)
  if options.png:
    from armd_jax.show import plots

    plots.decoding(rows, scores, options.png)


if __name__ == '__main__':
  cli.run(main, Options)

"""The sections of docs/reproduction.md, from results alone."""

from __future__ import annotations

from typing import Any

from armd_jax.reproduce import pieces as p
from armd_jax.reproduce.results import Results, mean_of, perplexity_excess
from armd_jax.show.columns import markdown

NAMES = {
  'ar': 'AR',
  'armd': 'ARMD',
  'armd_uniform': 'ARMD, uniform orders',
  'mdlm': 'MDLM',
  'd3pm': 'D3PM-absorb',
  'sedd': 'SEDD-absorb',
  'radd': 'RADD',
  'bd3lm4': 'BD3-LM, blocks of 4',
  'bd3lm16': 'BD3-LM, blocks of 16',
  'setdlm': 'SetDLM',
  'esolm': 'Eso-LM',
}
STEP_NAMES = NAMES | {'armd_paper': 'ARMD, the published recipe'}
LOSSES = (1, 3, 10)  # percent of NLL


def held_out(results: Results) -> str:
  """The core table, one table for each kind of number."""
  at = p.fractions(results.config) | {f'{100 * p.LONG} %': p.long_steps(results.config)}
  sections = []
  for kind, systems, title in (
    (
      'exact',
      ('ar', 'armd', 'armd_uniform'),
      'Left-to-right, exact, nats per byte',
    ),
    (
      'bound',
      ('armd_uniform', *p.DIFFUSION, 'armd'),
      'Any-order bounds, one random order per text, nats per byte',
    ),
  ):
    rows = []
    for system in systems:
      means = [results.over_seeds(system, step, kind) for step in at.values()]
      seeds = max((mean.count for mean in means if mean), default=0)
      rows.append((NAMES[system], *(mean and mean.text() for mean in means), seeds))
    steps = [f'{name} ({step} steps)' for name, step in at.items()]
    sections.append(f'### {title}\n\n{markdown(("system", *steps, "seeds"), rows)}')
  error = results.monte_carlo_error()
  if error is not None:
    sections.append(
      'Mean ± sample standard deviation over seeds. What is random in the bounds leaves a standard '
      f'error of at most {error:.4f} nats per token of any one of them. The same windows for all; '
      'the two tables are of different kinds and do not compare.'
    )
  return '\n\n'.join(sections)


def rates(results: Results) -> str:
  """The sweep of the learning rate."""
  step = p.fractions(results.config)['50 %']
  rows = []
  for system, name in NAMES.items():
    kind = 'exact' if system in ('ar', 'armd') else 'bound'
    scores = {r: results.score(p.rate_name(system, r), step, kind) for r in p.RATES}
    nats = {rate: row['nats_per_byte'] for rate, row in scores.items() if row}
    best = min(nats, key=nats.get) if len(nats) == len(p.RATES) else None  # type: ignore[arg-type]
    text = lambda rate, nats=nats, best=best: (
      (rate in nats and (f'**{nats[rate]:.4f}**' if rate == best else f'{nats[rate]:.4f}')) or None
    )
    rows.append((name, kind, *map(text, p.RATES)))
  header = ('system', 'own objective', *(f'{rate:g}' for rate in p.RATES))
  return f'After {step} steps, seed 0, nats per byte; the best in bold.\n\n{markdown(header, rows)}'


def cost(results: Results) -> str:
  """A training step of every system."""
  rows = [
    (
      STEP_NAMES[system],
      f'{1e3 * c["seconds"]:.1f}',
      f'{c["seconds_ratio"]:.3f}',
      f'{c["memory_bytes"] / 2**20:.0f}',
      f'{c["memory_bytes_ratio"]:.3f}',
      f'{c["dense_gflops"]:.2f}',
      f'{c["dense_gflops_ratio"]:.3f}',
      f'{c["visible_gflops_ratio"]:.3f}',
    )
    for system, c in results.cost.items()
  ]
  header = (
    'system', 'ms per step', 'over AR', 'peak MiB', 'over AR', 'GFLOP, dense', 'over AR',
    'visible, over AR',
  )  # fmt: skip
  return (
    'Medians of steps taken in turns, nothing else running. Memory: of the compiled step, what is '
    'given and made on the way. FLOPs: of matrix products, as the code multiplies (dense) and with '
    'attention counted by the keys that each row sees (visible). ARMD on uniform orders is the '
    f'same network as ARMD.\n\n{markdown(header, rows)}'
  )


def strided(results: Results) -> str:
  """NLL of every S and where it goes, and the time of sampling, by length."""
  sections = []
  for length in p.lengths(results.config):
    rows = []
    for name, run in results.models(length).items():
      lost = results.lost(run, length)
      for streams, row in results.strided(run).items():
        rows.append(
          (
            name,
            streams,
            f'{row["nats"]:.4f}',
            _with_error(row, 'order_cost'),
            _with_error(row, 'independence_cost'),
            _percent(lost[streams]) if streams in lost else None,
            _junction(row) if streams > 1 else None,
            _won_back(row),
          )
        )
    header = (
      'model', 'S', 'S at once', 'order costs', 'independence costs', 'NLL lost',
      'nats per junction', 'won back',
    )  # fmt: skip
    sections.append(f'### Length {length}\n\n{markdown(header, rows)}\n\n{_speed(results, length)}')
  return (
    'Nats per token, exact. The order costs what the strided order taken one token at a time has '
    'over left-to-right; independence what S at once have over one at a time; ± standard error '
    'over windows. NLL lost: against left-to-right by the same model before SBP, and after it by '
    'the control, trained as long without SBP. Won back: of what the first 16 tokens of a stream '
    'cost for want of the text before them, the share that the 16 tokens before it save, which see '
    'that stream; all of it in a perfect model.\n\n' + '\n\n'.join(sections)
  )


def _junction(row):
  return f'{row["order_nats_per_junction"]:.2f}'


def _won_back(row):
  return None if row['won_back'] is None else f'{row["won_back"]:.0%}'


def junctions(results: Results) -> str:
  """What segments in training are worth at the longest length, and what size and steps are."""
  length = p.lengths(results.config)[-1]
  rows = [
    row
    for how in ('plain', 'segments')
    for streams in p.STREAMS
    if (row := _junction_row(results, how, streams))
  ]
  header = (
    'training', 'S', 'nats per token', 'NLL lost', 'nats per junction', 'starts', 'ends',
    'won back', 'seeds',
  )  # fmt: skip
  return (
    f'Length {length}, base models. NLL lost: against S = 1 of the same model. Starts and ends: '
    'what the 16 tokens after and before a junction cost, in nats per junction.\n\n'
    f'{markdown(header, rows)}\n\n{_sizes(results)}\n\n{_tokens(results)}'
  )


def _junction_row(results, how, streams):
  of = lambda read: results.junction(how, lambda rows: read(rows[streams]))
  nats = of(lambda row: row['nats'])
  if nats is None:
    return None
  lost = results.junction(how, lambda rows: 100 * (rows[streams]['nats'] / rows[1]['nats'] - 1))
  cells = [None] * 4
  if streams > 1:
    cells = [
      f'{of(lambda row: row["order_nats_per_junction"]).value:.2f}',
      f'{of(lambda row: sum(row["starts"])).value:+.2f}',
      f'{of(lambda row: sum(row["ends"])).value:+.2f}',
      f'{of(lambda row: row["won_back"]).value:.0%}',
    ]
  name = 'with segments' if how == 'segments' else 'without'
  return (name, streams, nats.text(), _percent(lost.value), *cells, nats.count)


def _sizes(results):
  config, length = results.config, 2 * results.config.model.length
  own = f'{config.model.num_layers} x {config.model.embed_dim}'
  runs = [(own, p.base_name(length, config), config.train.steps)]
  runs += [(size, p.size_name(size), config.train.steps) for size in p.SIZES]
  longer = p.size_name('longer')
  runs += [(own, longer, times * config.train.steps) for times in (2, 4)]
  rows = []
  for size, run, step in runs:
    found = results.strided(run, step)
    for streams in (4, 16):
      if row := found.get(streams):
        lost = 100 * (row['nats'] / found[1]['nats'] - 1)
        cells = f'{found[1]["nats"]:.4f}', _percent(lost), _junction(row), _won_back(row)
        rows.append((size, step, streams, *cells))
  header = (
    'layers x width', 'steps', 'S', 'left-to-right', 'NLL lost', 'nats per junction', 'won back',
  )  # fmt: skip
  return (
    f'Over size and steps, at length {length}, one seed, base models.\n\n{markdown(header, rows)}'
  )


def _tokens(results):
  """The longest length on tokens of another vocabulary, one row for every S."""
  found = results.strided(p.tokens_name())
  rows = [
    (
      streams,
      f'{row["nats"]:.4f}',
      _percent(100 * (row['nats'] / found[1]['nats'] - 1)),
      *((_junction(row), _won_back(row)) if streams > 1 else (None, None)),
    )
    for streams, row in found.items()
  ]
  length = p.lengths(results.config)[-1]
  header = 'S', 'nats per token', 'NLL lost', 'nats per junction', 'won back'
  return (
    f'The same network on tokens of the vocabulary {p.TOKENIZER}, {length} of them, one seed, base '
    f'model.\n\n{markdown(header, rows)}'
  )


def depths(results: Results) -> str:
  """What layers with two streams are worth, and what they cost."""
  steps, rows = p.fractions(results.config)['50 %'], []
  for depth in p.DEPTHS:
    cost = results.step_cost(f'depth.{depth}.cost')
    for system in ('ar', *(f'armd{count}' for count in p.two_stream_counts(depth))):
      runs = [p.depth_name(depth, system, seed) for seed in p.SEEDS]
      nats = [
        mean_of([s['nats_per_byte'] for run in runs if (s := results.score(run, steps, kind))])
        for kind in _KINDS
      ]
      lost = [_lost_over_seeds(results, runs, s) for s in (4, 16)]
      rows.append(
        (
          depth,
          'AR' if system == 'ar' else f'ARMD, {system.removeprefix("armd")}',
          *(mean and mean.text() for mean in nats),
          *lost,
          *(f'{cost[system][k]:.3f}' if cost else None for k in _OVER_AR),
        )
      )
  header = (
    'layers', 'of two streams', 'left-to-right, exact', 'uniform orders, bound', 'S = 4 loses',
    'S = 16 loses', 'ms per step, over AR', 'visible FLOPs, over AR',
  )  # fmt: skip
  return (
    f'{len(p.SEEDS)} seeds, {steps} steps, nats per byte; a step is timed with nothing else '
    f'running.\n\n{markdown(header, rows)}'
  )


_OVER_AR = ('seconds_ratio', 'visible_gflops_ratio')


def _lost_over_seeds(results, runs, streams):
  found = [rows for run in runs if (rows := results.strided(run))]
  mean = mean_of([100 * (rows[streams]['nats'] / rows[1]['nats'] - 1) for rows in found])
  return mean and _percent(mean.value)


def _with_error(row, name):
  error = row[f'{name}_error']
  cost = round(row[name], 4) + 0.0  # no minus before a zero
  return f'{cost:.4f}' + (f' ± {error:.4f}' if error else '')


def _percent(value):
  return f'{round(value, 2) + 0.0:+.2f} %'


def _speed(results, length):
  seconds = results.seconds(length)
  if not seconds:
    return 'Time of sampling: not measured yet.'
  ar = next(iter(seconds.values()))
  rows = [(name, f'{1e3 * s:.1f}', f'{ar / s:.2f}') for name, s in seconds.items()]
  table = markdown(('sampling one text', 'ms, median', 'times as fast as AR'), rows)
  return table


def farthest(results: Results) -> str:
  """How far S can go."""
  rows = []
  for length in p.lengths(results.config):
    for name, run in results.models(length).items():
      if name != 'control':
        far = [results.farthest(run, length, percent) for percent in LOSSES]
        rows.append((length, name, *far))
  header = ('length', 'model', *(f'at most {percent} %' for percent in LOSSES))
  return (
    f'The largest S, of {", ".join(map(str, p.STREAMS))}, up to which at most so much NLL is lost; '
    f'0: S = 1 loses more.\n\n{markdown(header, rows)}'
  )


def ablations(results: Results) -> str:
  """One change each, from scratch, against ARMD of the core at the same step and seed."""
  step = p.fractions(results.config)['50 %']
  runs = {'ARMD as it is': p.core_name('armd', 0)}
  runs |= {name.removeprefix('ablation.'): name for name in p.ablations(results.config)}
  nats: dict[str, Any] = {
    name: [(s := results.score(run, step, kind)) and s['nats_per_byte'] for kind in _KINDS]
    for name, run in runs.items()
  }
  own = nats['ARMD as it is']
  rows = []
  for name, both in nats.items():
    cells = [
      None if x is None else f'{x:.4f}' + (f' ({x - y:+.4f})' if y and x != y else '')
      for x, y in zip(both, own, strict=True)
    ]
    rows.append((name, *cells))
  header = ('change', 'left-to-right, exact', 'uniform orders, bound')
  return (
    f'One seed, {step} steps, nats per byte; in brackets, over ARMD as it is.\n\n'
    f'{markdown(header, rows)}\n\n{_against_ar(results)}\n\n{_fine_tunes(results)}'
  )


_KINDS = ('exact', 'bound')


def optimizers(results: Results) -> str:
  """Other optimizers and schedules, against AdamW at a constant rate."""
  step = results.config.train.steps
  runs = {'AdamW at a constant rate': p.core_name('armd', 0)}
  runs |= {name: p.optimizer_name(name) for name in p.OPTIMIZERS}
  rows = []
  for name, run in runs.items():
    scores = [results.score(run, step, kind) for kind in _KINDS]
    rows.append((name, *(score and f'{score["nats_per_byte"]:.4f}' for score in scores)))
  header = ('ARMD, trained with', 'left-to-right, exact', 'uniform orders, bound')
  return (
    f'Seed 0, {step} steps, the learning rate of the sweep for all; nats per byte. A schedule ends '
    f'with the run, at a rate of 0.\n\n{markdown(header, rows)}'
  )


def _against_ar(results):
  """What the network and the shuffled orders each have over AR, left-to-right."""
  at = {name: step for name, step in p.fractions(results.config).items() if name != 'a third'}
  runs = {
    'AR': p.core_name('ar', 0),
    'ARMD, left-to-right orders alone': p.LEFT_TO_RIGHT,
    'ARMD': p.core_name('armd', 0),
  }
  rows = []
  for name, run in runs.items():
    scores = [results.score(run, step, 'exact') for step in at.values()]
    cells = [score and f'{score["nats_per_byte"]:.4f}' for score in scores]
    ar, own = results.score(runs['AR'], at['100 %'], 'exact'), scores[-1]
    excess = ar and own and perplexity_excess(own['nats_per_token'], ar['nats_per_token'])
    rows.append((name, *cells, None if excess is None else _percent(excess)))
  steps = [f'{name} ({step} steps)' for name, step in at.items()]
  header = ('system', *steps, "perplexity at the end over AR's")
  return (
    'What ARMD has over AR left-to-right, in two steps: the network, and training on other '
    f'orders. Seed 0, exact nats per byte.\n\n{markdown(header, rows)}'
  )


def _fine_tunes(results):
  length, steps = results.config.model.length, results.config.train.steps
  few = p.tuned_name(length, 'few')
  runs = {f'i_SBP = {taken}': (few, steps + taken) for taken in p.tuned_steps(results.config)}
  runs = {'before SBP': (p.core_name('armd', 0), steps)} | runs
  runs['half of the sequences one by one'] = p.ONE_BY_ONE, None
  rows = []
  for name, (run, step) in runs.items():
    found = results.strided(run, step)
    of = lambda s, found=found: f'{found[s]["nats"]:.4f}' if s in found else None
    rows.append((name, *map(of, p.STREAMS)))
  header = ('fine-tuning', *(f'S = {s}' for s in p.STREAMS))
  last = p.tuned_steps(results.config)[-1]
  return (
    f'Fine-tuned with S up to {max(p.FEW)}, the last one for {last} steps; exact nats per token, '
    f'S at once.\n\n{markdown(header, rows)}'
  )

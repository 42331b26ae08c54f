"""What adapting a model gives, on a page: `armd bench.adapted --run=work/warmed --run=work/done`.

The runs are ARMDs of one tokenizer and length, such as a warm start, what `experiments/adapt.py`
made of it, and the same network trained from nothing. Each is measured on the same windows: exact
nats of S tokens at once, what a junction of two streams costs and how much of it is won back. The
page has their held-out curves and texts, too. adapted.md, adapted.png and records/adapted.json are
written.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt

from armd_jax import cli, families
from armd_jax.artifacts import weights
from armd_jax.bench.decode import windows_of
from armd_jax.decode.requests import Decoder, continue_prompts
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError
from armd_jax.evaluation import order_costs
from armd_jax.files import paths, whole
from armd_jax.flags import flag
from armd_jax.hardware import machines
from armd_jax.parallel import sharding
from armd_jax.show import columns, history, plots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  run: tuple[str, ...] = flag('ARMD runs, in the order of the page.', repeated=True, is_path=True)
  text: str | None = flag(
    'NAME=FILE, read as by evaluate --suite=sedd; left out: held-out windows of the first run.',
    None,
  )
  streams: tuple[int, ...] = flag('Stride counts S.', (1, 2, 4, 8), at_least=1)
  windows: int = flag('Windows to score.', 64, at_least=1)
  prompt: str = flag('What the texts continue.', 'The castle was built in')
  seed: int = flag('Of the texts.', 0, at_least=0)
  out: str = flag('Folder of the page.', 'docs', is_path=True)


def measure(
  run: str, windows_WxN: Any, streams: Sequence[int], prompt: str, sampling: Sampling
) -> dict[str, Any]:
  """One run.

  Args:
    run: path.
    windows_WxN: to score.
    streams: S.
    prompt: of its texts.
    sampling: of its texts.
  Returns:
    name, step, parameters, costs (rows of `order_costs`), texts by S, and curves: held-out nats by
    step, of left-to-right orders ('1') and of the S of `train.eval_streams`.
  Raises:
    UserError: it is no ARMD, or there are no weights.
  """
  config, tokenizer, params, step = weights.load_ema(run)
  if config.model.orders != 'any' or config.model.has_own_orders:
    raise UserError(f'{run} is of family {config.model.family!r}; give ARMD runs')
  mesh = sharding.make_mesh(config.mesh)
  model = families.build(config.model, tokenizer.vocab_size)
  costs = order_costs.order_costs(model, params, windows_WxN, streams, mesh)
  decoder = Decoder(model, params, tokenizer, mesh)
  request = continue_prompts([prompt], config.model.num_slots, tokenizer)
  generate = families.of(config.model).generate
  texts = {s: generate(decoder, request, sampling, streams=s)[0][0] for s in streams}
  log = paths.given(run, '--run') / 'metrics.jsonl'
  records = history.read(log) if log.exists() else {}
  names = {'1': 'held_out'} | {str(s): f'held_out_s{s}' for s in config.train.eval_streams}
  curves = {
    s: [[at, of[name]] for at, of in records.items() if of.get(name) is not None]
    for s, name in names.items()
  }
  return {
    'name': pathlib.Path(run).absolute().name,
    'step': step,
    'parameters': columns.num_parameters(params),
    'costs': costs,
    'texts': texts,
    'curves': {s: points for s, points in curves.items() if points},
  }


_COSTS = ('run', 'S', 'order', 'nats per junction', 'won back', 'independence')


def page(numbers: Mapping[str, Any]) -> str:
  """The numbers in Markdown."""
  runs, streams = numbers['runs'], numbers['streams']
  several = [s for s in streams if s > 1]
  cost = lambda run, s: next(row for row in run['costs'] if row['streams'] == s)
  nats = lambda run, s: f'{cost(run, s)["nats"]:.4f} ({math.exp(cost(run, s)["nats"]):.1f})'
  share = lambda x: None if x is None else f'{x:+.0%}'
  at_once = [[run['name'], run['step'], *(nats(run, s) for s in streams)] for run in runs]
  junctions = [
    [run['name'], s, f'{row["order_cost"]:.4f}', f'{row["order_nats_per_junction"]:.2f}',
     share(row['won_back']), f'{row["independence_cost"]:.4f}']
    for run in runs for s in several for row in [cost(run, s)]
  ]  # fmt: skip
  texts = '\n\n'.join(
    f'**{run["name"]}, S = {s}**\n\n```text\n{text}\n```'
    for run in runs
    for s, text in run['texts'].items()
  )
  machine = machines.machine_line(numbers['machine'])
  return f"""# An open model, adapted

Written by the command below, as is the picture; the numbers are in
[adapted.json](records/adapted.json).

    {numbers['command']}

- Scored: {numbers['scored']}, all runs on the same ones
- Model: {runs[0]['parameters'] / 1e6:.1f}M parameters, {numbers['length']} tokens
- Machine: {machine}

## S tokens at once

Exact nats per token, and the perplexity.

{columns.markdown(['run', 'steps', *(f'S = {s}' for s in streams)], at_once)}

## What an order costs, and where

`order` is the strided order one token at a time, over left-to-right, in nats per token;
`independence` is S tokens at once over that. `won back` is the share of what the first tokens of a
stream lose that the last ones before it win ([decoding.md](decoding.md)).

{columns.markdown(_COSTS, junctions)}

![Held-out nats over steps, left-to-right and with S tokens at once](adapted.png)

## Texts

They continue one prompt at temperature {numbers['temperature']}, top-p {numbers['top_p']}.

{texts}
"""


def draw(runs: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Held-out nats over steps, a panel an S, a line a run."""
  trained = [run for run in runs if run['curves']]
  counts = sorted({s for run in trained for s in run['curves']}, key=int)
  figure, axes = plt.subplots(
    1, max(1, len(counts)), figsize=(3.6 * max(1, len(counts)), 3.4), layout='constrained',
    sharey=True, squeeze=False,
  )  # fmt: skip
  for panel, s in zip(axes[0], counts, strict=False):
    points = {run['name']: {x: {s: y} for x, y in run['curves'].get(s, [])} for run in trained}
    plots.runs_panel(panel, points, s)
    panel.set_title('left-to-right' if s == '1' else f'{s} tokens at once')
  plots.save(figure, path)


def main(options: Options) -> None:
  out = paths.given(options.out, '--out')
  config, tokenizer, *_ = weights.load_ema(options.run[0])
  for run in options.run[1:]:
    other, its_own, *_ = weights.load_ema(run)
    if (other.model.length, its_own.fingerprint) != (config.model.length, tokenizer.fingerprint):
      raise UserError(
        f'{run} has {other.model.length} tokens of {its_own.name}, and {options.run[0]} has '
        f'{config.model.length} of {tokenizer.name}; compare runs of one length and tokenizer'
      )
  windows_WxN, scored = windows_of(options.text, options.windows, config, tokenizer)
  sampling = Sampling(seed=options.seed, temperature=0.7, top_p=0.95)
  runs = []
  for run in options.run:
    runs.append(measure(run, windows_WxN, options.streams, options.prompt, sampling))
    print(f'{run}, step {runs[-1]["step"]}', flush=True)
    print(columns.table([
      {'S': row['streams'], 'nats': row['nats'], 'order': row['order_cost'],
       'per junction': row['order_nats_per_junction'], 'won back': row['won_back']}
      for row in runs[-1]['costs']
    ]), flush=True)  # fmt: skip
  numbers = {
    'command': shlex.join(['armd', 'bench.adapted', *sys.argv[1:]]),
    'machine': machines.machine(),
    'scored': f'{len(windows_WxN)} {scored}',
    'length': config.model.length,
    'streams': options.streams,
    'temperature': sampling.temperature,
    'top_p': sampling.top_p,
    'runs': runs,
  }
  cli.write_json(out / 'records' / 'adapted.json', numbers)
  draw(runs, out / 'adapted.png')
  whole.write_text(out / 'adapted.md', page(numbers))
  print(f'wrote {out / "adapted.md"}')


if __name__ == '__main__':
  cli.run(main, Options)

"""The pictures of docs/reproduction.md."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from armd_jax.reproduce import pieces as p
from armd_jax.reproduce.results import Results
from armd_jax.reproduce.tables import NAMES
from armd_jax.show import fronts, plots

_COLORS = dict(zip(NAMES, plt.cm.tab20(np.arange(len(NAMES))), strict=True))
_MODELS = ('black', 'grey', plots.CONTENT, plots.QUERY)


def draw(results: Results, out: pathlib.Path) -> list[tuple[str, str]]:
  """Draws what there are numbers for.

  Returns:
    File names in `out`, and what they show.
  """
  drawn = []
  if any(results.of(p.core_name(system, 0)) for system in NAMES):
    learning(results, out / 'reproduction_learning.png')
    drawn.append(('reproduction_learning.png', 'Training loss, and held-out nats over steps'))
  lengths = [
    n for n in p.lengths(results.config) if results.strided(p.base_name(n, results.config))
  ]
  if lengths:
    strided(results, lengths, out / 'reproduction_strided.png')
    drawn.append(('reproduction_strided.png', 'Nats per token and sampling time over S'))
  if found := results.of('front'):
    fronts.draw(found['ways'], str(out / 'reproduction_front.png'))
    drawn.append(('reproduction_front.png', 'Quality against speed, all systems'))
  return drawn


def learning(results: Results, path: pathlib.Path) -> None:
  """Training loss of seed 0; held-out numbers of all seeds, the two kinds apart.

  D3PM's loss is left out: its hybrid has T times the auxiliary cross-entropy in it, too.
  """
  figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4), layout='constrained')
  for system, name in NAMES.items():
    if system != 'd3pm' and (run := results.of(p.core_name(system, 0))):
      left.plot(*zip(*run['loss'], strict=True), color=_COLORS[system], lw=1, label=name)
  left.set(ylabel='training loss, nats per token', title='Own objective, seed 0 (not of D3PM)')
  for axes, kind, title in (
    (middle, 'exact', 'Held out, left-to-right, exact'),
    (right, 'bound', 'Held out, any-order bounds'),
  ):
    for system, name in NAMES.items():
      steps = sorted(p.fractions(results.config).values())
      means: dict[int, Any] = {step: results.over_seeds(system, step, kind) for step in steps}
      means = {step: mean for step, mean in means.items() if mean}
      if means:
        axes.errorbar(
          list(means), [m.value for m in means.values()], [m.spread or 0 for m in means.values()],
          fmt='o-', ms=3, lw=1, capsize=2, color=_COLORS[system], label=name,
        )  # fmt: skip
    axes.set(ylabel='nats per byte', title=title)
  for axes in (left, middle, right):
    axes.set(xlabel='step')
    axes.grid(alpha=0.3)
  named = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
  named |= dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
  figure.legend(named.values(), named, loc='outside lower center', ncols=len(NAMES))
  plots.save(figure, path)


def strided(results: Results, lengths: list[int], path: pathlib.Path) -> None:
  """Above, NLL over S of every model, S tokens at once; below, seconds of sampling."""
  figure, all_axes = plt.subplots(
    2, len(lengths), figsize=(5 * len(lengths), 7), layout='constrained', squeeze=False,
    height_ratios=(2, 1), sharex='all',
  )  # fmt: skip
  # From 0, where a per cent looks like one, and the same for all lengths.
  models = [run for length in lengths for run in results.models(length).values()]
  most = max(row['nats'] for run in models for row in results.strided(run).values())
  for length, (top, bottom) in zip(lengths, all_axes.T, strict=True):
    for (name, run), color in zip(results.models(length).items(), _MODELS, strict=True):
      if rows := results.strided(run):
        nats = [row['nats'] for row in rows.values()]
        top.plot(list(rows), nats, 'o-', color=color, ms=4, label=name)
    alone = results.over_seeds('ar', results.config.train.steps, 'exact', 'nats_per_token')
    if alone and length == results.config.model.length:
      top.axhline(alone.value, color='grey', ls='--', lw=1, label='AR')
    top.set(ylabel='held-out nats per token', title=f'Length {length}', ylim=(0, 1.05 * most))
    seconds = results.seconds(length)
    ours = {name.split('=')[1]: s for name, s in seconds.items() if name.startswith('ARMD')}
    bottom.plot(
      [int(s) for s in ours],
      [1e3 * s for s in ours.values()],
      'o-',
      color=plots.CONTENT,
      label='ARMD',
    )
    if ours:
      ar = 1e3 * next(iter(seconds.values()))
      bottom.axhline(ar, color='grey', ls='--', lw=1, label='AR, cached')
    bottom.set(ylabel='ms per text', xlabel='S', ylim=(0, None))
    for axes in (top, bottom):
      axes.set(xscale='log')
      axes.set_xticks(p.STREAMS, p.STREAMS)
      axes.xaxis.minorticks_off()
      _finish(axes)
  plots.save(figure, path)


def _finish(axes):
  if axes.has_data():
    plots.finish(axes)

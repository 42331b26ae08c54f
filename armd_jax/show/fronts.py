"""The front of all families as a picture: how good a text is, against how fast it comes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib import ticker

from armd_jax.show.plots import finish, save


def draw(rows: Sequence[Mapping[str, Any]], path: str) -> None:
  """Rows of `bench.front`: held-out nats, and the judge's perplexity where there is one, against
  tokens per second at the smallest batch size, a line per run."""
  is_judged = any(_is_finite(row.get('judge_perplexity')) for row in rows)
  figure, all_axes = plt.subplots(
    1, 1 + is_judged, figsize=(5.5 * (1 + is_judged), 4.2), layout='constrained', squeeze=False
  )
  batch = min(rows[0]['tokens_per_second'], key=int)
  panel(all_axes[0, 0], rows, batch, 'nats_per_byte', 'held-out nats per byte')
  if is_judged:
    panel(all_axes[0, 1], rows, batch, 'judge_perplexity', 'perplexity of texts under the judge')
  save(figure, path)


def _is_finite(number: float | None) -> bool:
  return number is not None and math.isfinite(number)


def panel(axes: Any, rows: Sequence[Mapping[str, Any]], batch: str, what: str, label: str) -> None:
  """One number against speed, where it is finite; a run's points are joined, exact ones full and
  bounds hollow."""
  rows = [row for row in rows if _is_finite(row[what])]
  runs = dict.fromkeys(row['way'].rpartition(', ')[0] for row in rows)
  colors = list(plt.get_cmap('tab10')(range(10)))
  for color, run in zip(colors * (1 + len(runs) // len(colors)), runs, strict=False):
    own = [row for row in rows if row['way'].rpartition(', ')[0] == run]
    points = sorted((row['tokens_per_second'][batch], row[what], row['way']) for row in own)
    is_bound = own[0]['kind'] == 'bound'
    axes.plot(
      [x for x, *_ in points], [y for _, y, _ in points], 'o-', color=color, lw=1,
      markerfacecolor='white' if is_bound else color,
      label=f'{run} (bound)' if is_bound and what.startswith('nats') else run,
    )  # fmt: skip
    for x, y, way in points:
      axes.annotate(
        way.rpartition(', ')[2], (x, y), textcoords='offset points', xytext=(4, 5), fontsize=7,
        color=color,
      )  # fmt: skip
  axes.set(xscale='log', xlabel=f'tokens per second, batch {batch}', ylabel=label)
  # From 0, so that a per cent looks like one.
  axes.set_ylim(0, 1.2 * max((row[what] for row in rows), default=1))
  axes.margins(x=0.1)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  finish(axes)
  if rows:
    axes.legend(fontsize=7)

"""The pictures that the project draws."""

from __future__ import annotations

import html
import io
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')  # files only; no screen is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from armd_jax.config import OrderConfig
from armd_jax.errors import UserError
from armd_jax.evaluation.scores import Score
from armd_jax.files import whole
from armd_jax.objectives.armd import ORDER_KINDS

CONTENT, QUERY, HIDDEN = '#2a6fbb', '#d9822b', '#f2f2f2'
OTHERS = '#3f9d76', '#a06cc8', '#c2a33c'

# What a page's style sheet calls the colours, so that one drawing serves light and dark.
_INK, _LINE = '#010203', '#040506'
_VARIABLES = {
  CONTENT: 'content', QUERY: 'query', HIDDEN: 'hidden', _INK: 'ink', _LINE: 'line',
  '#808080': 'muted',
}  # fmt: skip
_PAGE_STYLE = {
  'svg.fonttype': 'none', 'font.size': 9, 'axes.titlesize': 10, 'legend.frameon': False,
  'legend.fontsize': 8, 'text.color': _INK, 'axes.labelcolor': _INK, 'axes.edgecolor': _LINE,
  'xtick.color': _LINE, 'ytick.color': _LINE, 'xtick.labelcolor': 'grey',
  'ytick.labelcolor': 'grey', 'grid.color': _LINE, 'axes.spines.top': False,
  'axes.spines.right': False, 'figure.facecolor': 'none', 'axes.facecolor': 'none',
}  # fmt: skip


def training(records: Mapping[int, dict[str, Any]], order: OrderConfig, path: pathlib.Path) -> None:
  """Loss, learning rate and speed over steps, with the phases of the order schedule.

  Args:
    records: of a run by step, as `metrics.read` gives them.
    order: the run's.
    path: of the picture.
  """
  figure, all_axes = plt.subplots(
    3, 1, sharex=True, figsize=(7, 7), height_ratios=(2, 1, 1), layout='constrained'
  )
  top, middle, bottom = all_axes
  loss_panel(top, records, order)
  curve_panel(middle, records, order, 'learning_rate', 'learning rate', named=True)
  curve_panel(bottom, records, order, 'tokens_per_second', 'tokens per second')
  for axes in (top, middle):
    axes.set_xlabel('')
  save(figure, path)


def loss_panel(axes: Any, records: Mapping[int, dict[str, Any]], order: OrderConfig) -> None:
  """Training and held-out loss over steps; arguments as of `training`."""
  for name, style, color, label in (
    ('loss', '-', CONTENT, 'training'),
    ('held_out', 'o-', QUERY, 'held out, left-to-right'),
  ):
    if points := _curve(records, name):
      axes.plot(*zip(*points, strict=True), style, color=color, lw=1, ms=4, label=label)
  _over_steps(axes, records, order)
  axes.set(ylabel='loss, nats per token')
  axes.legend()


def kinds_panel(axes: Any, records: Mapping[int, dict[str, Any]], order: OrderConfig) -> None:
  """Training loss of every kind of order apart."""
  for kind, color in zip(ORDER_KINDS, (CONTENT, QUERY, *OTHERS), strict=True):
    if points := _curve(records, f'loss_{kind}'):
      label = kind.replace('_', '-')
      axes.plot(*zip(*points, strict=True), '.', color=color, ms=3, label=label)
  _over_steps(axes, records, order)
  axes.set(ylabel='loss by order, nats per token')
  axes.legend(markerscale=3)


def runs_panel(axes: Any, records: Mapping[str, Mapping[int, dict[str, Any]]], name: str) -> None:
  """What several runs logged as `name` over steps, a line a run."""
  colors = plt.cm.viridis(np.linspace(0, 0.85, len(records)))
  for color, (run, of_run) in zip(colors, records.items(), strict=True):
    if points := _curve(of_run, name):
      axes.plot(*zip(*points, strict=True), '.-', color=color, lw=1, ms=4, label=run)
  axes.set(xlabel='step', ylabel='nats per token')
  if axes.lines:
    finish(axes)


def curve_panel(
  axes: Any,
  records: Mapping[int, dict[str, Any]],
  order: OrderConfig,
  name: str,
  label: str,
  named: bool = False,
) -> None:
  """What is logged as `name` over steps; `named` writes what the phases are called."""
  if points := _curve(records, name):
    axes.plot(*zip(*points, strict=True), '-', color=CONTENT, lw=1)
  _over_steps(axes, records, order, named)
  axes.set(ylabel=label)
  axes.set_ylim(bottom=0)


def _curve(records, name):
  return [(step, r[name]) for step, r in records.items() if r.get(name) is not None]


def _over_steps(axes, records, order, named=False):
  """The grid, and where the phases of the order schedule begin."""
  phases = [(0, 'left-to-right')]
  if order.max_shuffled > 1:
    phases.append((order.ar_steps, f'up to {order.max_shuffled} shuffled'))
  if order.strided_start >= 0:
    phases.append((order.strided_start, 'strided'))
  for step, name in phases:
    if step < max(records):
      axes.axvline(step, color='grey', lw=0.5)
      if named:
        axes.text(
          step, 0.05, f' {name}', va='bottom', fontsize=8, rotation=90, color='grey',
          transform=axes.get_xaxis_transform(),
        )  # fmt: skip
  axes.set(xlabel='step')
  axes.grid(alpha=0.3)


def save(figure: Any, path: str | pathlib.Path) -> None:
  """Writes a figure and forgets it.

  Raises:
    UserError: it cannot be written.
  """
  kind = pathlib.Path(path).suffix.removeprefix('.') or 'png'
  try:
    with whole.replacing(path) as part:
      figure.savefig(part, dpi=120, format=kind)
  except OSError as error:
    raise UserError(
      f'cannot write {path} ({error.strerror}); free space, or make it writable'
    ) from error
  finally:
    plt.close(figure)


def quality_speed(
  scores: Sequence[Score],
  speeds: Sequence[dict[str, Any]],
  counted: Mapping[str, float],
  path: pathlib.Path,
) -> None:
  """Held-out nats per byte against decoding speed, one point per stride count S.

  The axis begins at 0, so that a per cent looks like one; left-to-right and the best of the counted
  models are lines to compare with.
  """
  nats: dict[str, Any] = {score.name: score.nats_per_byte for score in scores}
  names = {s['streams']: f'strided S={s["streams"]}, parallel' for s in speeds}
  names[1] = 'left-to-right'
  points = [(s['tokens_per_second'], nats[names[s['streams']]], s['streams']) for s in speeds]
  figure, axes = plt.subplots(figsize=(6, 4), layout='constrained')
  axes.plot(
    [p[0] for p in points], [p[1] for p in points], 'o-', color=CONTENT, label='parallel groups'
  )
  alone = [
    (s['tokens_per_second'], nats.get(f'strided S={s["streams"]}, one by one')) for s in speeds
  ]
  alone = [(speeds[0]['tokens_per_second'], nat) for _, nat in alone if nat is not None]
  axes.plot(*zip(*alone, strict=True), 'x', color=QUERY, label='the same orders, one by one')
  for x, y, streams in points:
    axes.annotate(f'S = {streams}', (x, y), textcoords='offset points', xytext=(6, 6))
  axes.set(
    xlabel='tokens per second, one sequence', ylabel='held-out nats per byte (exact)',
    title='Quality against speed',
  )  # fmt: skip
  left_to_right = nats['left-to-right']
  axes.axhline(left_to_right, color='grey', lw=1, ls='--', label='left-to-right, as AR')
  if counted:
    name = min(counted, key=counted.__getitem__)
    axes.axhline(counted[name], color=OTHERS[0], lw=1, ls=':', label=name)
  axes.margins(0.15)
  axes.set_ylim(0, 1.2 * max(p[1] for p in points))
  finish(axes)
  axes.legend(fontsize=8, loc='lower right')
  save(figure, path)


def decoding(
  systems: Sequence[dict[str, Any]], quality: Sequence[dict[str, Any]] | None, path: str
) -> None:
  """Rows of `bench.decode`: speed over S at every batch size; with trained weights also quality
  against speed, and where quality goes."""
  quality = quality if are_finite(quality or ()) else None
  panels = 4 if quality else 1
  figure, all_axes = plt.subplots(
    1, panels, figsize=(5 * panels, 4), layout='constrained', squeeze=False
  )
  speed_panel(all_axes[0, 0], systems)
  if quality:
    front_panel(all_axes[0, 1], systems, quality)
    cost_panel(all_axes[0, 2], quality)
    junction_panel(all_axes[0, 3], quality)
  save(figure, path)


def are_finite(quality: Sequence[Mapping[str, Any]]) -> bool:
  """Whether rows of `evaluation.order_costs` can be drawn: not those of a model that diverged."""
  costs = ('nats', 'order_cost', 'independence_cost')  # the others are made of these
  found = [row[name] for row in quality for name in costs]
  return all(x is not None and math.isfinite(x) for x in found)


def speed_panel(axes: Any, systems: Sequence[dict[str, Any]]) -> None:
  """Tokens per second over S, a line per batch size."""
  rows = [row for row in systems if row['seconds']]
  batches = sorted({row['batch_size'] for row in rows})
  for batch, color in zip(
    batches, plt.cm.viridis(np.linspace(0.4, 0.85, len(batches))), strict=True
  ):
    ours = [r for r in rows if r['batch_size'] == batch and r['system'].startswith('ARMD')]
    points = [(r['streams'], r['tokens_per_second']) for r in ours]
    axes.plot(*zip(*points, strict=True), 'o-', color=color, label=f'ARMD, batch {batch}')
    for row in (r for r in rows if r not in ours and r['batch_size'] == batch):
      style = '--' if row['system'].startswith('AR') else ':'
      label = f'{row["system"]}, batch {batch}'
      axes.axhline(row['tokens_per_second'], color=color, ls=style, lw=1, label=label)
  axes.set(xscale='log', yscale='log', xlabel='S', ylabel='tokens per second', title='Speed')
  streams = sorted({row['streams'] for row in rows})
  axes.set_xticks(streams, streams)
  axes.xaxis.minorticks_off()
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axes.yaxis.minorticks_off()
  finish(axes)


def front_panel(
  axes: Any,
  systems: Sequence[dict[str, Any]],
  quality: Sequence[dict[str, Any]],
  counted: Mapping[str, float] | None = None,
) -> None:
  """Held-out nats per token against speed, at the smallest batch size; beside counted models."""
  ours = [row for row in systems if row['seconds'] and row['system'].startswith('ARMD')]
  batch = min(row['batch_size'] for row in ours)
  by_streams = {row['streams']: row for row in quality}
  pairs = [
    (r['tokens_per_second'], by_streams[r['streams']]) for r in ours if r['batch_size'] == batch
  ]
  axes.plot(
    [x for x, _ in pairs], [q['nats'] for _, q in pairs], 'o-', color=CONTENT, label='S at once'
  )
  alone = [(x, q['nats'] - q['independence_cost']) for x, q in pairs]
  axes.plot(*zip(*alone, strict=True), 'x', color=QUERY, label='the same orders, one by one')
  for x, q in pairs:
    place = dict(textcoords='offset points', xytext=(-6, 8))
    axes.annotate(f'S = {q["streams"]}', (x, q['nats']), **place)
  first = min(quality, key=lambda q: q['streams'])
  axes.axhline(first['nats'], color='grey', lw=1, ls='--', label=f'S = {first["streams"]}')
  axes.set(
    xlabel=f'tokens per second, batch {batch}', ylabel='held-out nats per token (exact)',
    title='Quality against speed',
  )  # fmt: skip
  axes.margins(0.15)
  for name, nats in (counted or {}).items():
    axes.axhline(nats, color=OTHERS[0], lw=1, ls=':', label=name)
  # From 0, so that a per cent looks like one.
  axes.set_ylim(0, 1.2 * max(q['nats'] for _, q in pairs))
  finish(axes)
  axes.legend(loc='lower right')


def cost_panel(axes: Any, quality: Sequence[dict[str, Any]]) -> None:
  """What the order and what independence cost, at every S."""
  several = [q for q in quality if q['streams'] > 1]
  place_S = np.arange(len(several))
  for shift, name, color in ((-0.2, 'order', CONTENT), (0.2, 'independence', QUERY)):
    heights = [q[f'{name}_cost'] for q in several]
    errors = [q[f'{name}_cost_error'] or 0 for q in several]
    how = dict(yerr=errors, ecolor='grey', color=color, label=f'{name} costs')
    axes.bar(place_S + shift, heights, 0.4, **how)
  axes.set_xticks(
    place_S,
    [f'{q["streams"]}\n{q["order_nats_per_junction"]:.2g}' for q in several],
  )
  axes.axhline(0, color='grey', lw=0.5)
  axes.set(
    xlabel='S; below, nats per junction that the order costs', ylabel='nats per token',
    title='Where quality goes',
  )  # fmt: skip
  finish(axes)


def junction_panel(axes: Any, quality: Sequence[dict[str, Any]]) -> None:
  """What the order costs by distance from a junction of two streams, a line per S."""
  several = [row for row in quality if row['won_back'] is not None]
  colors = plt.cm.viridis(np.linspace(0.2, 0.85, max(len(several), 1)))
  for row, color in zip(several, colors, strict=True):
    starts, ends = row['starts'], row['ends']
    label = f'S = {row["streams"]}, {row["won_back"]:.0%} won back'
    axes.plot(range(-len(ends), 0), ends, '.-', color=color, lw=1, label=label)
    axes.plot(range(len(starts)), starts, '.-', color=color, lw=1)
  axes.axvline(-0.5, color='grey', lw=0.5)
  axes.axhline(0, color='grey', lw=0.5)
  axes.set(
    xlabel='tokens from the start of a stream', ylabel='nats that the order costs',
    title='Near a junction',
  )  # fmt: skip
  finish(axes)


def finish(axes: Any) -> None:
  """The legend and the grid that all pictures have."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend(fontsize=8)
  axes.grid(alpha=0.3)


def svg(
  draw: Callable[..., None],
  described: str,
  size: tuple[float, float] = (4.2, 2.9),
  **subplots: Any,
) -> str:
  """A drawing as an SVG element for a page, in the colours of the page's own style sheet.

  Args:
    draw: takes the axes of one figure.
    described: for those who do not see it.
    size: inches, of 72 pixels.
    subplots: of `matplotlib.pyplot.subplots`.
  """
  # Equal drawings get equal names of what they refer to in themselves, others others.
  with plt.rc_context(
    _PAGE_STYLE | {'svg.hashsalt': described}  # type: ignore[arg-type]
  ):
    figure, axes = plt.subplots(figsize=size, layout='constrained', **subplots)
    draw(axes)
    out = io.StringIO()
    figure.savefig(out, format='svg', metadata={'Date': None})
    plt.close(figure)
  text = re.sub('<metadata>.*?</metadata>', '', out.getvalue(), flags=re.DOTALL)
  text = text[text.index('<svg') :]
  # Names that nothing refers to, and of what a page knows without.
  text = re.sub(r' (id="[a-z0-9.]+_[0-9]+"|xmlns(:xlink)?="[^"]*"|version="1.1")', '', text)
  text = re.sub(r' (width|height)="[0-9.]+pt"', '', text, count=2)
  for color, name in _VARIABLES.items():
    text = text.replace(color, f'var(--{name})')
  text = re.sub('font-family: [^;"]*;? ?', '', text)
  text = re.sub(r'\s*\n\s*', ' ', text)
  label = html.escape(described)
  return text.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)


def orders_and_masks(path: pathlib.Path) -> None:
  """Four orders of eight tokens and what their rows see; the picture of the README."""
  import jax

  from armd_jax import order as orders

  keys = jax.random.split(jax.random.key(11), 1)
  examples = {
    'left-to-right': orders.left_to_right(8),
    'k = 4 shuffled': orders.shuffled(keys, 8, 4, 'scatter'),
    'masked diffusion, T = 4': orders.masking_blocks(keys, 8, 4, 'linear'),
    'strided, S = 2': orders.strided(8, 2),
  }
  figure, all_axes = plt.subplots(
    2, 4, figsize=(12, 4.8), height_ratios=[1, 7], layout='constrained'
  )
  for (name, o), axes in zip(examples.items(), all_axes.T, strict=True):
    order_and_mask(axes, o)
    axes[0].set_title(name)
  all_axes[1, 0].set_ylabel('row: position, in generation order', fontsize=8)
  handles = [
    plt.Rectangle((0, 0), 1, 1, color=color, label=label)
    for color, label in (
      (CONTENT, 'earlier blocks: in $M^{sc}$ and $M^c$'),
      (QUERY, 'own block: in $M^c$ only'),
      (HIDDEN, 'hidden'),
    )
  ]
  figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
  save(figure, path)


def order_and_mask(axes: Sequence[Any], order: Any) -> None:
  """A `GenerationOrder` of one text.

  Args:
    axes: two of them: the text with the step of every token, and what its rows see, both in
      generation order.
    order: few slots, since every cell is drawn.
  """
  from armd_jax.order import block_bounds

  top, bottom = axes
  size = order.num_slots
  position_N, block_N = np.asarray(order.position_BxN[0]), np.asarray(order.block_BxN[0])
  step_N = np.unique(block_N, return_inverse=True)[1]
  for position, step in zip(position_N, step_N, strict=True):
    share = step / max(size - 1, 1)
    ink = 'white' if share < 0.6 else 'black'
    top.add_patch(plt.Rectangle((position - 1, 0), 0.92, 0.92, color=plt.cm.viridis(share)))
    top.text(position - 0.54, 0.46, step + 1, ha='center', va='center', color=ink)
  top.set(xlim=(-0.1, size + 0.1), ylim=(-0.1, 1.1), aspect='equal')
  top.set_xlabel('position in the text; number: step', fontsize=8)
  top.set(xticks=[], yticks=[])
  top.set_frame_on(False)

  start_N, end_N = (np.asarray(x[0]) for x in block_bounds(order.block_BxN))
  for n in range(size):
    for k in range(size):
      color = CONTENT if k < start_N[n] else QUERY if k < end_N[n] else HIDDEN
      bottom.add_patch(plt.Rectangle((k, size - 1 - n), 0.94, 0.94, color=color))
  ticks = np.arange(size) + 0.47
  bottom.set(xlim=(-0.1, size + 0.1), ylim=(-0.1, size + 0.1), aspect='equal')
  bottom.set_xticks(ticks, position_N, fontsize=8)
  bottom.set_yticks(ticks, position_N[::-1], fontsize=8)
  bottom.set_xlabel('key: position, in generation order', fontsize=8)
  bottom.tick_params(length=0)
  bottom.set_frame_on(False)

"""The pictures that the project draws."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')  # files only; no screen is needed

import matplotlib.pyplot as plt
import numpy as np

from armd_jax.config import OrderConfig
from armd_jax.evaluation.scores import Score

CONTENT, QUERY, HIDDEN = '#2a6fbb', '#d9822b', '#f2f2f2'


def training(records: dict[int, dict[str, Any]], order: OrderConfig, path: pathlib.Path) -> None:
  """Loss, learning rate and speed over steps, with the phases of the order schedule.

  Args:
    records: of a run by step, as `metrics.read` gives them.
    order: the run's.
    path: of the picture.
  """
  curve = lambda name: [(step, r[name]) for step, r in records.items() if r.get(name) is not None]
  figure, (top, middle, bottom) = plt.subplots(
    3, 1, sharex=True, figsize=(7, 7), height_ratios=(2, 1, 1), layout='constrained'
  )
  for axes, name, style, color, label in (
    (top, 'loss', '-', CONTENT, 'training'),
    (top, 'held_out', 'o-', QUERY, 'held out, left-to-right'),
    (middle, 'learning_rate', '-', CONTENT, None),
    (bottom, 'tokens_per_second', '-', CONTENT, None),
  ):
    if points := curve(name):
      axes.plot(*zip(*points, strict=True), style, color=color, lw=1, ms=4, label=label)
  phases = [(0, 'left-to-right'), (order.ar_steps, f'up to {order.rho} shuffled')]
  if order.sbp_start >= 0:
    phases.append((order.sbp_start, 'strided'))
  for step, name in phases:
    if step < max(records):
      middle.text(
        step, 0.05, f' {name}', va='bottom', fontsize=8, rotation=90, color='grey',
        transform=middle.get_xaxis_transform(),
      )  # fmt: skip
      for axes in (top, middle, bottom):
        axes.axvline(step, color='grey', lw=0.5)
  top.set(ylabel='loss, nats per token')
  top.legend()
  middle.set(ylabel='learning rate')
  bottom.set(ylabel='tokens per second', xlabel='step')
  for axes in (top, middle, bottom):
    axes.grid(alpha=0.3)
    if axes is not top:
      axes.set_ylim(bottom=0)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def quality_speed(
  scores: Sequence[Score], speeds: Sequence[dict[str, Any]], path: pathlib.Path
) -> None:
  """Held-out nats per byte against decoding speed, one point per stride count S."""
  nats = {score.name: score.nats_per_byte for score in scores}
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
  axes.legend()
  axes.grid(alpha=0.3)
  axes.margins(0.15)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def decoding(
  systems: Sequence[dict[str, Any]], quality: Sequence[dict[str, Any]] | None, path: str
) -> None:
  """Rows of `bench.decode`: speed over S at every batch size; with trained weights also quality
  against speed, and where quality goes."""
  rows = [row for row in systems if row['seconds']]
  batches = sorted({row['batch_size'] for row in rows})
  panels = 3 if quality else 1
  figure, all_axes = plt.subplots(
    1, panels, figsize=(5 * panels, 4), layout='constrained', squeeze=False
  )
  speed = all_axes[0, 0]
  for batch, color in zip(batches, plt.cm.viridis(np.linspace(0, 0.8, len(batches))), strict=True):
    ours = [r for r in rows if r['batch_size'] == batch and r['system'].startswith('ARMD')]
    points = [(r['streams'], r['tokens_per_second']) for r in ours]
    speed.plot(*zip(*points, strict=True), 'o-', color=color, label=f'ARMD, batch {batch}')
    for row in (r for r in rows if r not in ours and r['batch_size'] == batch):
      style = '--' if row['system'].startswith('AR') else ':'
      label = f'{row["system"]}, batch {batch}'
      speed.axhline(row['tokens_per_second'], color=color, ls=style, lw=1, label=label)
  speed.set(xscale='log', yscale='log', xlabel='S', ylabel='tokens per second', title='Speed')
  streams = sorted({row['streams'] for row in rows})
  speed.set_xticks(streams, streams)
  speed.minorticks_off()
  if quality:
    front, split = all_axes[0, 1:]
    first = [r for r in rows if r['batch_size'] == batches[0] and r['system'].startswith('ARMD')]
    by_streams = {row['streams']: row for row in quality}
    pairs = [(r['tokens_per_second'], by_streams[r['streams']]) for r in first]
    front.plot(
      [x for x, _ in pairs], [q['nats'] for _, q in pairs], 'o-', color=CONTENT, label='S at once'
    )
    alone = [(x, q['nats'] - q['independence_cost']) for x, q in pairs]
    front.plot(*zip(*alone, strict=True), 'x', color=QUERY, label='the same orders, one by one')
    for x, q in pairs:
      place = dict(textcoords='offset points', xytext=(4, -12))
      front.annotate(f'S = {q["streams"]}', (x, q['nats']), **place)
    front.set(
      xlabel=f'tokens per second, batch {batches[0]}', ylabel='held-out nats per token (exact)',
      title='Quality against speed',
    )  # fmt: skip
    front.margins(0.15)
    several = [q for q in quality if q['streams'] > 1]
    place_S = np.arange(len(several))
    for shift, name, color in ((-0.2, 'order', CONTENT), (0.2, 'independence', QUERY)):
      heights = [q[f'{name}_cost'] for q in several]
      errors = [q[f'{name}_cost_error'] or 0 for q in several]
      split.bar(place_S + shift, heights, 0.4, yerr=errors, color=color, label=f'{name} costs')
    split.set_xticks(
      place_S,
      [f'{q["streams"]}\n{q["order_nats_per_junction"]:.2g}' for q in several],
    )
    split.axhline(0, color='grey', lw=0.5)
    split.set(
      xlabel='S; below, nats per junction that the order costs', ylabel='nats per token',
      title='Where quality goes',
    )  # fmt: skip
  for axes in all_axes[0]:
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)


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
  for (name, o), (top, bottom) in zip(examples.items(), all_axes.T, strict=True):
    position_N, block_N = np.asarray(o.position_BxN[0]), np.asarray(o.block_BxN[0])
    step_N = np.unique(block_N, return_inverse=True)[1]
    for position, step in zip(position_N, step_N, strict=True):
      color = plt.cm.viridis(step / 7)
      top.add_patch(plt.Rectangle((position - 1, 0), 0.92, 0.92, color=color))
      top.text(position - 0.54, 0.46, step + 1, ha='center', va='center', color='white')
    top.set(xlim=(-0.1, 8.1), ylim=(-0.1, 1.1), aspect='equal', title=name)
    top.set_xlabel('position in the text; number: step', fontsize=8)
    top.set(xticks=[], yticks=[])
    top.set_frame_on(False)

    start_N, end_N = (np.asarray(x[0]) for x in orders.block_bounds(o.block_BxN))
    for n in range(8):
      for k in range(8):
        color = CONTENT if k < start_N[n] else QUERY if k < end_N[n] else HIDDEN
        bottom.add_patch(plt.Rectangle((k, 7 - n), 0.94, 0.94, color=color))
    ticks = np.arange(8) + 0.47
    bottom.set(xlim=(-0.1, 8.1), ylim=(-0.1, 8.1), aspect='equal')
    bottom.set_xticks(ticks, position_N, fontsize=8)
    bottom.set_yticks(ticks, position_N[::-1], fontsize=8)
    bottom.set_xlabel('key: position, in generation order', fontsize=8)
    bottom.tick_params(length=0)
    bottom.set_frame_on(False)
  all_axes[1, 0].set_ylabel('row: position, in generation order', fontsize=8)
  handles = [
    plt.Rectangle((0, 0), 1, 1, color=CONTENT, label='earlier blocks: in $M^{sc}$ and $M^c$'),
    plt.Rectangle((0, 0), 1, 1, color=QUERY, label='own block: in $M^c$ only'),
    plt.Rectangle((0, 0), 1, 1, color=HIDDEN, label='hidden'),
  ]
  figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
  figure.savefig(path, dpi=120)
  plt.close(figure)

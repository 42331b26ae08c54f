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

"""The pictures that the project draws."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')  # files only; no screen is needed

import matplotlib.pyplot as plt
import numpy as np

from armd_jax.config import OrderConfig
from armd_jax.evaluate import Score

CONTENT, QUERY, HIDDEN = '#2a6fbb', '#d9822b', '#f2f2f2'


def loss_curve(
  metrics_file: pathlib.Path, sbp_start: int, order: OrderConfig, path: pathlib.Path
) -> None:
  """Training and held-out loss over steps, with the phases of the order schedule."""
  records = [json.loads(line) for line in metrics_file.read_text().splitlines()]
  train = [(r['step'], r['loss']) for r in records if 'loss' in r]
  held_out = [(r['step'], r['held_out']) for r in records if 'held_out' in r]
  figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
  axes.plot(*zip(*train, strict=True), color=CONTENT, lw=1, label='training batch')
  axes.plot(*zip(*held_out, strict=True), 'o-', color=QUERY, label='held out, left-to-right')
  for step, name in (
    (0, 'left-to-right'),
    (order.ar_steps, f'up to {order.rho} shuffled'),
    (sbp_start, 'strided'),
  ):
    axes.axvline(step, color='grey', lw=0.5)
    axes.text(
      step, 0.98, f' {name}', va='top', fontsize=8, rotation=90, color='grey',
      transform=axes.get_xaxis_transform(),
    )  # fmt: skip
  axes.set(xlabel='step', ylabel='nats per token', title='Loss')
  axes.legend()
  axes.grid(alpha=0.3)
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

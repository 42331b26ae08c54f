"""The rows as a picture: `... picture --out=FOLDER`."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from armd_jax.bench.device import goals, page
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.cases import DECODED, KINDS, STEPS, TIMES, decode_key, peer_key, time_key
from armd_jax.show import plots

KERNELS = ('ours', 'cudnn', 'torch flash', 'torch cudnn', 'xla')
COLORS = (plots.CONTENT, plots.QUERY, *plots.OTHERS)
BATCHES = (1, 8)


def _number(rows, stages, key, name):
  """NaN, which is not drawn, where there is none."""
  for stage in stages:
    row = rows.get((stage, key), {})
    if name in row and not rows_lib.failed(row):
      return row[name]
  return np.nan


def attention(axes: Any, rows: page.Rows, kind: str) -> None:
  """TFLOP/s of every kernel at every training shape of one stream, and ours of two."""
  cases = [case for case in TIMES if not case.decodes]
  width = 0.8 / len(KERNELS)
  for index, (kernel, color) in enumerate(zip(KERNELS, COLORS, strict=True)):
    keys = [time_key(case, kernel, kind) for case in cases]
    rates = [_number(rows, ('times', 'torch'), key, 'tflops') for key in keys]
    axes.bar(np.arange(len(cases)) + index * width, rates, width, color=color, label=kernel)
  labels = [case.key.removeprefix('train_').replace('_', ' ', 1) for case in cases]
  axes.set_xticks(np.arange(len(cases)) + 0.4 - width / 2, labels, rotation=30, ha='right')
  axes.set(ylabel='useful TFLOP/s', title=f'Attention, {goals.AS_TEXT[kind]}')
  axes.margins(y=0.15)  # for the legend
  _finish(axes, loc='upper center', ncols=len(KERNELS))


def training(axes: Any, rows: page.Rows) -> None:
  """Tokens per second of every step, with its MFU."""
  found = [(step, rows.get(('train', step.key), {})) for step in STEPS]
  found = [(step, row) for step, row in found if 'ms' in row][::-1]
  rates = [row['tokens_per_s'] for _, row in found]
  colors = [plots.CONTENT if step.family == 'armd' else plots.QUERY for step, _ in found]
  axes.barh(range(len(found)), rates, color=colors)
  for place, (_, row) in enumerate(found):
    mfu = '' if row['mfu'] is None else f', MFU {row["mfu"]:.2f}'
    axes.text(row['tokens_per_s'], place, f' {row["ms"]:.0f} ms{mfu}', va='center', fontsize=7)
  axes.set_yticks(
    range(len(found)), [step.key.removeprefix('gpt2_') for step, _ in found], fontsize=7
  )
  axes.set(xlabel='tokens per second', title='Training step')
  axes.margins(x=0.3)
  axes.grid(alpha=0.3, axis='x')
  axes.set_axisbelow(True)


def decoding(axes: Any, rows: page.Rows) -> None:
  """Tokens per second over S, beside AR and transformers."""
  streams = sorted({streams for _, streams, _ in DECODED})
  for batch, color in zip(BATCHES, COLORS, strict=False):
    rate = lambda key: _number(rows, ('decode',), key, 'tokens_per_s')
    rates = [rate(decode_key('armd', s, batch)) for s in streams]
    axes.plot(streams, rates, 'o-', color=color, label=f'ARMD, batch {batch}')
    others = {
      'AR': ('--', rate(decode_key('ar', 1, batch))),
      'transformers': (':', _number(rows, ('peers',), peer_key(batch), 'tokens_per_s')),
    }
    for name, (style, value) in others.items():
      if np.isfinite(value):
        axes.axhline(value, color=color, ls=style, lw=1, label=f'{name}, batch {batch}')
  axes.set(xscale='log', xlabel='S', ylabel='tokens per second', title='Decoding, GPT-2 small')
  if any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
    axes.set_yscale('log')
  axes.set_xticks(streams, streams)
  axes.xaxis.minorticks_off()
  axes.margins(y=0.25)
  _finish(axes, loc='upper left', ncols=len(BATCHES))


def _finish(axes, **legend):
  axes.legend(fontsize=8, **legend)
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)


def draw(rows: page.Rows, path: pathlib.Path) -> None:
  """All panels; a dry run is called one."""
  figure, ((forward, both), (train, decode)) = plt.subplots(
    2, 2, figsize=(14, 9), layout='constrained'
  )
  for axes, kind in zip((forward, both), KINDS, strict=True):
    attention(axes, rows, kind)
  training(train, rows)
  decoding(decode, rows)
  told = f'{page.devices(rows)}. Goals: {page.counted(goals.judge(rows))}'
  dry = page.is_dry(rows)
  title = f'{page.DRY}\n{told}' if dry else told
  figure.suptitle(title, color='firebrick' if dry else 'black', fontsize=11)
  plots.save(figure, path)


if __name__ == '__main__':
  OUT = pathlib.Path(re.fullmatch('--out=(.+)', sys.argv[1])[1])  # type: ignore[index]
  draw(rows_lib.read(OUT), OUT / page.PICTURE)

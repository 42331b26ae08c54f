"""Draws the walk over the tiles of a mask, for one small example of each generation order.

python -m armd_jax.bench.attention.draw --path=docs/attention_walk.png
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from armd_jax import cli, order
from armd_jax.attention import tiles
from armd_jax.flags import flag
from armd_jax.show import plots

matplotlib.use('Agg')  # files only; no screen is needed

import matplotlib.pyplot as plt

SLOTS = 16
GRID = tiles.Grid(batch=1, query_tiles=4, spans=1, span_tiles=4, rows=4, keys=4)
SKIPPED, VISIBLE, HIDDEN, PARTIAL = '#f2f2f2', '#2a6fbb', '#c6daef', '#d9822b'


def examples() -> dict[str, np.ndarray]:
  """Lengths `[streams, rows]` of each example; rows of decoding are in a tile of their own."""
  keys = jax.random.split(jax.random.key(1), 1)
  orders = {
    'left to right': order.left_to_right(SLOTS),
    'strided, S = 4': order.strided(SLOTS, jnp.array([4])),
    'random blocks': order.masking_blocks(keys, SLOTS, 5, 'linear'),
  }
  lengths = {}
  for name, example in orders.items():
    start, end = order.block_bounds(example.block_BxN)
    lengths[f'{name}: content'] = np.asarray(end)
    lengths[f'{name}: query'] = np.asarray(start)
    lengths[f'{name}: both in one walk'] = np.stack([end[0], start[0]])
  return lengths


def draw(axes, name: str, lengths_RxN: np.ndarray) -> None:
  """One mask: grey tiles are never loaded, orange frames are masked, numbers are the walk."""
  axes.set_title(name, fontsize=9)
  axes.set(xlim=(0, SLOTS), ylim=(SLOTS, 0), xticks=[], yticks=[], aspect='equal')
  steps, codes = tiles.walk(jnp.asarray(lengths_RxN)[None], GRID)
  axes.add_patch(plt.Rectangle((0, 0), SLOTS, SLOTS, color=SKIPPED))
  for step, code in enumerate(np.asarray(codes)[: int(steps)]):
    corner = GRID.keys * GRID.key(code), GRID.rows * GRID.query(code)
    axes.add_patch(plt.Rectangle(corner, GRID.keys, GRID.rows, color=HIDDEN))
    for row in range(GRID.rows):
      for stream, lengths in enumerate(lengths_RxN):
        height = 1 / len(lengths_RxN)
        top = corner[1] + row + stream * height
        width = np.clip(lengths[corner[1] + row] - corner[0], 0, GRID.keys)
        axes.add_patch(plt.Rectangle((corner[0], top), width, height, color=VISIBLE, lw=0))
    edge = PARTIAL if GRID.partial(code) else 'white'
    frame = plt.Rectangle(corner, GRID.keys, GRID.rows, fill=False, ec=edge, lw=2)
    frame.set_zorder(2 + GRID.partial(code))
    axes.add_patch(frame)
    axes.text(corner[0] + 0.3, corner[1] + 1.2, str(step + 1), color='black', fontsize=8, zorder=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  path: str = flag(
    'Where to write the picture.', 'docs/attention_walk.png', is_path=True, writes='picture'
  )


def main(options: Options) -> None:
  lengths = examples()
  figure, grid = plt.subplots(3, 3, figsize=(8, 8.6), layout='constrained')
  for axes, (name, lengths_RxN) in zip(grid.flat, lengths.items(), strict=True):
    draw(axes, name, lengths_RxN)
  plots.save(figure, options.path)


if __name__ == '__main__':
  cli.run(main, Options)

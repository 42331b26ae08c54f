"""What the rows of each family see, drawn: the picture of docs/families.md."""

from __future__ import annotations

import dataclasses
import pathlib

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from armd_jax.models.rows import full_rows, up_to_themselves
from armd_jax.objectives import esolm
from armd_jax.order import GenerationOrder, left_to_right, strided
from armd_jax.show.plots import CONTENT, HIDDEN, QUERY, save

SIZE = 8
_V = [[0.9, 0.3, 0.8, 0.7, 0.2, 0.1, 0.6, 0.5]]  # of `esolm.order_of`: tokens 6, 5 and 2 come first
_SHOWN = 0.4
_ORDER = [1, 3, 2, 4, 6, 5, 8, 7]  # that SetDLM's policy may draw
_HIDDEN, _TOKEN, _MASK = range(3)


@dataclasses.dataclass(frozen=True)
class Mask:
  """A picture of one text.

  Attributes:
    families: names of those that it shows.
    title: above it.
    position_N: of the rows, and of the keys, in their order.
    seen_NxN: of each row and key, 1: it sees the token; 2: a row that has none; 0: neither.
  """

  families: tuple[str, ...]
  title: str
  position_N: np.ndarray
  seen_NxN: np.ndarray


def masks() -> list[Mask]:
  """One or two of every family, from the rows that its network runs."""
  masked_N, own_NxN = np.arange(SIZE) % 3 != 1, np.eye(SIZE, dtype=int)
  of_denoisers = np.broadcast_to(np.where(masked_N, _MASK, _TOKEN), (SIZE, SIZE))
  phases = {
    'diffusion phase': esolm.order_of(jnp.array(_V), jnp.array([_SHOWN]), jnp.array([True])),
    'sequential phase': esolm.order_of(jnp.array(_V), jnp.array([_SHOWN]), jnp.array([False])),
  }
  first = int((np.array(_V) < _SHOWN).sum())
  return [
    _along('ar', 'AR', left_to_right(SIZE)),
    _along('armd', 'ARMD, strided, S = 2', strided(SIZE, 2), causal=True),
    Mask(
      ('mdlm', 'd3pm', 'sedd', 'radd'), 'MDLM, D3PM, SEDD, RADD', np.arange(1, SIZE + 1),
      of_denoisers,
    ),
    Mask(('bd3lm',), 'BD3-LM, blocks of 4', np.arange(1, SIZE + 1), _of_blocks(masked_N)),
    Mask(('setdlm',), 'SetDLM', np.array(_ORDER), np.tri(SIZE, k=-1, dtype=int) + _MASK * own_NxN),
    *(_along('esolm', f'Eso-LM, {name}', order, first=first) for name, order in phases.items()),
  ]  # fmt: skip


def _of_blocks(masked_N: np.ndarray) -> np.ndarray:
  """Clean tokens of earlier blocks, noised ones of a row's own."""
  block_N = np.arange(SIZE) // 4
  own_NxN = np.where(block_N[:, None] == block_N, np.where(masked_N, _MASK, _TOKEN), _HIDDEN)
  return np.where(block_N[:, None] > block_N, _TOKEN, own_NxN)


def _along(
  family: str, title: str, order: GenerationOrder, *, first: int = 0, causal: bool = False
) -> Mask:
  """Of query rows; the first ones are clean, and drawn as the content rows that they are there for.

  Args:
    first: how many.
    causal: whether there are layers without content rows, where query rows see those of their own
      block, too.
  """
  rows = full_rows(order)
  column_N, seen = np.arange(SIZE), np.zeros((SIZE, SIZE), int)
  if causal:
    seen = np.where(column_N < np.asarray(rows.causal_length_BxW[0])[:, None], _MASK, seen)
  # Content row n holds slot n - 1: BOS, which all see, is left out.
  seen = np.where(column_N < np.asarray(rows.query_length_BxW[0])[:, None] - 1, _TOKEN, seen)
  content_N = np.append(np.asarray(up_to_themselves(rows).content_length_BxW[0])[1:] - 1, SIZE)
  clean = column_N < content_N[:, None]
  seen[:first] = np.where(clean, _TOKEN, _HIDDEN)[:first]
  return Mask((family,), title, np.asarray(order.position_BxN[0]), seen)


def draw(path: pathlib.Path) -> None:
  """All masks, four in a row; below them, what the colours are."""
  found = masks()
  rows = -(-len(found) // 4)
  figure, grid = plt.subplots(
    rows, 4, figsize=(10, 3.1 * rows), layout='constrained', squeeze=False
  )
  all_axes = grid.ravel()
  for axes in all_axes[len(found) :]:
    axes.set_axis_off()
  colors = {_HIDDEN: HIDDEN, _TOKEN: CONTENT, _MASK: QUERY}
  for mask, axes in zip(found, all_axes, strict=False):
    for (row, key), kind in np.ndenumerate(mask.seen_NxN):
      place = key, SIZE - 1 - row
      axes.add_patch(plt.Rectangle(place, 0.94, 0.94, color=colors[int(kind)]))
    ticks = np.arange(SIZE) + 0.47
    axes.set(xlim=(-0.1, SIZE + 0.1), ylim=(-0.1, SIZE + 0.1), aspect='equal')
    axes.set_xticks(ticks, mask.position_N, fontsize=8)
    axes.set_yticks(ticks, mask.position_N[::-1], fontsize=8)
    axes.set_xlabel('key: position', fontsize=8)
    axes.tick_params(length=0)
    axes.set_frame_on(False)
    axes.set_title(mask.title, fontsize=10)
  for axes in grid[:, 0]:
    axes.set_ylabel('row: position', fontsize=8)
  labels = {_TOKEN: 'the token there', _MASK: 'a row there without its token', _HIDDEN: 'hidden'}
  handles = [
    plt.Rectangle((0, 0), 1, 1, color=colors[kind], label=label) for kind, label in labels.items()
  ]
  figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False)
  save(figure, path)

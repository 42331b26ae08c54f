"""Tile counts and walks against brute force over the mask."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax import order
from armd_jax.attention import shapes, tiles, tpu_blocks
from armd_jax.bench.attention import tune

SLOTS = 24


def _orders():
  keys = jax.random.split(jax.random.key(0), 3)
  shuffled = order.shuffled(keys, SLOTS, 5, 'scatter')
  size = np.random.default_rng(0).integers(1, 6, SLOTS)
  block = np.repeat(np.arange(SLOTS), size)[:SLOTS]
  blocks = order.GenerationOrder(shuffled.position_BxN[:1], jnp.asarray(block, jnp.int32)[None])
  return {
    'left_to_right': order.left_to_right(SLOTS),
    'shuffled': shuffled,
    'random_blocks': blocks,
    'one_block': blocks.replace(block_BxN=jnp.zeros((1, SLOTS), jnp.int32)),
  }


def _lengths(name):
  if name == 'not_monotone':
    return np.random.default_rng(1).integers(0, SLOTS + 1, (2, 2, SLOTS))
  if name == 'nothing':
    return np.zeros((1, 1, SLOTS), np.int64)
  start, end = order.block_bounds(_orders()[name].block_BxN)
  return np.stack([np.asarray(end), np.asarray(start)], axis=1)


def _grids(batch):
  for rows, keys, spans in ((4, 4, 1), (8, 4, 1), (2, 6, 2), (24, 24, 1), (4, 2, 3)):
    yield tiles.Grid(batch, SLOTS // rows, spans, SLOTS // keys // spans, rows, keys)


def _brute_force(lengths, grid):
  """Sets of (batch, query tile, key tile): those with a visible pair, those that also hide one."""
  active, partial = set(), set()
  for batch in range(grid.batch):
    visible = np.arange(SLOTS) < lengths[batch, :, :, None]
    for query in range(grid.query_tiles):
      for key in range(grid.spans * grid.span_tiles):
        tile = visible[:, query * grid.rows :, key * grid.keys :][:, : grid.rows, : grid.keys]
        if tile.any():
          active.add((batch, query, key))
          if not tile.all():
            partial.add((batch, query, key))
  return active, partial


def _walk(lengths, grid):
  steps, codes = jax.jit(tiles.walk, static_argnums=1)(jnp.asarray(lengths, jnp.int32), grid)
  return np.asarray(codes)[: int(steps)].tolist()


NAMES = ('left_to_right', 'shuffled', 'random_blocks', 'one_block', 'not_monotone', 'nothing')


@pytest.mark.parametrize('name', NAMES)
def test_walk_and_count_are_the_brute_force_minimum(name):
  lengths = _lengths(name)
  for grid in _grids(lengths.shape[0]):
    active, partial = _brute_force(lengths, grid)
    codes = _walk(lengths, grid)
    place = [
      (grid.batch_of(c), grid.query(c), grid.span(c) * grid.span_tiles + grid.key(c)) for c in codes
    ]
    # Besides the active tiles, only the first of a query tile and span, for its outputs.
    extra = set(place) - active
    assert len(set(place)) == len(place)
    assert active <= set(place)
    assert all(key % grid.span_tiles == 0 for _, _, key in extra)
    assert {p for p, c in zip(place, codes, strict=True) if grid.partial(c)} == partial | extra

    found = tiles.count(lengths, grid)
    assert (found.steps, found.active, found.partial) == (len(codes), len(active), len(partial))
    assert found.pairs == lengths.sum()
    assert found.tile_pairs == len(active) * grid.rows * grid.keys * lengths.shape[1]
    key_tiles = [(batch, key) for batch, _, key in place]
    changes = sum(a != b for a, b in itertools.pairwise(key_tiles))
    assert found.key_tiles_loaded == 1 + changes


@pytest.mark.parametrize('name', NAMES)
def test_last_marks_the_end_of_every_query_tile(name):
  lengths = _lengths(name)
  for grid in _grids(lengths.shape[0]):
    codes = _walk(lengths, grid)
    rows = [(grid.batch_of(c), grid.span(c), grid.query(c)) for c in codes]
    assert rows == sorted(rows)
    ends = [i + 1 == len(rows) or rows[i + 1] != row for i, row in enumerate(rows)]
    assert [bool(grid.last(c)) for c in codes] == ends
    starts = [i == 0 or rows[i - 1] != row for i, row in enumerate(rows)]
    assert [grid.key(c) == 0 for c in codes] == starts
    assert len(set(rows)) == grid.batch * grid.spans * grid.query_tiles


@pytest.mark.parametrize('chip', tpu_blocks.CHIPS)
@pytest.mark.parametrize('name', shapes.NAMED)
def test_second_stream_moves_no_more_keys(name, chip):
  shape = shapes.NAMED[name]
  moved = []
  for streams in (1, 2):
    copies, num_rows = tune.sizes(shape, streams)
    lengths = shape.lengths(streams)
    if num_rows != shape.rows:  # folded: streams and heads are more rows
      lengths = np.repeat(lengths, shape.heads // shape.groups, axis=1).reshape(1, 1, -1)
    for blocks in tpu_blocks.choose(chip, copies, num_rows, shape.keys, shape.head_dim, 2):
      grid = blocks.grid(1, num_rows, shape.keys)
      padding = grid.query_tiles * grid.rows - num_rows
      padded = np.pad(lengths, ((0, 0), (0, 0), (0, padding)), 'edge')
      moved.append(tiles.count(padded, grid).key_value_bytes(grid, shape.head_dim, 2))
  assert moved[2] <= 1.05 * moved[0]
  assert moved[3] <= 1.05 * moved[1]


def _long_orders(slots):
  keys = jax.random.split(jax.random.key(0), 1)
  return {
    'left_to_right': order.left_to_right(slots),
    'strided': order.strided(slots, jnp.array([4])),
    'shuffled': order.shuffled(keys, slots, 32, 'scatter'),
    'masking_blocks': order.masking_blocks(keys, slots, 64, 'linear'),
    'cosine_blocks': order.masking_blocks(keys, slots, 1000, 'cosine'),
  }


@pytest.mark.parametrize('name', _long_orders(8))
def test_shipped_tiles_are_the_brute_force_minimum(name):
  slots = 4096
  start, end = order.block_bounds(_long_orders(slots)[name].block_BxN)
  lengths = np.stack([np.asarray(end), np.asarray(start)], axis=1)
  visible = np.arange(slots) < lengths[0, :, :, None]
  cuts = {
    (b.rows, b.keys)
    for chip, copies in itertools.product(tpu_blocks.CHIPS, (1, 4))
    for itemsize in (2, 4)
    for b in tpu_blocks.choose(chip, copies, slots, slots, 128, itemsize)
  }
  for rows, keys in cuts:
    tiled = visible.reshape(2, slots // rows, rows, slots // keys, keys)
    active, full = tiled.any((0, 2, 4)), tiled.all((0, 2, 4))
    grid = tiles.Grid(1, slots // rows, 1, slots // keys, rows, keys)
    found = tiles.count(lengths, grid)
    assert (found.active, found.partial) == (active.sum(), (active & ~full).sum())
    codes = _walk(lengths, grid)
    # Besides the active tiles, only the first of each query tile, for its outputs.
    assert {(grid.query(c), grid.key(c)) for c in codes} == {
      (query, key) for query, key in np.ndindex(active.shape) if active[query, key] or key == 0
    }
    assert sum(grid.partial(c) for c in codes) == found.partial + found.steps - found.active

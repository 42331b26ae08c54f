"""The attention benchmark on a machine without the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax import attention, records
from armd_jax.attention import shapes
from armd_jax.bench.attention import compile_hopper, compile_tpu
from armd_jax.bench.attention import timed as bench
from armd_jax.errors import UserError

PASS = {
  'blocks': [512, 256, 128, 128],
  'active': 3,
  'partial': 2,
  'cycles_per_active_tile': 100,
  'key_value_bytes': 10**6,
  'useful': 0.5,
}
SPILLS = {'wgmma': 8, 'bulk_tensor_copies': 2, 'spill_stores': 0, 'spill_loads': 0}


def keep(path, stamp, found):
  for key, record in found.items():
    records.Records(path).add(key, stamp, record)


def test_compiled_view_of_tpus_lists_every_program_beside_the_best_peer(tmp_path):
  path, peers = tmp_path / 'aot.json', tmp_path / 'peers.json'
  program = {'forward': PASS, 'backward': PASS | {'useful': 0.7}}
  keep(path, compile_tpu.stamp(), {'bfloat16 v5e train_1024_12x64 x2': program})
  best = {'v5e train_1024_12x64': {'forward': [0.4, 'splash', ''], 'backward': [0.6, 'splash', '']}}
  keep(peers, 'any', best)
  (row,) = bench.compiled_tpu_rows(path, peers)
  assert (row['chip'], row['shape'], row['streams']) == ('v5e', 'train_1024_12x64', 2)
  assert (row['tile'], row['active'], row['partial']) == ('512x256', 3, 2)
  assert (row['useful'], row['peer']) == (0.5, 0.4)
  assert (row['useful backward'], row['peer backward']) == (0.7, 0.6)
  assert row['key-value MB'] == 12
  # 2 products of 2 x 64 operations for 12 heads and the pairs of both streams.
  assert row['GFLOP'] == pytest.approx(4e-9 * 64 * 12 * 1024 * 1024)


def test_compiled_view_of_hopper_counts_tiles_by_brute_force(tmp_path):
  path = tmp_path / 'aot.json'
  program = dict.fromkeys(('forward', 'dq', 'dkv'), SPILLS)
  programs = {f'{dtype} train_1024_12x64 x2': program for dtype in ('bfloat16', 'float16')}
  keep(path, compile_hopper.stamp(), programs)
  (row,) = bench.compiled_hopper_rows(path)
  rows, keys = map(int, row['tile'].split('x'))
  slots, seen = np.arange(1, 1025).reshape(-1, rows), np.arange(1024).reshape(-1, keys)
  active = slots.max(1)[:, None] > seen.min(1)
  hidden = slots.min(1)[:, None] - 1 <= seen.max(1)  # the query stream stops before its own slot
  assert row['active'] == active.sum()
  assert row['partial'] == (active & hidden).sum()
  assert row['forward spills'] == 0
  assert row['key-value MB'] == pytest.approx(12 * active.sum() * 2 * keys * 64 * 2 / 1e6)


@pytest.mark.parametrize('function', [bench.compiled_tpu_rows, bench.compiled_hopper_rows])
def test_compiled_view_says_what_is_missing(function, tmp_path):
  path = tmp_path / 'aot.json'
  rest = (tmp_path / 'peers.json',) if function is bench.compiled_tpu_rows else ()
  with pytest.raises(UserError, match='python -m armd_jax'):
    function(path, *rest)
  keep(path, 'old', {'bfloat16 v5e train_1024_12x64 x2': {}})
  with pytest.raises(UserError, match='other sources'):
    function(path, *rest)


@pytest.mark.parametrize('backward', [False, True])
def test_chained_calls_change_nothing_and_are_all_made(backward):
  made = []

  def attend(q, k, v):
    jax.debug.callback(lambda: made.append(1))
    return attention.prefix_attention(q, k, v, jnp.ones((1, 1, 4), jnp.int32), backend='reference')

  q = jnp.ones((1, 1, 4, 1, 8))
  result = bench.chained(attend, backward, 3)(q, q[:, 0], q[:, 0])
  jax.effects_barrier()
  np.testing.assert_array_equal(result, q)
  assert len(made) == 3


def test_every_shape_has_its_tiles_on_hopper():
  for shape in shapes.NAMED.values():
    for streams in (1, 2):
      count, grid, passes = bench.hopper_tiles(shape, streams)
      assert count.active * grid.rows * grid.keys * passes > 0

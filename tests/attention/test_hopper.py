"""The Hopper kernels in the Mosaic GPU interpreter, held to the bounds of `test_prefix_attention`.

Under the interpreter every barrier, every copy and every slot of a ring is real, memory starts as
NaN and races are looked for. It lacks products with an operand in registers, so
`hopper_parts.add_products` multiplies in another way there: that one line is compiled (see
`armd_jax.bench.attention.compile_hopper`), but run only by `pytest --device` on an H100.
"""

import dataclasses
import functools
import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import on_device
import pytest
from attention import test_prefix_attention as suite

from armd_jax import attention
from armd_jax.attention import hopper, hopper_blocks, hopper_parts, ptxas, shapes
from armd_jax.bench.attention import timed as bench
from armd_jax.hardware import device

# The other chip's kernels, and tools that drills do not run.
DRILL_WITHOUT = (
  'armd_jax/bench/attention/*.py',
  'armd_jax/attention/tpu*.py',
  'armd_jax/bench/*.py',
  'armd_jax/cli.py',
  'armd_jax/hardware/chips.py',
)
TILE = hopper_blocks.TILE_ROWS
INTERPRETER = jax.__version_info__ >= (0, 12)  # see `device.interpreting_hopper`


def _attend(*arrays):
  return attention.prefix_attention(*arrays, backend='pallas_hopper')


def _interpreting():
  if not INTERPRETER:
    pytest.skip('the interpreter of this jax lacks primitives: install jax 0.12 (Python 3.12)')
  return device.interpreting_hopper()


BACKEND = (_attend, functools.partial(on_device.kernels, 'gpu', _interpreting))


def check(case):
  if case.dtype == 'float32':
    case = dataclasses.replace(case, dtype='bfloat16')
  suite.check(BACKEND, case)


def _drill_unless(names, every):
  return [name if name in names else pytest.param(name, marks=pytest.mark.drill) for name in every]


@pytest.mark.parametrize(
  'name', _drill_unless(('duplicated', 'not_monotone', 'smaller_than_a_tile'), suite.SPECIAL)
)
def test_special(name):
  check(suite.SPECIAL[name])


def test_query_tile_that_sees_nothing_between_tiles_that_see_all():
  lengths = np.repeat([256, 0, 256], [128, 64, 64])[None, None].astype(np.int32)
  check(suite.Case(lengths, 256, dtype='bfloat16'))


def test_large_logits():
  lengths = suite.causal(136, 2)
  check(suite.Case(lengths, 136, heads=2, groups=1, head_dim=128, magnitude=30))


def test_nothing_visible_is_exactly_zero():
  case = dataclasses.replace(suite.SPECIAL['nothing_visible'], dtype='float16')
  for found in suite.evaluate(BACKEND, *case.arrays(), case.lengths):
    assert (found == 0).all()


def test_twice_is_bit_equal():
  case = suite.Case(suite.causal(136, 2), 136, dtype='bfloat16')
  runs = [suite.evaluate(BACKEND, *case.arrays(), case.lengths) for _ in range(2)]
  for a, b in zip(*runs, strict=True):
    np.testing.assert_array_equal(a, b)


# Few rows are folded, and a stream is no more than further rows then.
AS_RUN = [
  pytest.param(
    *(name, streams),
    marks=() if name in ('train_1024_16x128', 'decode_8_of_1024_32/8x128') else pytest.mark.drill,
  )
  for name in suite.DISTINCT
  for streams in ((2,) if shapes.NAMED[name].decodes else (1, 2))
]


@pytest.mark.parametrize(('name', 'streams'), AS_RUN)
def test_named_shape(name, streams):
  case = suite.shrunk_case(shapes.NAMED[name], streams, 'bfloat16')
  # One key head will do: the others are more blocks of the grid.
  check(dataclasses.replace(case, heads=case.heads // 2, groups=1))


@st.composite
def cases(draw):
  case = draw(suite.cases())
  return dataclasses.replace(case, dtype=draw(st.sampled_from(hopper.DTYPES)))


@suite._random(2)
@hypothesis.given(case=cases())
def test_random(case):
  check(case)


@pytest.mark.drill
@suite._random(30)
@hypothesis.given(case=cases())
def test_many_random(case):
  check(case)


# ---- without the interpreter -------------------------------------------------------------------


def _arrays(rows=160, head_dim=64, dtype=jnp.bfloat16):
  shape = (1, 1, rows, 2, head_dim)
  q = jnp.ones(shape, dtype)
  return q, q[:, 0], q[:, 0], jnp.ones((1, 1, rows), jnp.int32)


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'head_dim': 96}, 'head dimension 96 is not one of'),
    ({'dtype': jnp.float32}, 'rounded to TF32'),
    ({'rows': 0}, 'are empty'),
  ],
)
def test_explicit_choice_that_cannot_run_says_why(options, reason):
  with device.compiling_for(device.HOPPER), pytest.raises(ValueError, match=reason):
    attention.prefix_attention(*_arrays(**options), backend='pallas_hopper')


@pytest.mark.parametrize(('version', 'refused'), [((12, 9, 41), True), ((12, 9, 86), False)])
def test_an_assembler_that_compiles_masks_wrongly_is_refused(monkeypatch, version, refused):
  assembler = ptxas.Ptxas(pathlib.Path('/cuda/bin/ptxas'), version)
  monkeypatch.setattr(ptxas, 'mosaic', lambda: assembler)
  assert hopper.unsupported(*_arrays()[:3]) is None  # nothing is assembled on a CPU
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert (hopper.unsupported(*_arrays()[:3]) is not None) == refused


def test_an_assembler_with_known_bugs_is_warned_of_once(monkeypatch, caplog):
  assembler = ptxas.Ptxas(pathlib.Path('/another/bin/ptxas'), (13, 0, 88))
  monkeypatch.setattr(ptxas, 'mosaic', lambda: assembler)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with device.compiling_for(device.HOPPER):
    for rows in (8, 16):
      jax.eval_shape(_attend, *_arrays(rows=rows))
  assert [record.message for record in caplog.records].count(f'attention: {assembler.warning}') == 1


def test_explicit_choice_on_another_platform_raises():
  reason = "the platform is 'tpu', not a GPU"
  with device.compiling_for('v5e'), pytest.raises(ValueError, match=reason):
    attention.prefix_attention(*_arrays(), backend='pallas_hopper')


def test_auto_takes_the_kernels_on_hopper_only(monkeypatch):
  def takes_kernels():
    # Another function each time: a trace is kept with the choice made in it.
    jaxpr = jax.make_jaxpr(lambda *a: attention.prefix_attention(*a))(*_arrays())
    return 'prefix_attention_pallas_hopper' in str(jaxpr)

  with device.compiling_for(device.HOPPER):
    assert takes_kernels()
  monkeypatch.setattr(device, 'current', lambda: device.Device('gpu', 'NVIDIA A100'))
  assert not takes_kernels()
  with pytest.raises(ValueError, match='not of the Hopper generation'):
    attention.prefix_attention(*_arrays(), backend='pallas_hopper')


def test_registers_are_no_more_than_a_block_has():
  """A warpgroup that asks for more waits forever; the interpreter knows nothing of registers."""
  compute, memory = hopper_parts.COMPUTE_REGISTERS, hopper_parts.MEMORY_REGISTERS
  threads = 128 * (hopper_blocks.WARPGROUPS + 1)
  at_start = 65536 // threads // 8 * 8
  assert hopper_blocks.WARPGROUPS * compute + memory <= (hopper_blocks.WARPGROUPS + 1) * at_start


def _orders():
  num_rows = 4 * TILE
  end = np.arange(1, num_rows + 1)
  block = np.repeat(np.arange(num_rows), np.random.default_rng(0).integers(1, 40, num_rows))
  ends = np.searchsorted(block[:num_rows], block[:num_rows], 'right')
  starts = np.searchsorted(block[:num_rows], block[:num_rows], 'left')
  return {
    'left_to_right': np.stack([end, end - 1]),
    'random_blocks': np.stack([ends, starts]),
    'everything': np.full((2, num_rows), num_rows),
    'nothing': np.zeros((2, num_rows), int),
    'last_rows_of_a_cache': np.stack([end, end - 1]) + 2 * TILE,
  }


@pytest.mark.parametrize('name', _orders())
@pytest.mark.parametrize('keys', [64, 128])
def test_key_tiles_are_visited_by_the_query_tiles_that_see_them(name, keys):
  """Tiles touched, and tiles masked, by the key-value gradient are the brute-force minimum."""
  lengths, rows = _orders()[name], 64
  num_keys = max(int(lengths.max()), 1)
  key_tiles = -(-num_keys // keys)
  first, whole, end = hopper._bounds(jnp.asarray(lengths[None], jnp.int32), rows, keys, key_tiles)
  for stream in range(2):
    for tile in range(key_tiles):
      visible = np.arange(tile * keys, (tile + 1) * keys) < lengths[stream][:, None]
      visible = visible.reshape(-1, rows, keys)
      touched = {i for i, v in enumerate(visible) if v.any()}
      masked = {i for i in touched if not visible[i].all()}
      assert set(range(first[stream, tile], end[stream, tile])) == touched
      assert set(range(first[stream, tile], whole[stream, tile])) == masked


@pytest.mark.parametrize(
  'lengths',
  [
    np.random.default_rng(1).integers(0, 300, 4 * TILE),
    np.repeat([300, 0, 300, 0], TILE),
    np.repeat([0, 300, 64, 0], TILE),
  ],
)
def test_bounds_of_lengths_that_decrease_miss_no_tile(lengths):
  lengths = lengths[None, None]
  first, whole, end = hopper._bounds(jnp.asarray(lengths, jnp.int32), 64, 128, 3)
  for tile in range(3):
    visible = np.arange(tile * 128, (tile + 1) * 128) < lengths[0, 0][:, None]
    visible = visible.reshape(-1, 64 * 128)
    for i, v in enumerate(visible):
      assert not v.any() or first[0, tile] <= i < end[0, tile]
      assert v.all() or not whole[0, tile] <= i < end[0, tile]


@pytest.mark.parametrize('name', shapes.NAMED)
def test_second_stream_moves_no_second_pass_of_keys_and_values(name):
  """But at wider heads, unless both fit one tile: a block for each stream is faster there."""
  shape = shapes.NAMED[name]
  moved = []
  for streams in (1, 2):
    count, grid, passes = bench.hopper_tiles(shape, streams)
    moved.append(passes * count.active * grid.keys)
  folded, _ = hopper_blocks.folded(2, shape.heads // shape.groups, shape.rows)
  limit = 1.05 if shape.head_dim == 64 or folded == 2 else 2.1
  assert moved[1] <= limit * moved[0]

"""Generation orders: what every kind promises, and the published schedules and step counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import order


def keys(count, seed=0):
  return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_positions_are_permutations_and_blocks_rise(name):
  o = tiny.orders()[name]
  np.testing.assert_array_equal(np.sort(o.position_BxN, axis=1)[0], np.arange(1, 17))
  assert (np.diff(o.block_BxN, axis=1) >= 0).all()
  assert o.position_BxN.dtype == o.block_BxN.dtype == jnp.int32


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_block_bounds_equal_brute_force(name):
  block_BxN = np.asarray(tiny.orders()[name].block_BxN)
  start_BxN, end_BxN = order.block_bounds(jnp.asarray(block_BxN))
  np.testing.assert_array_equal(start_BxN, (block_BxN[:, None] < block_BxN[..., None]).sum(-1))
  np.testing.assert_array_equal(end_BxN, (block_BxN[:, None] <= block_BxN[..., None]).sum(-1))


def test_to_text_inverts_to_generation():
  o = tiny.orders()['uniform']
  text = jnp.arange(48).reshape(3, 16)
  slots = order.to_generation(text, o)
  assert int(slots[1, 4]) == 16 + int(o.position_BxN[1, 4]) - 1
  np.testing.assert_array_equal(order.to_text(slots, o), text)


def test_uniform_is_uniform():
  o = order.uniform(keys(6000), 3)
  counts = [
    (o.position_BxN == jnp.array(p)).all(1).sum() for p in itertools.permutations([1, 2, 3])
  ]
  # 6 cells of 1000 expected: chi-square with 5 degrees of freedom, 20.5 is its 99.9% point.
  assert sum((int(c) - 1000) ** 2 / 1000 for c in counts) < 20.5


@pytest.mark.parametrize('mode', ['scatter', 'window'])
@pytest.mark.parametrize('budget', [0, 1, 2, 5, 16])
def test_shuffled_moves_at_most_the_budget(mode, budget):
  o = jax.jit(order.shuffled, static_argnums=(1, 3))(keys(200), 16, budget, mode)
  position = np.asarray(o.position_BxN)
  np.testing.assert_array_equal(np.sort(position, axis=1), np.tile(np.arange(1, 17), (200, 1)))
  moved = position != np.arange(1, 17)
  assert moved.sum(1).max() == (budget if budget > 1 else 0)
  if mode == 'window' and budget > 1:
    first, last = moved.argmax(1), 15 - moved[:, ::-1].argmax(1)
    assert (last - first + 1)[moved.any(1)].max() <= budget
  if budget > 1:  # every slot takes part
    assert moved.any(0).all()
  np.testing.assert_array_equal(o.block_BxN[0], np.arange(1, 17))


@pytest.mark.parametrize('mode', ['scatter', 'window'])
def test_shuffled_permutes_uniformly(mode):
  """k = N is a uniform permutation: every token is equally often at every slot."""
  position = np.asarray(order.shuffled(keys(5000), 4, 4, mode).position_BxN)
  share = (position[:, :, None] == np.arange(1, 5)).mean(0)
  np.testing.assert_allclose(share, 0.25, atol=0.025)  # four standard deviations


def test_shuffled_refuses_other_modes():
  with pytest.raises(ValueError, match="write 'scatter' or 'window'"):
    order.shuffled(keys(1), 4, 2, 'all')


# method section 4, our schedule: OpenWebText 9K, 48K, rho 32 (16); LM1B 100K, 300K, rho 8.
@pytest.mark.parametrize(
  ('recipe', 'expected'),
  [
    (
      (9_000, 48_000, 32),
      {0: 0, 8_999: 0, 9_000: 1, 10_258: 1, 10_259: 2, 28_500: 16, 47_999: 31, 48_000: 32},
    ),
    ((9_000, 48_000, 16), {8_999: 0, 9_000: 1, 28_500: 8, 48_000: 16}),
    (
      (100_000, 300_000, 8),
      {99_999: 0, 100_000: 1, 128_571: 1, 128_572: 2, 200_000: 4, 299_999: 7, 1_000_000: 8},
    ),
    # Beyond 2**31 at the product of both.
    ((0, 600_000, 4096), {0: 1, 146: 1, 147: 2, 525_000: 3584, 599_999: 4095, 600_000: 4096}),
  ],
)  # fmt: skip
def test_published_schedules(recipe, expected):
  budget = jax.jit(order.progressive_budget, static_argnums=(1, 2, 3))
  assert {step: int(budget(step, *recipe)) for step in expected} == expected


@pytest.mark.parametrize(('streams', 'steps'), [(1, 1024), (2, 513), (4, 259)])
def test_published_step_counts(streams, steps):
  assert order.num_blocks(order.strided(1024, streams)).tolist() == [steps]


def test_strided_interleaves_streams():
  o = order.strided(12, 3)
  assert o.position_BxN.tolist() == [[1, 5, 9, 2, 6, 10, 3, 7, 11, 4, 8, 12]]
  assert o.block_BxN.tolist() == [[1, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]]
  assert order.one_by_one(o).block_BxN.tolist() == [list(range(1, 13))]
  traced = jax.jit(order.strided, static_argnums=0)(12, jnp.int32(3))
  np.testing.assert_array_equal(traced.position_BxN, o.position_BxN)


@pytest.mark.parametrize('streams', [1, 2, 4, 16])
def test_segments_of_equal_length_in_turns_are_streams(streams):
  is_head_N = np.arange(16) % (16 // streams) == 0
  position_N = order.read_segments(jnp.asarray(is_head_N), jnp.arange(16), True)
  np.testing.assert_array_equal(position_N, order.strided(16, streams).position_BxN[0])


def test_segments_one_after_another_fill_the_middle():
  is_head_N = np.isin(np.arange(12), [0, 4, 7])
  position_N = order.read_segments(jnp.asarray(is_head_N), jnp.array([0, 2, 1]), False)
  assert position_N.tolist() == [1, 2, 3, 4, 8, 9, 10, 11, 12, 5, 6, 7]


def test_segments_of_the_longest_texts():
  """Of more tokens than an int32 has pairs of."""
  position_N = jnp.arange(1, 2**16 + 1)
  one = order.read_segments(position_N == 1, position_N - 1, True)
  np.testing.assert_array_equal(one, position_N)
  each = order.read_segments(position_N > 0, (position_N - 1)[::-1], False)
  np.testing.assert_array_equal(each, position_N[::-1])


def test_segments_are_drawn_per_sequence():
  """The numbers of cuts 1, 2..3 and 4..7 are equally likely, and so are the two ways to read."""
  max_cuts = 7
  o = jax.jit(order.segments, static_argnums=(1, 2))(keys(6000), 48, max_cuts)
  np.testing.assert_array_equal(o.block_BxN[0], np.arange(1, 49))
  position_BxN = np.asarray(o.position_BxN)
  np.testing.assert_array_equal(np.sort(position_BxN, 1), np.tile(np.arange(1, 49), (6000, 1)))
  # In turns begins with the heads: the second token of the text waits for them, unless a cut is
  # before it. One after another begins with a segment: its tokens follow each other.
  jumps_B = (np.diff(position_BxN, axis=1) != 1).sum(1)
  is_one_after_another_B = jumps_B <= max_cuts
  jumps = np.bincount(jumps_B[is_one_after_another_B], minlength=8)[:8] / 3000
  # A single cut is no jump by half of the turns; three segments have two jumps or fewer.
  log2 = np.log(2) / np.log(8)
  assert abs(is_one_after_another_B.mean() - 0.5) < 0.06
  assert abs(jumps[0] - log2 / 2) < 0.06
  place_B, count_B = np.unique(position_BxN[:, 0], return_counts=True)
  assert count_B[place_B == 1] > 3000 and len(place_B) > 40  # cuts are everywhere


@pytest.mark.parametrize('max_cuts', [1, 15])
def test_segments_with_few_and_with_all_cuts(max_cuts):
  position_BxN = np.asarray(order.segments(keys(200), 16, max_cuts).position_BxN)
  np.testing.assert_array_equal(np.sort(position_BxN, 1), np.tile(np.arange(1, 17), (200, 1)))


@pytest.mark.parametrize('streams', [1, 2, 3, 5, 20])
def test_given_first_cuts_the_rest_into_even_runs(streams):
  rng = np.random.RandomState(streams)
  given = rng.rand(40, 17) < rng.rand(40, 1)
  length = rng.randint(0, 18, 40)
  o = order.given_first(jnp.asarray(given), jnp.asarray(length), streams)
  position, block = np.asarray(o.position_BxN), np.asarray(o.block_BxN)
  for b in range(40):
    known = [p for p in range(1, 18) if given[b, p - 1] and p <= length[b]]
    free = [p for p in range(1, 18) if not given[b, p - 1] and p <= length[b]]
    g, m = len(known), len(free)
    assert position[b, :g].tolist() == known
    assert block[b, :g].tolist() == list(range(1, g + 1))
    runs = [run.tolist() for run in np.array_split(free, streams) if len(run)]
    expected = [[run[0]] for run in runs]
    for j in range(1, max(map(len, runs), default=0)):
      expected.append([run[j] for run in runs if len(run) > j])
    got = [
      position[b, g : g + m][block[b, g : g + m] == n].tolist()
      for n in np.unique(block[b, g : g + m])
    ]
    assert got == expected
    assert position[b, g + m :].tolist() == list(range(length[b] + 1, 18))
    assert (block[b, g + m :] > block[b, : g + m].max(initial=0)).all()


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_masking_blocks_follow_the_schedule(schedule):
  """P(tau <= t) = 1 - alpha(t/T), and later masked tokens come first."""
  steps, slots = 4, 64
  o = order.masking_blocks(keys(400), slots, steps, schedule)
  tau = steps + 1 - np.asarray(o.block_BxN)
  assert (np.diff(tau, axis=1) <= 0).all()
  for t in range(1, steps + 1):
    masked = t / steps if schedule == 'linear' else np.cos(np.pi / 2 * (1 - t / steps))
    np.testing.assert_allclose((tau <= t).mean(), masked, atol=0.015)  # > 4 standard deviations
  where_first = np.asarray(o.position_BxN)[:, 0]
  assert len(np.unique(where_first)) > 1  # tokens get their times independently of position
  with pytest.raises(ValueError, match="write 'linear' or 'cosine'"):
    order.masking_blocks(keys(1), 4, 2, 'log')


def test_orders_depend_on_their_own_key_only():
  together = order.uniform(keys(5), 16)
  alone = order.uniform(keys(5)[3:4], 16)
  np.testing.assert_array_equal(together.position_BxN[3:4], alone.position_BxN)


def test_select_takes_rows():
  a, b = tiny.orders()['uniform'], tiny.orders()['blocks']
  mixed = order.select(jnp.array([True, False, True]), a, b)
  np.testing.assert_array_equal(mixed.position_BxN[1], b.position_BxN[1])
  np.testing.assert_array_equal(mixed.block_BxN[2], a.block_BxN[2])


@pytest.mark.parametrize('name', sorted(tiny.orders()))
def test_given_tokens_come_first_and_padding_last(name):
  """The others follow in their order and in their blocks, and no slot but padding sees padding."""
  o = tiny.orders()[name]
  given = np.zeros((3, 16), bool)
  given[0, :5] = given[1, [2, 9]] = True
  length = np.array([11, 13, 16])
  found = jax.jit(order.with_given)(o, jnp.array(given), jnp.array(length))
  start, end = (np.asarray(x) for x in order.block_bounds(found.block_BxN))
  for b in range(3):
    row = min(b, len(o.position_BxN) - 1)
    position, block = np.asarray(o.position_BxN[row]), np.asarray(o.block_BxN[row])
    is_free = ~given[b, position - 1] & (position <= length[b])
    first = int(given[b].sum())
    real = slice(first, length[b])
    np.testing.assert_array_equal(found.position_BxN[b, :first], np.flatnonzero(given[b]) + 1)
    np.testing.assert_array_equal(found.position_BxN[b, real], position[is_free])
    assert sorted(found.position_BxN[b, length[b] :].tolist()) == [*range(length[b] + 1, 17)]
    np.testing.assert_array_equal(start[b, :first], np.arange(first))  # one by one
    starts = np.diff(block[is_free], prepend=-1) > 0
    np.testing.assert_array_equal(np.diff(start[b, real], prepend=-1) > 0, starts)
    assert end[b, : length[b]].max() <= length[b]


def test_streams_around_given_tokens_are_left_as_they_are():
  given = jnp.array([[True] * 4 + [False] * 12, [False] * 16])
  o = order.given_first(given, jnp.array([13, 10]), 3)
  found = order.with_given(o, given, jnp.array([13, 10]))
  np.testing.assert_array_equal(found.position_BxN, o.position_BxN)
  for x, y in zip(*(order.block_bounds(a.block_BxN) for a in (found, o)), strict=True):
    np.testing.assert_array_equal(x, y)

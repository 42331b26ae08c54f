"""Orders of a training step, and the likelihood of texts."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from armd_jax import order
from armd_jax.config import OrderConfig
from armd_jax.objectives import armd


def step_order_and_kinds(config, step, batch=64, num_slots=16):
  key = jax.random.fold_in(jax.random.key(0), step)
  keys_B = jax.random.split(key, batch)
  run = jax.jit(armd.training_order, static_argnums=(0, 1))
  return run(config, num_slots, step, key, keys_B)


def step_order(*args, **kwargs):
  return step_order_and_kinds(*args, **kwargs)[0]


def moved(o):
  return (np.asarray(o.position_BxN) != np.arange(1, 17)).sum(1)


def test_phases():
  config = OrderConfig(
    ar_steps=10, perm_steps=20, max_shuffled=6, strided_start=30, strided_streams=(1, 2, 4)
  )
  assert moved(step_order(config, 9)).max() == 0
  assert 0 < moved(step_order(config, 15)).max() <= 3
  assert moved(step_order(config, 29)).max() == 6
  seen = set()
  for step in range(30, 60):
    o = step_order(config, step)
    assert (o.position_BxN == o.position_BxN[:1]).all()  # S is drawn once per step
    matches = [
      s for s in (1, 2, 4) if (o.position_BxN[0] == order.strided(16, s).position_BxN[0]).all()
    ]
    assert len(matches) == 1
    np.testing.assert_array_equal(o.block_BxN[0], order.strided(16, matches[0]).block_BxN[0])
    seen |= set(matches)
  assert seen == {1, 2, 4}


def test_streams_are_drawn_for_every_sequence():
  config = OrderConfig(
    ar_steps=0, perm_steps=0, max_shuffled=0, strided_start=0, strided_streams=(1, 2, 8),
    strided_draw='sequence',
  )  # fmt: skip
  o, kind_B = step_order_and_kinds(config, 0, batch=300)
  count_S = {
    s: (np.asarray(o.position_BxN) == order.strided(16, s).position_BxN[0]).all(1)
    for s in (1, 2, 8)
  }
  assert sum(count_S.values()).all()  # each is one of them
  assert all(70 < is_s_B.sum() < 130 for is_s_B in count_S.values())
  for s, is_s_B in count_S.items():
    block_BxN = np.asarray(o.block_BxN)[is_s_B]
    np.testing.assert_array_equal(
      block_BxN, np.tile(order.strided(16, s).block_BxN, (len(block_BxN), 1))
    )
    kind = 'strided' if s > 1 else 'left_to_right'
    assert (np.asarray(kind_B)[is_s_B] == armd.ORDER_KINDS.index(kind)).all()


def test_a_share_of_the_sequences_is_cut_into_segments():
  """From `ar_steps` on, beside shuffled and strided ones, which stay as they are."""
  config = dict(ar_steps=2, perm_steps=2, max_shuffled=0, strided_start=4, strided_streams=(2,))
  for step, share in ((1, 0), (3, 0.3), (5, 0.3)):
    plain, _ = step_order_and_kinds(OrderConfig(**config), step, batch=400)
    cut = OrderConfig(**config, segments_prob=0.3, segments_cuts=15)
    o, kind_B = step_order_and_kinds(cut, step, batch=400)
    is_cut_B = np.asarray(kind_B) == armd.ORDER_KINDS.index('segments')
    assert abs(is_cut_B.mean() - share) < 0.08
    whole = np.broadcast_to(plain.position_BxN, o.position_BxN.shape)
    np.testing.assert_array_equal(o.position_BxN[~is_cut_B], whole[~is_cut_B])
    assert (np.asarray(o.block_BxN)[is_cut_B] == np.arange(1, 17)).all()
  few = OrderConfig(**config, segments_prob=1.0, segments_cuts=1)
  # A single cut, and segments that follow each other, or take turns.
  jumps_B = (np.diff(np.asarray(step_order(few, 3).position_BxN), axis=1) != 1).sum(1)
  assert (jumps_B <= 1).any() and jumps_B.max() > 5


def test_sequences_of_a_batch_differ():
  config = OrderConfig(ar_steps=0, perm_steps=0, max_shuffled=8)
  positions = np.asarray(step_order(config, 5).position_BxN)
  assert len(np.unique(positions, axis=0)) > 60
  assert (positions != np.asarray(step_order(config, 6).position_BxN)).any()


def test_window_mode_and_uniform_share():
  window = OrderConfig(ar_steps=0, perm_steps=0, max_shuffled=4, perm_mode='window')
  places = np.asarray(step_order(window, 0).position_BxN) != np.arange(1, 17)
  first, last = places.argmax(1), 15 - places[:, ::-1].argmax(1)
  assert (last - first)[places.any(1)].max() < 4
  mixed = OrderConfig(ar_steps=3, perm_steps=3, max_shuffled=0, uniform_order_prob=0.25)
  assert moved(step_order(mixed, 2, batch=400)).max() == 0
  assert 0.17 < (moved(step_order(mixed, 3, batch=400)) > 0).mean() < 0.33


def test_every_sequence_is_of_the_kind_that_its_order_is():
  """Left-to-right if no slot moved; k tokens, all of them, or streams of N / S moved otherwise."""
  config = OrderConfig(
    ar_steps=10,
    perm_steps=20,
    max_shuffled=6,
    uniform_order_prob=0.3,
    strided_start=30,
    strided_streams=(1, 2),
  )
  seen = set()
  for step in (0, 9, 10, 15, 29, *range(30, 36)):
    o, kind_B = step_order_and_kinds(config, step)
    kinds = [armd.ORDER_KINDS[kind] for kind in np.asarray(kind_B)]
    for kind, count in zip(kinds, moved(o), strict=True):
      assert (kind == 'left_to_right') <= (count == 0), step
      assert (kind == 'shuffled') <= (count <= 6), step
      assert (kind == 'strided') == (step >= 30 and count > 0), step
      assert (kind == 'uniform') >= (step < 30 and count > 6), step
    seen |= {(step >= 30, kind) for kind in kinds}
  before = {(False, kind) for kind in ('left_to_right', 'shuffled', 'uniform')}
  assert seen == before | {(True, 'left_to_right'), (True, 'strided')}


def test_nll_is_the_sum_of_log_probabilities():
  config = tiny.model_config()
  model, params = tiny.init(config)
  text = jax.random.randint(jax.random.key(3), (3, 16), 0, tiny.VOCAB)
  o = tiny.orders()['blocks']
  weights = jax.random.uniform(jax.random.key(4), (3, 16))
  total, nll = armd.nll(model, params, text, o, weights, loss_chunk=5)
  tokens = order.to_generation(text, o)
  hidden = model.apply({'params': params}, tokens, o)
  log_p = jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits'))
  expected = -np.take_along_axis(np.asarray(log_p), np.asarray(tokens)[..., None], -1)[..., 0]
  np.testing.assert_allclose(nll, expected, rtol=1e-4)
  np.testing.assert_allclose(total, (expected * weights).sum(), rtol=1e-5)


def test_first_token_given_is_not_scored():
  config = tiny.model_config(first_token='given', length=17)
  model, params = tiny.init(config)
  text = jax.random.randint(jax.random.key(3), (2, 17), 0, tiny.VOCAB)
  o = order.left_to_right(16)
  score = lambda text: armd.nll(model, params, text, o, jnp.ones((2, 16)), loss_chunk=16)[1]
  assert score(text).shape == (2, 16)
  changed = text.at[:, 0].set((text[:, 0] + 1) % tiny.VOCAB)
  assert (np.abs(score(changed) - score(text)).max(axis=1) > 1e-4).all()


def test_random_blocks_replace_random_singletons():
  """Their number of blocks follows T, and the schedule how many tokens the first ones hold."""
  config = OrderConfig(ar_steps=0, perm_steps=0, max_shuffled=0, uniform_order_prob=1.0)
  singletons = step_order(config, 0)
  assert (order.num_blocks(singletons) == 16).all()
  first = {}
  for schedule in ('linear', 'cosine'):
    blocks = step_order(
      OrderConfig(
        ar_steps=0, perm_steps=0, max_shuffled=0, uniform_order_prob=1.0, masking_steps=4,
        masking_schedule=schedule,
      ),
      0, batch=500,
    )  # fmt: skip
    assert int(order.num_blocks(blocks).max()) == 4
    assert (np.sort(blocks.position_BxN, axis=1) == np.arange(1, 17)).all()
    # Block label 1 is masking step T, revealed first: alpha(3/4) of the tokens.
    first[schedule] = (np.asarray(blocks.block_BxN) == 1).mean()
  assert abs(first['linear'] - 1 / 4) < 0.02
  assert abs(first['cosine'] - (1 - np.cos(np.pi / 8))) < 0.02


def test_some_strided_orders_go_one_by_one():
  """The same positions, a block per token, for the share of sequences that is asked for."""
  strided = dict(ar_steps=0, perm_steps=0, max_shuffled=0, strided_start=0, strided_streams=(4,))
  together = step_order(OrderConfig(**strided), 0, batch=400)
  mixed = step_order(OrderConfig(**strided, strided_one_by_one=0.25), 0, batch=400)
  assert (mixed.position_BxN == together.position_BxN[:1]).all()
  blocks_B = np.asarray(order.num_blocks(mixed))
  assert set(blocks_B) == {16, int(order.num_blocks(together)[0])}
  assert abs((blocks_B == 16).mean() - 0.25) < 0.07


def test_documents_stay_in_their_places_under_every_order_of_a_step():
  """Given tokens first, padding last, and S streams of the answer, as it is generated."""
  config = OrderConfig(
    ar_steps=0, perm_steps=0, max_shuffled=8, uniform_order_prob=0.3, segments_prob=0.3,
    segments_cuts=4, strided_start=5, strided_streams=(3,),
  )  # fmt: skip
  given = jnp.arange(16) < jax.random.randint(jax.random.key(5), (64, 1), 0, 6)
  length = jax.random.randint(jax.random.key(6), (64,), 8, 17)
  key = jax.random.key(0)
  run = jax.jit(armd.training_order, static_argnums=(0, 1))
  for step in (0, 5):
    o, kind_B = run(config, 16, step, key, jax.random.split(key, 64), (given, length))
    position_BxN, end_BxN = (
      np.asarray(x) for x in (o.position_BxN, order.block_bounds(o.block_BxN)[1])
    )
    assert (np.sort(position_BxN, axis=1) == np.arange(1, 17)).all()
    for b, (first, last) in enumerate(
      zip(np.asarray(given.sum(1)), np.asarray(length), strict=True)
    ):
      assert position_BxN[b, :first].tolist() == [*range(1, first + 1)]
      assert sorted(position_BxN[b, last:].tolist()) == [*range(last + 1, 17)]
      assert (end_BxN[b, :last] <= last).all()
    seen = {armd.ORDER_KINDS[kind] for kind in np.asarray(kind_B)}
    assert seen == ({'shuffled', 'uniform', 'segments'} if step == 0 else {'strided', 'segments'})
    if step:
      is_strided = np.asarray(kind_B) == armd.ORDER_KINDS.index('strided')
      expected = order.given_first(given, length, 3)
      np.testing.assert_array_equal(position_BxN[is_strided], expected.position_BxN[is_strided])

"""Witten-Bell against its equation, its normalisation, and real text."""

import collections
import time

import numpy as np
import pytest

from armd_jax.data import packing, sources, tokenizers
from armd_jax.evaluation.ngram import witten_bell_nats


def brute_force(train, scored, order, vocab_size):
  """The equation, read aloud: P_k(w|h) by recursion over dictionaries of counts."""
  followers = collections.defaultdict(collections.Counter)
  for window in train:
    for n, token in enumerate(window):
      for k in range(min(n, order) + 1):
        followers[tuple(window[n - k : n])][token] += 1

  def prob(context, token):
    lower = prob(context[1:], token) if context else 1 / vocab_size
    counts = followers.get(context)
    if not counts:
      return lower
    return (counts[token] + len(counts) * lower) / (counts.total() + len(counts))

  return np.array(
    [[-np.log(prob(tuple(w[max(0, n - order) : n]), w[n])) for n in range(len(w))] for w in scored]
  )


def draw(seed, shape, vocab_size):
  """Skewed tokens, so that some contexts are common, some rare and some unseen."""
  rng = np.random.default_rng(seed)
  return np.minimum(rng.geometric(0.4, shape) - 1, vocab_size - 1).astype(np.uint16)


@pytest.mark.parametrize('order', [0, 1, 2, 3, 5])
@pytest.mark.parametrize('lengths', [(6, 6), (3, 8), (8, 3), (1, 4)])
def test_equals_the_equation(order, lengths):
  train, scored = draw(0, (9, lengths[0]), 4), draw(1, (7, lengths[1]), 5)
  nats = witten_bell_nats(train, scored, order, 6)
  assert nats.shape == scored.shape and nats.dtype == np.float64
  expected = brute_force(train.tolist(), scored.tolist(), order, 6)
  np.testing.assert_allclose(nats, expected, rtol=1e-12)


@pytest.mark.parametrize('order', [0, 1, 2, 4])
def test_probabilities_sum_to_one(order):
  vocab_size = 7
  train, contexts = draw(2, (20, 12), 5), draw(3, (30, 6), 7)
  windows = np.repeat(contexts[:, None], vocab_size, axis=1)
  for n in range(6):
    every = windows[:, :, : n + 1].copy()
    every[:, :, n] = np.arange(vocab_size)
    nats = witten_bell_nats(train, every.reshape(-1, n + 1), order, vocab_size)[:, n]
    np.testing.assert_allclose(np.exp(-nats).reshape(-1, vocab_size).sum(1), 1, rtol=1e-12)


def test_nothing_is_seen_across_a_window_start():
  train, scored = draw(4, (30, 8), 4), draw(5, (12, 8), 4)
  nats = witten_bell_nats(train, scored, 3, 4)
  rng = np.random.default_rng(0)
  shuffled = witten_bell_nats(rng.permutation(train), scored, 3, 4)
  np.testing.assert_array_equal(shuffled, nats)
  order = rng.permutation(len(scored))
  np.testing.assert_array_equal(witten_bell_nats(train, scored[order], 3, 4), nats[order])


def test_only_the_last_k_tokens_matter():
  train, scored = draw(6, (30, 8), 4), draw(7, (12, 8), 4)
  changed = scored.copy()
  changed[:, 3] = (changed[:, 3] + 1) % 4
  differs = witten_bell_nats(train, scored, 2, 4) != witten_bell_nats(train, changed, 2, 4)
  assert not differs[:, :3].any() and not differs[:, 6:].any()
  assert differs[:, 3:6].any(axis=0).all()


def test_a_large_vocabulary_at_a_high_order():
  # 60,000^6 is far beyond int64.
  train = np.random.default_rng(8).integers(0, 60_000, (50, 16))
  nats = witten_bell_nats(train, train, 5, 60_000)
  np.testing.assert_allclose(nats, brute_force(train.tolist(), train.tolist(), 5, 60_000))


def test_nothing_to_count_or_to_score():
  nats = witten_bell_nats(np.zeros((0, 4)), np.zeros((2, 3)), 2, 5)
  np.testing.assert_allclose(nats, np.log(5))
  assert witten_bell_nats(np.zeros((1, 4)), np.zeros((0, 3)), 2, 5).shape == (0, 3)


def test_bad_input():
  with pytest.raises(ValueError, match='order is -1'):
    witten_bell_nats(np.zeros((1, 1)), np.zeros((1, 1)), -1, 2)
  for bad in (5, -1):
    with pytest.raises(ValueError, match='outside the vocabulary of 5'):
      witten_bell_nats(np.zeros((1, 1)), np.full((1, 1), bad), 1, 5)


def test_english_is_easier_with_more_context():
  tokenizer = tokenizers.ByteTokenizer()
  train, held_out = sources.split_documents(sources.load_documents('stdlib'), 0.05)
  train = packing.pack(train, tokenizer, packing.Packing(256))
  held_out = packing.pack(held_out, tokenizer, packing.Packing(256))
  num_bytes = packing.text_bytes(held_out, tokenizer)
  begin = time.process_time()
  order_2, order_3 = (
    witten_bell_nats(train, held_out, k, tokenizer.vocab_size).sum() / num_bytes for k in (2, 3)
  )
  assert time.process_time() - begin < 3  # seconds of CPU; 0.9 where this was written
  order_0 = witten_bell_nats(train, held_out, 0, tokenizer.vocab_size).sum() / num_bytes
  assert 3 < order_0 < 3.5 and 1.8 < order_2 < 2.3 and 1.4 < order_3 < 1.9  # nats per byte

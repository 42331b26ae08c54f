"""Statistics and generative perplexity, by counts by hand and a judge of known probabilities."""

import math

import numpy as np
import pytest

from armd_jax.evaluation import quality


class Dice:
  """Gives word n of its vocabulary probability (n + 1) / 10, whatever comes before it."""

  name, context = 'dice', 4

  def __init__(self):
    self.longest = 0

  def encode(self, text):
    return np.array(['abcd'.index(word) for word in text.split()], int)

  def nats(self, windows):
    self.longest = max(self.longest, *map(len, windows))
    return [-np.log((window[1:] + 1) / 10) for window in windows]

  def features(self, windows):
    raise NotImplementedError


class Long(Dice):
  context = 64


def test_perplexity_of_known_probabilities():
  verdict = quality.judge_texts(Dice(), ['a d d', 'c b'])
  # The first word of a text is given: d, d and b are scored.
  nats = [-math.log(0.4), -math.log(0.4), -math.log(0.2)]
  assert verdict.tokens == 3
  assert verdict.corpus_perplexity == pytest.approx(math.exp(sum(nats) / 3))
  assert verdict.mean_perplexity == pytest.approx((1 / 0.4 + 1 / 0.2) / 2)


def test_long_texts_are_read_window_by_window():
  judge = Dice()
  verdict = quality.judge_texts(judge, ['d ' * 9])
  assert judge.longest == 4
  assert verdict.tokens == 3 + 3  # 4 + 4 + 1 words, the first of a window given
  assert verdict.corpus_perplexity == pytest.approx(1 / 0.4)


def test_junctions_beside_all_other_places():
  """Words of probability .4 but for two, one of which is near a junction."""
  text = 'd d d a d d d d d d a d'
  junction = text.index('a')  # before the fourth word
  verdict = quality.judge_texts(Long(), [text, 'd d'], [[junction], []], width=4)
  junctions = verdict.junctions
  assert (junctions.count, junctions.width, junctions.tokens, verdict.tokens) == (1, 4, 4, 12)
  assert junctions.perplexity == pytest.approx((0.4**3 * 0.1) ** (-1 / 4))
  assert junctions.elsewhere == pytest.approx((0.4**7 * 0.1) ** (-1 / 8))
  # Where two are near each other, a token counts once; the first of a text has no score.
  near = quality.judge_texts(Long(), [text], [[2, junction]], width=4).junctions
  assert (near.count, near.tokens) == (2, 4)
  assert verdict.corpus_perplexity == quality.judge_texts(Long(), [text, 'd d']).corpus_perplexity
  assert quality.judge_texts(Long(), [text], [[]]).junctions is None


def test_texts_without_a_score_do_not_count():
  verdict = quality.judge_texts(Dice(), ['d d', 'a', ''])
  assert (verdict.tokens, verdict.mean_perplexity) == (1, pytest.approx(2.5))
  with pytest.raises(ValueError, match='no text has two tokens'):
    quality.judge_texts(Dice(), ['a', ''])


def test_texts_that_are_left_out_are_counted():
  verdict = quality.judge_texts(Dice(), ['d d', 'a', '', 'b b'])
  assert (verdict.left_out, len(verdict.perplexities)) == (2, 2)
  assert quality.statistics([np.array([1]), np.array([], int), np.array([2, 3])]).left_out == 1


def test_where_no_token_is_there_is_no_perplexity():
  junctions = quality.judge_texts(Long(), ['d d d'], [[2]], width=8).junctions
  assert (junctions.tokens, junctions.elsewhere) == (2, None)
  assert junctions.perplexity == pytest.approx(1 / 0.4)


@pytest.mark.filterwarnings('error')
def test_a_perplexity_that_float64_does_not_hold_is_infinite():
  judge = Dice()
  judge.nats = lambda windows: [np.full(len(window) - 1, 800.0) for window in windows]
  assert quality.judge_texts(judge, ['d d']).corpus_perplexity == math.inf


def test_a_window_without_ids_is_refused_by_what_pads_windows():
  """And no row of padding is taken for its last one."""
  for windows in ([np.array([1, 2]), np.array([], int)], [np.array([], int)]):
    with pytest.raises(ValueError, match='a window has no ids'):
      list(quality.padded_batches(windows, 8))


def test_statistics_by_hand():
  s = quality.statistics([np.array([5, 5, 5, 5, 5, 5]), np.array([1, 2, 3, 4]), np.array([], int)])
  assert s.entropy_nats == pytest.approx((0 + math.log(4)) / 2)
  assert s.entropy_bits == pytest.approx(1)
  assert s.distinct_1 == pytest.approx(5 / 10)
  assert s.distinct_2 == pytest.approx((1 + 3) / 8)
  assert s.distinct_3 == pytest.approx((1 + 2) / 6)
  assert s.repetition_4 == pytest.approx(1 - (1 + 1) / 4)
  assert s.tokens == 10


def test_equal_ngrams_of_two_texts_are_one():
  s = quality.statistics([np.array([1, 2, 3, 4])] * 2)
  assert (s.distinct_1, s.distinct_3, s.repetition_4) == (0.5, 0.5, 0)


def test_texts_shorter_than_an_ngram():
  s = quality.statistics([np.array([1])])
  assert (s.distinct_1, s.distinct_2, s.repetition_4, s.entropy_nats) == (1, 0, 0, 0)
  with pytest.raises(ValueError, match='no token'):
    quality.statistics([np.array([], int)])

"""Prompts and gaps become what the decoder is given."""

import numpy as np
import pytest

from armd_jax.config import UserError
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.step import Generated
from armd_jax.families import asked

TOKENIZER = ByteTokenizer()


def test_prompts_leave_the_rest_open():
  request = requests.continue_prompts(['ab', ''], 6, TOKENIZER)
  assert request.tokens_BxN[0, :2].tolist() == [97, 98]
  assert request.given_BxN.sum(1).tolist() == [2, 0]
  assert request.length_B.tolist() == [6, 6]
  with pytest.raises(UserError, match='has 6 tokens but the model takes 6; shorten it to 5'):
    requests.continue_prompts(['abcdef'], 6, TOKENIZER)


def test_gaps():
  request = requests.fill_gaps('To ___ or ____!', 0, 2, 32, TOKENIZER)
  assert request.length_B.tolist() == [15, 15]
  open_at = np.flatnonzero(~request.given_BxN[0, :15]).tolist()
  assert open_at == [3, 4, 5, 10, 11, 12, 13]
  given = request.tokens_BxN[1, :15][request.given_BxN[1, :15]]
  assert TOKENIZER.decode(given) == 'To  or !'
  wide = requests.fill_gaps('a___b', 7, 1, 32, TOKENIZER)
  assert wide.length_B.tolist() == [9] and (~wide.given_BxN[0, :9]).sum() == 7


def test_junctions_are_where_streams_begin():
  """In characters, of which a letter with an accent is one and two tokens."""
  request = requests.continue_prompts(['é', ''], 14, TOKENIZER)
  tokens_BxN = np.array([TOKENIZER.encode('é' * 7), TOKENIZER.encode('abcdefghijklmn')])
  generated = Generated(tokens_BxN, np.array([14, 5]), 1, np.zeros(2))
  junctions = lambda streams: asked.junctions_of(request, streams, generated, TOKENIZER)
  # Of 12 and 14 free tokens; the second text ended after five.
  assert junctions(1) == [[], []]
  assert junctions(2) == [[4], []]
  assert junctions(4) == [[3, 4, 6], [4]]
  assert junctions(3)[0] == [3, 5]
  # Streams go on behind what is given in the middle.
  request = requests.fill_gaps('____ab____', 0, 1, 14, TOKENIZER)
  generated = Generated(tokens_BxN[1:], np.array([10]), 1, np.zeros(1))
  assert junctions(2) == [[6]] and junctions(4) == [[2, 6, 8]]


def test_gap_refusals():
  with pytest.raises(UserError, match='no gap; mark one'):
    requests.fill_gaps('To be', 0, 1, 32, TOKENIZER)
  with pytest.raises(UserError, match='makes 40 tokens but the model takes 32'):
    requests.fill_gaps('_' * 40, 0, 1, 32, TOKENIZER)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ((0, 1), 'streams is 0; write a whole number from 1 to'),
    ((1, 0), 'num_samples is 0; write a whole number from 1 to'),
    ((2.0, 1), 'streams is 2.0; write a whole number'),
    ((True, 1), 'streams is True; write a whole number'),
    ((1, '3'), "num_samples is '3'; write a whole number"),
  ],
)
def test_count_refusals(settings, message):
  with pytest.raises(UserError, match=message):
    requests.check_counts(*settings)

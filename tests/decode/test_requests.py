"""Prompts, gaps and numbers that nothing can be generated with are refused in a sentence."""

import pytest

from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.errors import UserError

BYTES = ByteTokenizer()


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda: requests.fill_gaps('eight by ________', 0, 1, 16, BYTES),
      '--infill makes 17 tokens but the model takes 16; shorten the text or the gaps',
    ),
    (lambda: requests.fill_gaps('a ___', 15, 1, 16, BYTES), 'makes 17 tokens but the model'),
    (lambda: requests.fill_gaps('a __', 0, 1, 16, BYTES), '--infill has no gap; mark one by three'),
    (lambda: requests.continue_prompts(['x' * 16], 16, BYTES), '16 tokens'),
    (
      lambda: requests.continue_prompts(['x' * 9], 16, BYTES, 8),
      'has 9 tokens and max_new_tokens is 8, but the model takes 16; write at most 7',
    ),
    (lambda: requests.continue_prompts(['x'], 16, BYTES, 0), 'max_new_tokens is 0; write a whole'),
    (lambda: requests.continue_prompts([b'x'], 16, BYTES), r"is b'x'; write a text"),
    (lambda: requests.check_counts(2**40, 1), r'streams is \d+; write a whole number from 1 to'),
    (lambda: Sampling(temperature=1e-9), 'temperature is 1e-09; write 0 .most likely., or a'),
    (lambda: Sampling(temperature='hot'), "temperature is 'hot'; write 0"),
    (lambda: Sampling(top_p=1.5), r'top_p is 1\.5; write more than 0 and at most 1'),
    (lambda: Sampling(stop='.'), r"stop is '\.'; write the id of a token, or None"),
    (lambda: Sampling(seed=-1), 'seed is -1; write a whole number from 0 to 4294967295'),
  ],
)
def test_what_nothing_is_generated_with(call, message):
  with pytest.raises(UserError, match=message):
    call()


def test_what_just_fits():
  assert requests.fill_gaps('eight by _______', 0, 1, 16, BYTES).length_B.tolist() == [16]
  assert requests.continue_prompts(['x' * 9], 16, BYTES, 7).length_B.tolist() == [16]
  assert requests.continue_prompts(['x' * 15], 16, BYTES).given_BxN.sum() == 15

"""Junctions of streams are written anew, given everything else."""

import functools

import jax
import numpy as np
import pytest
import tiny

from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling

TOKENIZER = ByteTokenizer()
N, STREAMS, WIDTH = 16, 3, 2
PROMPTS = ['ab', 'ab', 'cdef']


@functools.cache
def decoder():
  config = tiny.model_config(length=N, query_seed_chunk=4, num_layers=2)
  return Decoder(*tiny.init(config, vocab_size=257, scale=4.0), TOKENIZER, None)


def request(prompts=PROMPTS):
  return requests.continue_prompts(prompts, N, TOKENIZER)


@functools.cache
def texts(temperature=1.0):
  sampling = Sampling(3, temperature)
  _, generated = decoder().complete(request(), STREAMS, sampling)
  found, mended = decoder().mend(request(), STREAMS, sampling, generated, WIDTH)
  return found, generated, mended


def near_junctions():
  """Of 14 tokens behind two that are given, the 6th and 11th begin further streams; of 12 behind
  four, the 5th and 9th."""
  near_BxN = np.zeros((3, N), bool)
  for b, heads in enumerate([(7, 12), (7, 12), (8, 12)]):
    for head in heads:
      near_BxN[b, head - WIDTH : head + WIDTH] = True
  return near_BxN


def test_only_the_tokens_near_junctions_are_drawn_again():
  found, generated, mended = texts()
  before_BxN, after_BxN = np.asarray(generated.tokens_BxN), np.asarray(mended.tokens_BxN)
  changed_BxN = before_BxN != after_BxN
  assert not changed_BxN[~near_junctions()].any()
  assert changed_BxN.any(axis=1).all()
  assert found == [TOKENIZER.decode(ids_N) for ids_N in after_BxN]
  assert all(text.startswith(prompt) for text, prompt in zip(found, PROMPTS, strict=True))
  # Two streams of up to four tokens each: their heads one by one, then both at once.
  assert int(mended.steps) == int(generated.steps) + 2 + 3
  assert (np.asarray(mended.margin_B) <= np.asarray(generated.margin_B)).all()


def test_a_text_is_mended_alone_as_beside_others():
  sampling = Sampling(3)
  _, generated = decoder().complete(request(PROMPTS[:1]), STREAMS, sampling)
  found, _ = decoder().mend(request(PROMPTS[:1]), STREAMS, sampling, generated, WIDTH)
  assert found[0] == texts()[0][0]


def test_mended_tokens_are_those_that_fill_the_gaps():
  found, generated, _ = texts(temperature=0.0)
  gaps = request()
  gaps.given_BxN[:] = ~near_junctions()
  gaps = gaps.replace(tokens_BxN=np.asarray(generated.tokens_BxN))
  filled, _ = decoder().complete(gaps, STREAMS - 1, Sampling(0, 0.0))
  assert found == filled


def test_a_text_that_ended_before_its_junctions_stays():
  _, generated, _ = texts()
  ended = generated.replace(length_B=np.array([5, 5, 6]))
  found, mended = decoder().mend(request(), STREAMS, Sampling(3), ended, WIDTH)
  assert found == [
    TOKENIZER.decode(np.asarray(row))
    for row in [
      generated.tokens_BxN[0, :5],
      generated.tokens_BxN[1, :5],
      generated.tokens_BxN[2, :6],
    ]
  ]
  assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == b).all(), mended, ended))


@pytest.mark.parametrize('streams', [2, 5, 14])
def test_wide_windows_reach_over_each_other(streams):
  sampling = Sampling(1)
  one = request(PROMPTS[:1])
  _, generated = decoder().complete(one, streams, sampling)
  (found,), mended = decoder().mend(one, streams, sampling, generated, N)
  assert found.startswith('ab') and int(mended.length_B[0]) == N
  # All that is free is near a junction: one text after the other is the same as a new one.
  again = decoder().complete(one, streams - 1, sampling)[1]
  assert int(mended.steps) - int(generated.steps) == int(again.steps)

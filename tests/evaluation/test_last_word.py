"""Last words against one passage at a time, with nothing behind it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models
from armd_jax.config import MeshConfig
from armd_jax.errors import UserError
from armd_jax.evaluation import last_word
from armd_jax.order import left_to_right
from armd_jax.parallel import sharding


class Letters:
  """Five letters and the space; EOS is 6."""

  vocab_size, eos_id = tiny.VOCAB, 6

  def encode(self, text):
    return np.array([' abcde'.index(letter) for letter in text], np.int32)


def drawn(config, count=60):
  """Random passages of 5, 9 or all slots, with last words of 1 or 2 tokens, some of them likely."""
  rng = np.random.RandomState(0)
  given = config.length - config.num_slots
  text_WxN = rng.randint(tiny.VOCAB, size=(count, config.length)).astype(np.int32)
  text_WxN[:, :given] = Letters.eos_id
  count_W = np.array([1, 2], np.int32)[np.arange(count) % 2]
  length_W = np.array([5, 9, config.num_slots], np.int32)[np.arange(count) % 3]
  return last_word.Passages(text_WxN, length_W - count_W, count_W, 0)


def one_at_a_time(model, params):
  """A function of (ids, count): whether the last `count` of ids are likeliest, and their nats."""
  first_B = None
  if model.config.first_token == 'given':
    first_B = jnp.array([Letters.eos_id])
  variables = {'params': params}

  @jax.jit
  def logits(ids_1xL):
    hidden = model.apply(variables, ids_1xL, left_to_right(ids_1xL.shape[1]), first_B)
    return model.apply(variables, hidden, method='logits')[0]

  def measure(ids, count):
    row_CxV = np.asarray(logits(ids[None])[-count:], np.float64)
    log_p_CxV = row_CxV - np.log(np.exp(row_CxV).sum(-1, keepdims=True))
    nats = -log_p_CxV[np.arange(count), ids[-count:]].sum()
    return (row_CxV.argmax(-1) == ids[-count:]).all(), nats

  return measure


def score(config, params, passages, **options):
  mesh = sharding.make_mesh(MeshConfig())
  model = models.build(config, tiny.VOCAB)
  batches = last_word.score(model, params, passages, mesh, batch_size=8, **options)
  return np.concatenate([*batches])


@pytest.mark.parametrize('bos', ['predicted', 'given'])
def test_equals_one_passage_at_a_time(bos):
  """With nothing behind it; what is behind it in the batch is any token."""
  config = tiny.model_config(length=13, num_layers=2, first_token=bos)
  model, params = tiny.init(config)
  passages = drawn(config)
  found = score(config, params, passages)
  measure = one_at_a_time(model, params)
  expected = [
    measure(text_N[-config.num_slots :][: first + count], count)
    for text_N, first, count in zip(
      passages.text_WxN, passages.first_W, passages.count_W, strict=True
    )
  ]
  np.testing.assert_allclose(found, np.array(expected, float), rtol=2e-5)
  right = found[:, 0].reshape(-1, 2).sum(0)  # by number of tokens
  assert 0 < right[0] < 30 and right[1] < 30
  np.testing.assert_array_equal(score(config, params, passages, start=16), found[16:])
  behind = np.arange(config.num_slots) >= (passages.first_W + passages.count_W)[:, None]
  other = passages.text_WxN.copy()
  other[:, -config.num_slots :][behind] = 3
  assert (other != passages.text_WxN).any()
  padded = dataclasses.replace(passages, text_WxN=other)
  np.testing.assert_array_equal(score(config, params, padded), found)


@pytest.mark.parametrize('bos', ['predicted', 'given'])
def test_the_space_is_the_last_word_s_and_long_passages_lose_their_beginning(bos):
  config = tiny.model_config(length=8, first_token=bos)
  found = last_word.passages(['ab c\n', ' abcd abcde abc'], Letters(), config)
  given = config.length - config.num_slots
  assert found.text_WxN.shape == (2, 8) and (found.text_WxN[:, :given] == 6).all()
  short, long = found.text_WxN[:, given:].tolist()
  assert short[:4] == [1, 2, 0, 3] and not any(short[4:])
  assert long == [2, 3, 4, 5, 0, 1, 2, 3][given:]
  assert found.first_W.tolist() == [2, 4 - given] and found.count_W.tolist() == [2, 4]
  assert found.cut == 1


@pytest.mark.parametrize('bos', ['predicted', 'given'])
def test_windows_are_no_longer_than_passages_need(bos):
  """A passage of 100 letters in a model of 300; its score is that of the whole window."""
  config = tiny.model_config(length=300, first_token=bos)
  _, params = tiny.init(config)
  found = last_word.passages(['ab ' * 30 + 'cde ed', 'a b'], Letters(), config)
  assert found.text_WxN.shape == (2, 128) and found.cut == 0
  whole = np.pad(found.text_WxN, [(0, 0), (0, 300 - 128)], constant_values=5)
  np.testing.assert_allclose(
    score(config, params, found),
    score(config, params, dataclasses.replace(found, text_WxN=whole)),
    rtol=1e-5,
  )


@pytest.mark.parametrize('row', ['abc', ' abc', 'a ' + 'b' * 15])
def test_no_room_before_the_word(row):
  with pytest.raises(UserError, match=r'passage 2 ends with .* has no room for words before it'):
    last_word.passages(['a b', row], Letters(), tiny.model_config())

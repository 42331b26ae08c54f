"""BD3-LM's samplers follow an exactly known distribution, and their cache changes nothing."""

import functools

import block_toy as toy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import blocks, diffusion, requests
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request
from armd_jax.errors import UserError
from armd_jax.families import FAMILIES
from armd_jax.models.denoiser import MASK

SAMPLERS = FAMILIES['bd3lm'].samplers
COUNT = 4000
run_toy = jax.jit(blocks.block_by_block, static_argnums=0)


def sample(name, steps, given=None, text=None):
  none = np.zeros((COUNT, toy.N), bool)
  request = Request(
    tokens_BxN=jnp.asarray(np.zeros(none.shape, int) if text is None else text),
    given_BxN=jnp.asarray(none if given is None else given),
    length_B=jnp.full(COUNT, toy.N),
  )
  plan = blocks.Plan(steps, name == 'ancestral')
  draws = Sampling(seed=1).draws(COUNT)
  return run_toy(toy.network(), plan, jnp.asarray(toy.exact()), request, draws)


def chi_square(tokens, probability):
  seen = np.bincount(np.asarray(tokens) @ [8, 4, 2, 1], minlength=16)[probability > 0]
  expected = COUNT * probability[probability > 0]
  return ((seen - expected) ** 2 / expected).sum()


@pytest.mark.parametrize('name', SAMPLERS)
def test_sampler_follows_the_source(name):
  """Enough steps. Chi-square over 16 texts: the 99.9% point of 15 degrees of freedom is 37.7."""
  found = sample(name, 2 if name == 'first_hitting' else 64)
  assert chi_square(found.tokens_BxN, toy.PROBABILITY) < 37.7
  assert (COUNT * toy.PROBABILITY).min() > 5
  assert found.steps == 4 if name == 'first_hitting' else 4 < found.steps <= 128


@pytest.mark.parametrize('name', SAMPLERS)
def test_one_step_reveals_a_block_independently(name):
  """The second block given the first one, the tokens of each as if the other were not there."""
  found = sample(name, 1)
  half = toy.PROBABILITY.reshape(4, 4)

  def independent(joint):
    table = joint.reshape(2, 2)
    return np.outer(table.sum(1), table.sum(0)).ravel() / joint.sum()

  first = independent(half.sum(1))
  second = np.stack([independent(row) / row.sum() for row in half])
  assert chi_square(found.tokens_BxN, (first[:, None] * second).ravel()) < 37.7
  assert chi_square(found.tokens_BxN, toy.PROBABILITY) > 100
  assert found.steps == 2


def test_given_tokens_stay_and_condition_the_rest():
  """Of a block that is begun, and of one that comes later."""
  given = np.zeros((COUNT, 4), bool)
  given[:, 1] = True
  tokens = np.asarray(sample('first_hitting', 2, given, np.ones(given.shape, int)).tokens_BxN)
  assert (tokens[:, 1] == 1).all()
  p = np.where(toy.TEXTS[:, 1] == 1, toy.PROBABILITY, 0)
  assert chi_square(tokens, p / p.sum()) < 24.3  # 99.9% point of 7 degrees of freedom


@functools.cache
def network(**changes):
  return tiny.init(tiny.model_config(family='bd3lm', num_layers=2, **changes))


def generate(request, sampling, steps=4, name='first_hitting', sequence_B=None, **changes):
  model, params = network(**changes)
  plan = blocks.Plan(steps, name == 'ancestral')
  return diffusion.generate(model, params, request, sampling, plan, sequence_B, run=blocks.sample)


@pytest.mark.parametrize('begun', [5, 8])  # a block before the first that is missing, or two
@pytest.mark.parametrize('changes', [{}, {'first_token': 'given', 'scan_layers': False}])
@pytest.mark.parametrize(('name', 'steps'), [('first_hitting', 2), ('ancestral', 3)])
def test_tokens_appear_as_the_network_without_a_cache_says(name, steps, changes, begun):
  """A replay: what appeared after run r is what the network says of the blocks before it and of
  what its own showed before r. The cache, of tokens of a prompt, too, changes nothing."""
  model, params = network(**changes)
  slots, shift = model.config.num_slots, 16 - model.config.num_slots
  given = np.zeros((2, slots), bool)
  given[0, :9] = True
  given[1, [*range(begun), begun + 1]] = True
  text = np.asarray(jax.random.randint(jax.random.key(0), (2, slots), 0, tiny.VOCAB))
  length = np.array([14, slots])
  first_B = np.array([1, 2], np.int32) if shift else None
  found = generate(
    Request(text, given, length, first_B), Sampling(temperature=0), steps, name, **changes
  )
  tokens, step = np.asarray(found.tokens_BxN), np.asarray(found.step_BxN)
  is_free = ~given & (np.arange(slots) < length[:, None])
  np.testing.assert_array_equal(tokens[given], text[given])
  assert (step[is_free] > 0).all() and (step[~is_free] == 0).all()
  block = (np.arange(slots) + shift) // 4
  runs = int(found.steps)
  assert runs <= 3 * steps
  for run in range(1, runs + 1):
    before = np.where(is_free & (step >= run), MASK, tokens)
    hidden = model.apply(
      {'params': params}, jnp.asarray(before), None, first_B, jnp.asarray(length)
    )
    said = np.argmax(model.apply({'params': params}, hidden, method='logits'), axis=-1)
    now = step == run
    assert len({*block[now.nonzero()[1]]}) <= 1
    np.testing.assert_array_equal(said[now], tokens[now])
    if name == 'first_hitting':
      assert (now.sum(1) <= 2).all()


@pytest.mark.parametrize('name', SAMPLERS)
def test_batching_changes_nothing_and_padding_is_never_seen(name):
  text = np.asarray(jax.random.randint(jax.random.key(0), (3, 16), 0, tiny.VOCAB))
  given = np.zeros((3, 16), bool)
  given[1, :5] = True
  length = np.array([16, 16, 11])
  together = np.asarray(
    generate(Request(text, given, length), Sampling(seed=3), name=name).tokens_BxN
  )
  assert (together >= 0).all() and (together < tiny.VOCAB).all()
  for b in range(3):
    row = slice(b, b + 1)
    # What stands after the end of a text is its own business.
    other = np.where(np.arange(16) < length[b], text[row], (text[row] + 1) % tiny.VOCAB)
    alone = generate(
      Request(other, given[row], length[row]), Sampling(seed=3), name=name,
      sequence_B=np.array([b]),
    )  # fmt: skip
    np.testing.assert_array_equal(
      np.asarray(alone.tokens_BxN)[0, : length[b]], together[b, : length[b]]
    )
  again = generate(Request(text, given, length), Sampling(seed=4), name=name)
  assert (np.asarray(again.tokens_BxN)[0] != together[0]).any()


def test_another_number_of_steps_compiles_nothing_anew():
  request = Request(np.zeros((1, 16), int), np.zeros((1, 16), bool), np.full(1, 16))
  assert generate(request, Sampling(), steps=4).steps == 16
  compiled = blocks.sample._cache_size()
  assert generate(request, Sampling(), steps=1).steps == 4
  assert generate(request, Sampling(), steps=2).steps == 8
  assert blocks.sample._cache_size() == compiled


def test_a_gap_is_filled_in_its_block_and_refused_where_text_follows_in_a_later_one():
  tokenizer = ByteTokenizer()
  model, params = tiny.init(network()[0].config, tokenizer.vocab_size)
  decoder = requests.Decoder(model, params, tokenizer, None)
  fill = FAMILIES['bd3lm'].generate
  (text,), found = fill(decoder, requests.fill_gaps('abcd___h', 0, 1, 16, tokenizer), Sampling())
  assert text.startswith('abcd') and text.endswith('h') and found.steps == 3
  with pytest.raises(UserError, match=r'a later block, .*its blocks are 4 tokens'):
    fill(decoder, requests.fill_gaps('ab____cd', 0, 1, 16, tokenizer), Sampling())

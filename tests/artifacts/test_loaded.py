"""What a model answers in Python is what its network, its orders and its samplers say."""

import dataclasses
import pickle
import tracemalloc
import types

import jax
import numpy as np
import pytest
import tiny

import armd_jax
from armd_jax import config as config_lib
from armd_jax import families
from armd_jax.artifacts.loaded import Model
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood, tokens
from armd_jax.evaluation.tokens import TokenScore
from armd_jax.order import GenerationOrder
from armd_jax.parallel import sharding

LENGTH = 24
LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.-#'


class Letters:
  """Letters as ids, so that every id but EOS is one character of text."""

  name = 'letters'
  vocab_size = len(LETTERS) + 1
  eos_id = bos_id = len(LETTERS)
  fingerprint = 'letters'
  token_bytes_V = np.array([1] * len(LETTERS) + [0], np.int32)

  def encode(self, text):
    return np.array([LETTERS.index(x) for x in text], np.int32)

  def decode(self, ids):
    return ''.join(LETTERS[i] for i in ids if i < len(LETTERS))


TEXT = 'a text of 22 characters'[:22]
ORDERS = armd_jax.orders


def make(family, **changes):
  sizes = dict(
    family=family, length=LENGTH, num_layers=2, embed_dim=16, num_heads=2, dtype='float32',
    dropout=0.0, position_dim=12,
  )  # fmt: skip
  config = config_lib.parse({'model': sizes | changes, 'order': {'max_shuffled': 0}})
  _, params = tiny.init(config.model, Letters.vocab_size)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  return Model(config, Letters(), params, 7, mesh)


@pytest.fixture(scope='module')
def armd():
  return make('armd')


def test_a_model_prints_in_one_line(armd):
  assert repr(armd).startswith('<armd_jax model: armd, 0.0') and len(repr(armd)) < 120
  assert "2 layers x 16, 24 tokens of 'letters', step 7" in str(armd)


@pytest.mark.parametrize('family', families.FAMILIES)
def test_tokens_depend_on_what_they_saw_and_on_nothing_else(family):
  model = make(family)
  orders = [ORDERS.left_to_right(22)]
  if config_lib.FAMILIES[family].orders != 'left_to_right' and families.FAMILIES[family].infills:
    orders += [ORDERS.random(22, seed=3), ORDERS.strided(22, 5)]
  for order in orders:
    how = {} if family == 'ar' else {'order': order}
    before = model.logprobs(TEXT, **how)
    assert ''.join(token.text for token in before) == TEXT
    position, block = np.asarray(order.position_BxN)[0], np.asarray(order.block_BxN)[0]
    for token in before:
      slot = int(np.flatnonzero(position == token.position)[0])
      assert set(token.saw) == set(position[block < block[slot]].tolist())
    at = int(position[11])
    after = model.logprobs(TEXT[: at - 1] + '#' + TEXT[at:], **how)
    moved = []
    for old, new in zip(before, after, strict=True):
      moved.append(abs(old.logprob - new.logprob) > 1e-5)
      assert at in old.saw or old.position == at or not moved[-1], (old, new)
    assert sum(moved) > 3


def logprobs_of(count, order):
  """What `tokens.scores` makes of nats that it was given."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokens, '_along', lambda *_: np.arange(count, dtype=np.float32))
    model = types.SimpleNamespace(config=config_lib.Config().model)
    return tokens.scores(model, None, Letters(), np.zeros(count, int), order, None)


def test_what_tokens_saw_takes_memory_of_the_text_not_of_its_square():
  sizes = []
  for count in (2048, 4096):
    found = logprobs_of(count, ORDERS.random(count, seed=1))
    tracemalloc.start()
    again = logprobs_of(count, ORDERS.random(count, seed=1))
    sizes.append((tracemalloc.get_traced_memory()[0], len(pickle.dumps(again))))
    tracemalloc.stop()
    assert again == found
  assert all(large < 2.2 * small for small, large in zip(*sizes, strict=True))
  assert sizes[1][0] < 4e6


def test_a_token_that_is_copied_saw_the_same():
  first, *_, last = logprobs_of(6, ORDERS.blocks([[4, 1], [2, 3], [6], [5]]))
  assert (first.saw, last.saw) == ((), (1, 2, 3, 4))
  for copy in (
    pickle.loads(pickle.dumps(last)),
    dataclasses.replace(last),
    TokenScore(**dataclasses.asdict(last)),
  ):
    assert copy == last and hash(copy) == hash(last) and copy.saw == (1, 2, 3, 4)
  assert dataclasses.replace(last, saw=(1,)) != last and 'saw' not in repr(last)


def test_a_perplexity_that_float64_does_not_hold_is_infinite(armd):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokens, '_along', lambda *_: np.full(6, 800, np.float32))
    assert armd.perplexity('abcdef') == np.inf


@pytest.mark.parametrize('streams', [1, 3, 7])
def test_streams_and_evaluation_give_the_same_numbers(armd, streams):
  """7 does not divide 24, and is a stride count like any other."""
  text = 'the text of 24 letters..'
  ids = armd.tokenizer.encode(text)[None]
  protocol = likelihood.strided_protocols(streams)[0]
  model = families.build(armd.config.model, Letters.vocab_size)
  (nll,) = likelihood.nll(model, armd.params, ids, protocol, armd.mesh, batch_size=1)
  tokens = armd.logprobs(text, streams=streams)
  assert -sum(t.logprob for t in tokens) == pytest.approx(nll.sum(), rel=1e-5)
  assert np.log(armd.perplexity(text, streams=streams)) == pytest.approx(nll.mean(), rel=1e-5)
  assert max(token.block for token in tokens) == -(-24 // streams) + streams - 1


def test_perplexity_of_a_long_text_is_that_of_its_windows(armd):
  text = 'more than two windows of twenty-four tokens, with a rest'
  parts = [text[i : i + LENGTH] for i in range(0, len(text), LENGTH)]
  nats = -sum(t.logprob for part in parts for t in armd.logprobs(part))
  assert np.log(armd.perplexity(text)) == pytest.approx(nats / len(text), rel=1e-5)


def test_no_number_is_told_along_an_order_that_a_model_does_not_read():
  """A block of BD3-LM sees no later block, whatever the order says that is there."""
  model = make('bd3lm')
  assert len(model.logprobs(TEXT, order=ORDERS.left_to_right(22))) == 22
  for asked in ({'streams': 4}, {'order': ORDERS.random(22, seed=3)}):
    with pytest.raises(UserError, match="'bd3lm' reads nothing behind a token; write streams=1"):
      model.logprobs(TEXT, **asked)


def test_a_baseline_has_the_perplexity_of_its_bound():
  model = make('mdlm')
  assert 1 < model.perplexity('x' * 2 * LENGTH) < 1e6
  with pytest.raises(UserError, match='windows of 24; give a text of that many'):
    model.perplexity('short')
  with pytest.raises(UserError, match="family 'mdlm' generates along none; leave it out"):
    model.generate('a', order=ORDERS.left_to_right(4))


def test_a_model_along_orders_has_its_bound_and_the_likelihood_along_streams():
  model = make('esolm', diffusion={'esolm_diffused': 0.0})
  text = 'the text of 24 letters..'
  nats = -sum(token.logprob for token in model.logprobs(text))
  assert np.log(model.perplexity(text)) == pytest.approx(nats / LENGTH, rel=1e-5)
  nats = -sum(token.logprob for token in model.logprobs(text, streams=3))
  assert np.log(model.perplexity(text, streams=3)) == pytest.approx(nats / LENGTH, rel=1e-5)
  order = ORDERS.right_to_left(5)
  written = model.generate('It is', order=order, count=8)
  # A token that ends texts has no letters.
  assert all(text.startswith('It is') for text in written) and max(map(len, written)) == 10
  with pytest.raises(UserError, match='mend is 2, but'):
    model.generate(streams=2, mend=2)


def test_the_most_likely_text_along_an_order_is_its_own(armd):
  """Each token is the best one given those before it in the order, and those alone."""
  request_order = ORDERS.right_to_left(5)
  text = armd.generate('It is', order=request_order, temperature=0)
  assert len(text) == 10
  order = ORDERS.permutation([1, 2, 3, 4, 5, 10, 9, 8, 7, 6])
  own = armd.logprobs(text, order=order)
  for other in 'aeiou #Z':
    for at in (9, 8, 5):
      changed = armd.logprobs(text[:at] + other + text[at + 1 :], order=order)
      assert changed[at].logprob <= own[at].logprob + 1e-6


def test_a_stream_grows_to_what_generate_returns(armd):
  for how in ({'streams': 4}, {'order': ORDERS.right_to_left(12)}, {'max_new_tokens': 5}):
    texts = list(armd.stream('It', every=1, seed=5, **how))
    assert texts[-1] == armd.generate('It', seed=5, **how)
    assert texts[0] == 'It' and len(texts) > 3
    assert all(text.startswith('It') for text in texts)
  assert '_' in next(text for text in armd.stream('It', streams=4, every=7, seed=5) if text != 'It')
  whole = make('radd').generate('It', seed=5)
  assert list(make('radd').stream('It', seed=5)) == [whole]


def test_prompts_counts_and_ends(armd):
  texts = armd.generate(['a', 'bcd'], max_new_tokens=4)
  assert [text[:1] for text in texts] == ['a', 'b'] and texts[1].startswith('bcd')
  assert armd.generate(['a'], max_new_tokens=4)[0] == armd.generate('a', max_new_tokens=4)
  assert len(armd.generate('a', count=3)) == 3
  whole = armd.generate('bcd', seed=2)
  mark = whole[10:12]
  assert armd.generate('bcd', seed=2, stop=[mark, 'never']) == whole[: whole.index(mark, 3)]


def test_infill_keeps_the_text_around_the_gaps(armd):
  text = armd.infill('to be ____ not', order=ORDERS.blocks([[4, 1], [2, 3]]), seed=1)
  assert text.startswith('to be ') and text.endswith(' not')
  assert len(armd.infill('to ___ be', count=2)) == 2


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda m: m.generate(['a'], count=2), 'write a text, or a list of texts without count'),
    (lambda m: m.generate('a', max_new_tokens=24), 'write at most 23'),
    (lambda m: m.generate('a', max_new_tokens=0), 'max_new_tokens is 0; write a whole number'),
    (lambda m: m.generate('a', streams=25), 'streams holds S = 25, but of 24 tokens there are'),
    (lambda m: m.generate('a', order=[1, 2]), r'order is \[1, 2\]; make one with armd_jax.orders'),
    (lambda m: m.generate('a', stop=3), "stop is 3; write 'none', 'eos', or a list of texts"),
    (lambda m: m.generate('a', stop=['a', 3]), r"stop is \['a', 3\]; write 'none', 'eos', or a"),
    (lambda m: m.generate('a', order=ORDERS.random(3), streams=2), 'give one of them'),
    (
      lambda m: m.generate('a', order=ORDERS.random(3), max_new_tokens=4),
      'one of 3 tokens but 4 are to be placed',
    ),
    (lambda m: next(m.stream('a', every=0)), 'every is 0'),
    (lambda m: next(m.stream('a', every=True)), 'every is True'),
    (lambda m: m.generate('a', streams=10**5000), 'streams is a number of more than 4000 digits'),
    (lambda m: m.generate('a', seed=np.array([1, 2])), r'seed is array\(\[1, 2\]\)'),
    (lambda m: m.generate('a', temperature=np.array([0.5])), r'temperature is array\(\[0.5\]\)'),
    (lambda m: m.generate('a', temperature=10**5000), 'temperature is a number of more than 4000'),
    (lambda m: m.generate('a', max_new_tokens=10**5000), 'max_new_tokens is a number of more'),
    (lambda m: m.infill('a___', gap_tokens=True), 'gap_tokens is True; write 0 to the 24 tokens'),
    (lambda m: m.generate('a', order=GenerationOrder(None, None)), 'no order of tokens; make one'),
    (
      lambda m: m.logprobs('ab', order=GenerationOrder(np.array([[1, 2]]), np.array([[1]]))),
      'no order of tokens; make one',
    ),
    (lambda m: m.logprobs(''), 'the text has 0 tokens; give one of 1 to 24'),
    (lambda m: m.logprobs('x' * 25), 'the text has 25 tokens'),
    (lambda m: m.logprobs('ab', order=ORDERS.random(3)), 'make one of 2'),
    (lambda m: m.perplexity(''), 'the text is empty'),
    (lambda m: m.perplexity(7), 'the text is 7; write a text'),
  ],
)
def test_what_cannot_be_done_is_a_sentence(armd, call, message):
  with pytest.raises(UserError, match=message):
    call(armd)


def test_an_auto_regressive_model_knows_one_order():
  model = make('ar')
  for call, message in (
    (lambda: model.logprobs('ab', order=ORDERS.left_to_right(2)), 'auto-regressive'),
    (lambda: model.generate('a', streams=2), 'auto-regressive'),
    (lambda: model.infill('a ___'), "family 'ar' reads nothing behind a gap and cannot fill it"),
  ):
    with pytest.raises(UserError, match=message):
      call()
  first = make('ar', first_token='given', architecture='gpt2')
  assert len(first.logprobs('abc')) == 3 and first.perplexity('abc' * 20) > 1


def test_unknown_arguments_are_refused(armd):
  for call in (armd.generate, armd.infill, armd.logprobs, armd.perplexity, armd.stream):
    with pytest.raises(TypeError, match='temprature'):
      call('a', temprature=0.5)


def test_a_model_is_a_value(armd):
  assert dataclasses.replace(armd, step=8).step == 8

"""Likelihood of whole texts against brute force, and the bound over orders of a trained model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import models
from armd_jax.data import documents
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.evaluation import likelihood, scores
from armd_jax.objectives import armd
from armd_jax.objectives.mdlm import MDLM
from armd_jax.order import left_to_right, to_generation
from armd_jax.parallel import sharding

N, V = 4, 3
TEXTS = np.array(list(itertools.product(range(V), repeat=N)), np.uint8)
CONFIG = tiny.model_config(length=N, query_seed_chunk=2, num_layers=2)
SHUFFLED = likelihood.shuffled_protocol(config_lib.OrderConfig(max_shuffled=3))
SUITE = [*likelihood.standard_suite(CONFIG, (2, 4)), SHUFFLED]


@pytest.fixture(scope='module')
def network():
  """Parameters, and logits of tokens in generation order, compiled once for all orders."""
  model, params = tiny.init(CONFIG, V, scale=5.0)

  @jax.jit
  def logits(tokens_BxN, order):
    hidden = model.apply({'params': params}, tokens_BxN, order)
    return model.apply({'params': params}, hidden, method='logits')

  return params, logits


def nll(params, protocol, texts=TEXTS, batch_size=27, **options):
  mesh = sharding.make_mesh(config_lib.MeshConfig())
  batches = likelihood.nll(
    models.build(CONFIG, V), params, texts, protocol, mesh, batch_size=batch_size, **options
  )
  return np.concatenate([*batches])


def orders_of(protocol, seed=0):
  every = np.arange(len(TEXTS))
  return protocol.order(N, likelihood.order_keys(seed, every, np.zeros_like(every)))


@pytest.mark.parametrize('protocol', SUITE, ids=lambda p: p.name)
def test_equals_conditionals_from_earlier_blocks_alone(network, protocol):
  """Slot by slot, with everything that must not be seen replaced by another token."""
  params, logits = network
  order = orders_of(protocol)
  tokens_BxN = np.asarray(to_generation(jnp.array(TEXTS, jnp.int32), order))
  block_BxN = np.asarray(order.block_BxN)
  expected = np.zeros(TEXTS.shape)
  for n in range(N):
    seen = np.where(block_BxN < block_BxN[:, n : n + 1], tokens_BxN, (tokens_BxN + 1) % V)
    row_BxV = np.asarray(logits(jnp.array(seen), order), np.float64)[:, n, :V]
    log_p_BxV = row_BxV - np.log(np.exp(row_BxV).sum(-1, keepdims=True))
    expected[:, n] = -np.take_along_axis(log_p_BxV, tokens_BxN[:, n : n + 1], 1)[:, 0]
  found = nll(params, protocol)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  if protocol.kind == 'exact':
    assert np.exp(-found.sum(1, dtype=np.float64)).sum() == pytest.approx(1, rel=1e-5)


def test_random_orders_are_many_and_shuffle_no_more_than_they_should():
  for protocol, most in ((likelihood.UNIFORM, N), (SHUFFLED, 3)):
    positions = np.asarray(orders_of(protocol).position_BxN)
    moved = (positions != np.arange(1, N + 1)).sum(1)
    assert moved.max() == most and len(np.unique(positions, axis=0)) > 5


@pytest.mark.parametrize('protocol', [likelihood.LEFT_TO_RIGHT, likelihood.UNIFORM])
def test_how_windows_are_put_into_batches_changes_nothing(network, protocol):
  params, _ = network
  whole = nll(params, protocol)
  filled = nll(params, protocol, batch_size=50)  # 81 windows: 19 places of the second are filled
  assert filled.shape == TEXTS.shape
  np.testing.assert_allclose(filled, whole, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(nll(params, protocol, start=27), whole[27:])


def test_several_orders_of_every_window(network):
  params, _ = network
  one, three = (nll(params, likelihood.UNIFORM, orders=k) for k in (1, 3))
  first, *others = three.reshape(3, 81, N)
  np.testing.assert_array_equal(first, one)
  for other in others:
    assert not np.allclose(other.sum(1), first.sum(1))
  exact = nll(params, likelihood.LEFT_TO_RIGHT, orders=2)
  np.testing.assert_array_equal(exact[:81], exact[81:])


@pytest.mark.parametrize('protocol', [likelihood.UNIFORM, SHUFFLED], ids=lambda p: p.name)
def test_the_orders_of_a_window_do_not_depend_on_how_many_windows_there_are(network, protocol):
  params, _ = network
  every = nll(params, protocol, orders=3).reshape(3, 81, N)
  few = nll(params, protocol, TEXTS[:20], batch_size=7, orders=3).reshape(3, 20, N)
  np.testing.assert_allclose(few, every[:, :20], rtol=1e-5, atol=1e-6)


def test_the_device_has_batches_before_it_while_results_are_read(network, monkeypatch):
  params, _ = network
  scorer, asked_for = likelihood.scorer, []

  def counting(*where):
    score = scorer(*where)
    return lambda *inputs: asked_for.append(1) or score(*inputs)

  monkeypatch.setattr(likelihood, 'scorer', counting)
  mesh = sharding.make_mesh(config_lib.MeshConfig())
  model = models.build(CONFIG, V)
  batches = likelihood.nll(model, params, TEXTS, likelihood.UNIFORM, mesh, batch_size=9)
  found = [(len(asked_for), next(batches)) for _ in range(9)]
  assert [count for count, _ in found] == [0, 3, 4, 5, 6, 7, 8, 9, 9]
  np.testing.assert_array_equal(
    np.concatenate([x for _, x in found]), nll(params, likelihood.UNIFORM, batch_size=9)
  )


# ----- a model trained left-to-right


@pytest.fixture(scope='module')
def trained():
  """(model, params, held-out windows): every letter is the one before or the next one of five."""
  raw = {
    'model': dict(
      length=8, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32, dtype='float32',
      position_dim=8, dropout=0.0, vocab_multiple=1, scan_layers=False,
    ),
    'order': {'max_shuffled': 2},
  }  # fmt: skip
  config = config_lib.parse(raw)
  tokenizer = ByteTokenizer()
  rng = np.random.RandomState(0)
  steps = np.concatenate([rng.randint(5, size=(640, 1)), rng.randint(2, size=(640, 7))], axis=1)
  windows_WxN = (ord('a') + steps.cumsum(1) % 5).astype(np.uint16)
  model = models.build(config.model, tokenizer.vocab_size)
  order = left_to_right(8)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32), order)['params']
  optimizer = optax.adam(1e-2)

  @jax.jit
  def step(state, text_BxN):
    params, moments = state
    weights = jnp.full(text_BxN.shape, 1 / text_BxN.size)
    loss = lambda p: armd.nll(model, p, text_BxN, order, weights, loss_chunk=8)[0]
    updates, moments = optimizer.update(jax.grad(loss)(params), moments)
    return optax.apply_updates(params, updates), moments

  state = params, optimizer.init(params)
  for i in range(120):
    state = step(state, jnp.array(windows_WxN[i % 8 * 64 : i % 8 * 64 + 64], jnp.int32))
  return model, state[0], windows_WxN[512:]


def test_the_any_order_bound_is_above_left_to_right_and_tightens(trained):
  model, params, windows = trained
  mesh = sharding.make_mesh(config_lib.MeshConfig())
  parts = [
    scores.ScoredWindows(likelihood.LEFT_TO_RIGHT, windows),
    scores.ScoredWindows(likelihood.UNIFORM, windows, orders=16),
  ]
  exact, *found = scores.score(model, ByteTokenizer(), params, parts, mesh, batch_size=64)
  # The text's own: ln 5 for the first letter, ln 2 for each of the others.
  assert exact.nats_per_token == pytest.approx((np.log(5) + 7 * np.log(2)) / 8, rel=0.05)
  assert [s.orders for s in found] == [1, 2, 4, 8, 16]
  assert [s.name for s in found] == [f'uniform orders, K={k}' for k in (1, 2, 4, 8, 16)]
  for looser, tighter in itertools.pairwise(found):
    assert looser.nats_per_token > tighter.nats_per_token
  # However many of these orders there are: none was trained.
  assert all(s.nats_per_token > exact.nats_per_token + 5 * s.standard_error for s in found)


@pytest.mark.parametrize('protocol', SUITE, ids=lambda p: p.name)
def test_of_documents_the_answer_alone_is_scored(network, protocol):
  """Whatever stands in the padding: each answer costs what its conditionals cost."""
  params, _ = network
  prompt, answer = [1], [2, 0]
  windows = np.array([[~1, 2, 0, documents.PADDING], [2, 1, 0, 1], [~2, ~0, 1, 0]], np.int32)
  found = nll(params, protocol, windows, batch_size=2)
  assert ((found > 0).sum(axis=1) == documents.num_scored(windows)).all()
  # All continuations of a prompt have probability 1 together, along one order.
  texts = np.array(list(itertools.product(range(V), repeat=2)), np.int32)
  rows = np.concatenate(
    [np.full((9, 1), ~prompt[0]), texts, np.full((9, 1), documents.PADDING)], axis=1
  ).astype(np.int32)
  nats = nll(params, protocol, rows, batch_size=9).sum(1, dtype=np.float64)
  if protocol.kind == 'exact':
    assert np.exp(-nats).sum() == pytest.approx(1, rel=1e-5)
    assert nats[texts.tolist().index(answer)] == pytest.approx(float(found[0].sum()), rel=1e-4)
  if protocol.streams:  # a window without marks among them costs what it does elsewhere
    plain = nll(params, protocol, windows[1:2], batch_size=2)[0]
    np.testing.assert_allclose(found[1], plain, rtol=1e-4)


def test_a_denoising_bound_is_that_of_the_scored_tokens_after_the_given_ones():
  """What padding hides does not matter, what is given does, and so does what is scored."""
  model, params = tiny.init(tiny.model_config(length=N, family='mdlm'), V)
  mesh = sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1])

  def nats(row):
    windows = np.array([row, [0] * N], np.int32)
    found = likelihood.nll(model, params, windows, likelihood.DENOISING, mesh, batch_size=2)
    return next(found)[0]

  row = [~1, 2, 0, documents.PADDING]
  found = nats(row)
  assert (found != 0).tolist() == [False, True, True, False] and found[1] == found[2] > 0
  assert not np.allclose(found, nats([~0, 2, 0, documents.PADDING]), rtol=1e-4)
  whole = nats([1, 2, 0, documents.PADDING])
  assert whole.sum() != pytest.approx(found.sum(), rel=1e-3)
  assert (nats([1, 2, 0, 1]) > 0).all()

  # Whatever ids are behind the end of a text.
  bound = jax.jit(functools.partial(MDLM().bound, model, params, settings=model.config.diffusion,
                                    samples=4, loss_chunk=N))  # fmt: skip
  texts = jnp.array([[1, 2, 0, 0], [1, 2, 0, 2]])
  keys = jax.random.split(jax.random.key(0), 1)[jnp.zeros(2, int)]
  document = jnp.array([[True, False, False, False]] * 2), jnp.array([3, 3])
  first, second = bound(texts, keys, document=document)
  assert float(first) == pytest.approx(float(second), rel=1e-5)

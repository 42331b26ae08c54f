"""Samples follow the model's distribution, and batching, stopping and truncation do as they say."""

import contextlib
import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from armd_jax import models, order
from armd_jax.attention import hopper
from armd_jax.config import UserError
from armd_jax.decode import cpu
from armd_jax.decode import generate as generate_lib
from armd_jax.decode.generate import generate, lower_generate, plan_of, prepare, stream, task_of
from armd_jax.decode.sampling import Sampling, draw, nucleus
from armd_jax.decode.state import Task
from armd_jax.decode.step import start
from armd_jax.hardware import device
from armd_jax.models.vocabulary import BOS

TEXTS = np.array(list(itertools.product(range(3), repeat=4)))


@functools.cache
def trained_on_nothing():
  config = tiny.model_config(length=4, query_seed_chunk=2, num_layers=2)
  return tiny.init(config, vocab_size=3, scale=4.0)


def enumerate_texts(model, params, generation_order):
  """Probability of each of the 81 texts, from the full forward pass."""
  tokens = order.to_generation(jnp.asarray(TEXTS), generation_order)

  @jax.jit
  def run(params):
    hidden = model.apply({'params': params}, tokens, generation_order)
    log_p = jax.nn.log_softmax(model.apply({'params': params}, hidden, method='logits'))
    return jnp.exp(jnp.take_along_axis(log_p, tokens[..., None], -1).sum((1, 2)))

  return np.asarray(run(params), np.float64)


def shared_task(generation_order, batch):
  return Task.of(generation_order, jnp.zeros(1, int), jnp.full(1, 4), jnp.full(batch, BOS))


# 'blocks' of seed 3 holds a block of two and two singletons.
@pytest.mark.parametrize('name', ['left_to_right', 'uniform', 'blocks', 'strided2'])
@pytest.mark.parametrize('count', [40_000, pytest.param(200_000, marks=pytest.mark.drill)])
def test_sampler_is_the_model(name, count):
  """Samples against the enumerated distribution: chi-square with 80 degrees of freedom, whose 99.9%
  point is 124.8."""
  model, params = trained_on_nothing()
  one = jax.tree.map(lambda x: x[:1], tiny.orders(num_slots=4, seed=3)[name])
  p = enumerate_texts(model, params, one)
  samples = generate(
    model, params, shared_task(one, count), np.zeros((count, 4), np.int32), Sampling(seed=1)
  )
  seen = np.bincount(np.asarray(samples.tokens_BxN) @ [27, 9, 3, 1], minlength=81)
  chi_square = ((seen - count * p) ** 2 / (count * p)).sum()
  assert chi_square < 124.8
  assert p.max() / p.min() > 5  # a flat distribution would test little
  assert int(samples.steps) == int(order.num_blocks(one)[0])


def ragged(streams=2, num_slots=tiny.NUM_SLOTS):
  given = np.zeros((4, num_slots), bool)
  given[1, :5] = True
  given[2, [0, 3, 4, 9]] = True
  return given, np.array([num_slots, num_slots, num_slots, 11])


@functools.cache
def small():
  config = tiny.model_config(num_layers=2)
  return tiny.init(config)


def test_batching_changes_nothing_and_given_tokens_stay():
  model, params = small()
  given, length = ragged()
  text = np.asarray(jax.random.randint(jax.random.key(0), (4, 16), 0, tiny.VOCAB))
  together = generate(model, params, task_of(given, length, 2), text, Sampling(seed=3))
  together = np.asarray(together.tokens_BxN)
  np.testing.assert_array_equal(together[given], text[given])
  for b in (0, 2, 3):
    row = slice(b, b + 1)
    alone = generate(
      model, params, task_of(given[row], length[row], 2), text[row], Sampling(seed=3),
      sequence_B=np.array([b]),
    )  # fmt: skip
    np.testing.assert_array_equal(
      np.asarray(alone.tokens_BxN)[0, : length[b]], together[b, : length[b]]
    )
  again = generate(model, params, task_of(given, length, 2), text, Sampling(seed=4))
  assert (np.asarray(again.tokens_BxN) != together).any()


@pytest.mark.parametrize('streams', [1, 4])
def test_prompts_of_many_lengths_share_few_programs(streams):
  """A compiled program belongs to a plan; of the task it knows shapes alone."""
  model, plans = models.build(tiny.model_config(length=64), tiny.VOCAB), set()
  for length in range(3, 61):
    task = task_of(np.arange(64)[None] < length, np.full(1, 64), streams)
    plans.add(plan_of(model, task))
    assert length <= plan_of(model, task).prefill <= max(2 * length, generate_lib.FEWEST_PREFILL)
  assert {plan.prefill for plan in plans} == {16, 32, 64}
  # The widest blocks of the last few tokens of a text are narrower than those of longer ones.
  assert len(plans) <= 3 + streams - 1
  nothing = task_of(np.zeros((1, 64), bool), np.full(1, 64), streams)
  assert plan_of(model, nothing).prefill == 0


def test_padding_of_the_prefill_changes_no_token(monkeypatch):
  model, params = small()
  given, length = ragged()
  tokens = np.random.RandomState(3).randint(tiny.VOCAB, size=given.shape)
  for rows in ([0, 1, 2, 3], [2]):  # at different places, and in step
    task = task_of(given[rows], length[rows], 2)
    padded = generate(model, params, task, tokens[rows], Sampling(seed=2))
    with monkeypatch.context() as exactly:
      exactly.setattr(generate_lib, 'prefill_rows', lambda given, num_slots: given)
      exact = generate(model, params, task, tokens[rows], Sampling(seed=2))
      assert plan_of(model, task).prefill == given[rows].sum(axis=1).max() < 16
    assert plan_of(model, task).prefill == 16
    np.testing.assert_array_equal(padded.tokens_BxN, exact.tokens_BxN)
    np.testing.assert_allclose(padded.margin_B, exact.margin_B, rtol=1e-3, atol=1e-5)


def test_parameters_may_be_numpy_arrays():
  model, params = small()
  given, length = ragged()
  numpy = jax.tree.map(np.asarray, params)
  for weights in (numpy, prepare(model, numpy)):
    run = generate(model, weights, task_of(given, length, 2), np.zeros_like(given), Sampling())
    expected = generate(model, params, task_of(given, length, 2), np.zeros_like(given), Sampling())
    np.testing.assert_array_equal(run.tokens_BxN, expected.tokens_BxN)


def test_temperature_zero_is_the_likeliest_and_ignores_the_seed():
  model, params = small()
  task = task_of(np.zeros((2, 16), bool), np.array([16, 16]), 1)
  run = lambda seed: generate(
    model, params, task, np.zeros((2, 16), int), Sampling(seed, temperature=0)
  )
  a, b = np.asarray(run(0).tokens_BxN), np.asarray(run(1).tokens_BxN)
  np.testing.assert_array_equal(a, b)
  hidden = model.apply({'params': params}, jnp.asarray(a), order.left_to_right(16))
  best = model.apply({'params': params}, hidden, method='logits').argmax(-1)
  np.testing.assert_array_equal(best, a)


def test_stop_cuts_at_the_first_stop_by_position():
  model, params = small()
  task = task_of(np.zeros((8, 16), bool), np.full(8, 16), 2)
  empty = np.zeros((8, 16), int)
  free = generate(model, params, task, empty, Sampling(seed=5))
  stopped = generate(model, params, task, empty, Sampling(seed=5, stop=2))
  for row, length, full in zip(stopped.tokens_BxN, stopped.length_B, free.tokens_BxN, strict=True):
    expected = np.flatnonzero(np.asarray(full) == 2)
    expected = expected[0] if len(expected) else 16
    assert length == expected
    np.testing.assert_array_equal(row[:length], full[:length])


def test_stop_ends_early_only_when_nothing_is_missing_before_it():
  """Strided S=2 makes position 9 in step 2: a stop there must not end the batch, one at 1 must."""
  model, params = small()
  task = task_of(np.zeros((1, 16), bool), np.array([16]), 2)
  free = generate(model, params, task, np.zeros((1, 16), int), Sampling(seed=6))
  text = np.asarray(free.tokens_BxN)[0]
  stop_first = generate(
    model, params, task, np.zeros((1, 16), int), Sampling(seed=6, stop=int(text[0]))
  )
  assert int(stop_first.steps) == 1 and int(stop_first.length_B[0]) == 0
  # A token whose first occurrence, by position, is j needs the steps that fill positions 1..j+1.
  for token in set(text.tolist()) - {int(text[0])}:
    j = int(np.flatnonzero(text == token)[0])
    stopped = generate(model, params, task, np.zeros((1, 16), int), Sampling(seed=6, stop=token))
    assert int(stopped.length_B[0]) == j
    step_of = {p: s for s, p in enumerate([1, 9], 1)} | {
      p: 2 + (p - 1) % 8 for p in range(1, 17) if p not in (1, 9)
    }
    assert int(stopped.steps) == max(step_of[p] for p in range(1, j + 2))


def test_a_stop_token_in_the_prompt_does_not_stop():
  model, params = small()
  given = np.zeros((1, 16), bool)
  given[0, :2] = True
  text = np.full((1, 16), 2)
  free = generate(model, params, task_of(given, np.array([16]), 1), text, Sampling(seed=1))
  tail = np.flatnonzero(np.asarray(free.tokens_BxN)[0, 2:] == 2)
  stopped = generate(
    model, params, task_of(given, np.array([16]), 1), text, Sampling(seed=1, stop=2)
  )
  assert int(stopped.length_B[0]) == (2 + tail[0] if len(tail) else 16)


def test_nucleus_keeps_the_smallest_set():
  p = np.array([0.1, 0.4, 0.2, 0.3])
  for top_p, kept in (
    (0.05, {1}),
    (0.4, {1}),
    (0.5, {1, 3}),
    (0.75, {1, 2, 3}),
    (1.0, {0, 1, 2, 3}),
  ):
    out = np.asarray(nucleus(jnp.log(p), top_p))
    assert set(np.flatnonzero(np.isfinite(out))) == kept


@pytest.mark.parametrize(
  'at', [contextlib.nullcontext(), device.compiling_for(device.HOPPER)], ids=['here', 'H100']
)
def test_the_likeliest_comes_with_its_lead_and_ties_go_to_the_first(at):
  logits_BxWxV = jnp.round(2 * jax.random.normal(jax.random.key(0), (3, 5, 300)))
  keys_BxW = jnp.broadcast_to(jax.random.key(1), (3, 5))
  with at:
    tokens_BxW, gap_BxW = jax.jit(lambda *args: draw(*args))(keys_BxW, logits_BxWxV, 0.0)
  np.testing.assert_array_equal(tokens_BxW, np.argmax(logits_BxWxV, axis=-1))
  best = np.sort(logits_BxWxV, axis=-1)[..., -2:]
  np.testing.assert_array_equal(gap_BxW, best[..., 1] - best[..., 0])
  assert (gap_BxW == 0).any() and (gap_BxW > 0).any()


def test_draws_are_exact_in_the_tail():
  """A token of probability 1e-4 comes as often as it should (float32 noise alone loses tails)."""
  logits = jnp.log(jnp.array([1 - 1e-4, 1e-4]))
  keys = jax.random.split(jax.random.key(0), (1000, 1000))
  tokens, _ = draw(keys, jnp.broadcast_to(logits, (1000, 1000, 2)), 1.0)
  assert 60 < int(tokens.sum()) < 140  # Poisson of mean 100, four standard deviations


@pytest.mark.parametrize(
  'bad',
  [{'temperature': -1.0}, {'temperature': math.nan}, {'temperature': 'hot'}, {'top_p': 0.0},
   {'top_p': 1.5}, {'top_p': None}, {'seed': -1}, {'seed': 2**32}, {'seed': 0.0}, {'seed': True},
   {'seed': '1'}, {'seed': np.int64(-3)}, {'seed': np.bool_(True)}, {'seed': None}],
)  # fmt: skip
def test_bad_settings_are_refused(bad):
  ((name, value),) = bad.items()
  with pytest.raises(UserError, match=f'^{re.escape(f"{name} is {value!r}")}; write '):
    Sampling(**bad)


@pytest.mark.parametrize('kind', [np.int32, np.int64, np.uint8])
def test_seeds_may_be_of_numpys_types(kind):
  assert Sampling(kind(200)).draws(1).seed == 200
  assert Sampling(0, np.float32(0.5), np.float64(0.5)).draws(1).top_p == 0.5
  assert Sampling(2**32 - 1).draws(1).seed == 2**32 - 1


def test_streaming_tells_of_every_chunk_and_ends_with_the_same_texts():
  model, params = small()
  given, length = ragged()
  text = np.asarray(jax.random.randint(jax.random.key(0), (4, 16), 0, tiny.VOCAB))
  sampling = Sampling(seed=3, stop=2)
  arguments = model, params, task_of(given, length, 2), text, sampling
  at_once = generate(*arguments)
  reports = list(stream(*arguments, chunk=3))
  jax.tree.map(np.testing.assert_array_equal, reports[-1][0], at_once)
  assert [int(generated.steps) for generated, _ in reports[:-1]] == list(
    range(0, int(at_once.steps), 3)
  )
  known_BxN = given & (np.arange(16) < length[:, None])
  np.testing.assert_array_equal(reports[0][1], known_BxN)
  for generated, now_BxN in reports:
    assert (known_BxN <= now_BxN).all()  # what is known stays known, and stays the same
    known_BxN = now_BxN
    same_BxN = np.asarray(generated.tokens_BxN) == np.asarray(at_once.tokens_BxN)
    assert same_BxN[known_BxN].all()
  assert (np.asarray(at_once.length_B) < length).any()
  assert known_BxN[np.arange(16) < np.asarray(at_once.length_B)[:, None]].all()


@pytest.mark.parametrize('width', [1, 4])
def test_kernels_take_caches_as_they_are(width):
  """Whole strips of keys, or every step would copy the caches to fill them up."""
  model, params = small()
  config = model.config
  with device.compiling_for(device.HOPPER):
    task = task_of(np.zeros((2, 16), bool), np.full(2, 16), width)
    begin = lambda network: start(network, plan_of(model, task), task, jnp.zeros((2, 16), int))
    network = jax.eval_shape(functools.partial(prepare, model), params)
    caches = jax.eval_shape(begin, network).network.two_stream
  assert caches
  for cache in caches:
    num_rows = cache.k.shape[1]
    assert cache.k.shape == (2, num_rows, config.num_kv_heads, config.head_dim)
    assert num_rows >= 16 + width and num_rows % hopper.TMA_ROWS == 0


def test_caches_grow_with_the_text(monkeypatch):
  """Three sizes one after the other, and the texts of one size; another batch compiles anew."""
  model, params = small()
  run = lambda batch: generate(
    model, params, task_of(np.zeros((batch, 16), bool), np.full(batch, 16), 2),
    np.zeros((batch, 16), int), Sampling(seed=5),
  )  # fmt: skip
  at_once = run(8)
  monkeypatch.setattr(cpu, 'ROOM', 8)
  rooms = []
  grow = cpu.with_room
  monkeypatch.setattr(cpu, 'with_room', lambda state, room: rooms.append(room) or grow(state, room))
  growing = run(7)
  assert rooms == [8, 16, 24]
  np.testing.assert_array_equal(growing.tokens_BxN, at_once.tokens_BxN[:7])
  assert int(growing.steps) == int(at_once.steps)


@pytest.mark.parametrize(('family', 'streams'), [('ar', 1), ('armd', 1), ('armd', 2)])
def test_no_product_of_a_single_row_on_a_gpu(family, streams):
  config = tiny.model_config(num_layers=2, family=family, attention='reference')
  model, params = tiny.init(config)
  empty_1xN = np.zeros((1, tiny.NUM_SLOTS), np.int32)
  task = task_of(empty_1xN > 0, np.full(1, tiny.NUM_SLOTS), streams)
  expected = generate(model, params, task, empty_1xN, Sampling())
  model = model.clone(config=dataclasses.replace(config, attention='auto'))
  both = task_of(np.zeros((2, tiny.NUM_SLOTS), bool), np.full(2, tiny.NUM_SLOTS), streams)
  narrow = lambda task: plan_of(model, task).narrow
  jax.clear_caches()  # what was traced before would keep its form for a CPU
  with device.compiling_for(device.HOPPER):
    lowered = lower_generate(model, params, task)
    found = generate(model, params, task, empty_1xN, Sampling())
    assert [narrow(task), narrow(both)] == [2, 1]
  jax.clear_caches()
  pattern = r'dot_general .*, contracting_dims = \[(.*)\] x .*: \(tensor<(.*)xf32>, tensor<'
  rows = []
  for inner, sizes in re.findall(pattern, lowered.as_text()):
    inner = [int(axis) for axis in inner.split(', ')]
    rows.append(math.prod(int(n) for i, n in enumerate(sizes.split('x')) if i not in inner))
  assert len(rows) >= 4 * config.num_layers
  assert min(rows) >= 2
  assert narrow(task) == 1
  # Of the same tokens in as many steps, up to rounding.
  np.testing.assert_array_equal(found.tokens_BxN, expected.tokens_BxN)
  assert found.steps == expected.steps
  np.testing.assert_allclose(found.margin_B, expected.margin_B, atol=1e-3)

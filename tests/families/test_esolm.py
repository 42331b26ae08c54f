"""Eso-LM's sampler follows a distribution that is exactly known, with one cache for both phases."""

import functools
import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run

from armd_jax import config as config_lib
from armd_jax import orders
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.decode import requests
from armd_jax.decode import step as step_lib
from armd_jax.decode.sampling import Sampling
from armd_jax.decode.state import Request, Task
from armd_jax.families import FAMILIES
from armd_jax.models.vocabulary import BOS
from armd_jax.objectives import armd
from armd_jax.order import GenerationOrder, to_generation
from armd_jax.training import loop

N, V = 3, 3
TEXTS = np.array(list(itertools.product(range(V), repeat=N)))
COUNT = 4000
generate = FAMILIES['esolm'].generate


class Letters(ByteTokenizer):
  """Ids are texts' own."""

  def decode(self, ids):
    return ''.join(chr(97 + int(i)) for i in ids)


@functools.cache
def decoder(length=N, vocab=V, scale=4.0, share=0.125):
  config = tiny.model_config(
    family='esolm', length=length, num_layers=2, diffusion={'esolm_diffused': share}
  )
  return requests.Decoder(*tiny.init(config, vocab, scale=scale), Letters(), None)


def probability_along(groups):
  """Of every text, along an order of blocks of positions, from 1."""
  found = orders.blocks(groups)
  order = GenerationOrder(jnp.asarray(found.position_BxN), jnp.asarray(found.block_BxN))
  d, weights = decoder(), jnp.zeros(TEXTS.shape)
  _, nll = armd.nll(d.model, d.params, jnp.asarray(TEXTS), order, weights, loss_chunk=N)
  return np.exp(-np.asarray(nll, np.float64).sum(axis=1))


def mixture(share):
  """Of every text, with one token a step: a share of the tokens first, in random order."""
  total = np.zeros(len(TEXTS))
  for k in range(N + 1):
    for shown in itertools.permutations(range(1, N + 1), k):
      rest = [n for n in range(1, N + 1) if n not in shown]
      chance = share**k * (1 - share) ** (N - k) / math.factorial(k)
      total += chance * probability_along([[n] for n in (*shown, *rest)])
  return total


def request(count=COUNT, given=(), text=0):
  given_BxN = np.zeros((count, N), bool)
  given_BxN[:, list(given)] = True
  return Request(np.full((count, N), text, np.int32), given_BxN, np.full(count, N, np.int32))


def counts(generated):
  return np.bincount(np.asarray(generated.tokens_BxN) @ [9, 3, 1], minlength=27)


def chi_square(seen, p):
  return ((seen - COUNT * p) ** 2 / (COUNT * p)).sum()


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_sampler_follows_the_model(share):
  """With so many steps that no two tokens share one. Chi-square over 27 texts: the 99.9% point of
  26 degrees of freedom is 54.1."""
  _, generated = generate(decoder(), request(), Sampling(seed=1), steps=2**20, diffused=share)
  p = mixture(share)
  assert p.sum() == pytest.approx(1)
  assert chi_square(counts(generated), p) < 54.1
  assert COUNT * p.min() > 1
  assert generated.steps == N


def test_phases_matter_and_one_step_reveals_all_tokens_independently():
  _, generated = generate(decoder(), request(), Sampling(seed=1), steps=1, diffused=1.0)
  assert generated.steps == 1 and (np.asarray(generated.step_BxN) == 1).all()
  seen = counts(generated)
  assert chi_square(seen, probability_along([[1, 2, 3]])) < 54.1
  assert chi_square(seen, mixture(1.0)) > 200
  assert chi_square(COUNT * mixture(0.0), mixture(1.0)) > 108


def test_given_tokens_stay_and_condition_the_rest():
  """Whatever is given comes first, so that the order of what is generated is drawn among the rest:
  here two orders, of which one has one chance in four of coming about by diffusion alone."""
  _, generated = generate(
    decoder(), request(given=[1], text=2), Sampling(seed=1), steps=2**20, diffused=0.5
  )
  tokens = np.asarray(generated.tokens_BxN)
  assert (tokens[:, 1] == 2).all() and (np.asarray(generated.step_BxN)[:, 1] == 0).all()
  # Right to left: 3 alone is diffused, or both are and 3 comes first.
  backwards = 0.5 * 0.5 + 0.5 * 0.5 * 0.5
  p = (1 - backwards) * probability_along([[2], [1], [3]])
  p += backwards * probability_along([[2], [3], [1]])
  p = np.where(TEXTS[:, 1] == 2, p, 0)
  is_there = p > 0
  # Divided by the chance of the given token, which comes first in both.
  p = p[is_there] / p.sum()
  assert chi_square(counts(generated)[is_there], p) < 26.1  # 8 degrees of freedom


SLOTS, LETTERS = 48, 257


def prompts():
  return requests.continue_prompts(['ab', '', 'abcd'], SLOTS, ByteTokenizer())


@pytest.mark.parametrize('streams', [1, 12])
def test_cached_steps_draw_what_the_whole_network_would(monkeypatch, streams):
  """At temperature 0: every token is the likeliest of one uncached pass along the order in which
  they came, with blocks of several and, in the end, of one; and as many passes as blocks."""
  d, asked, taken = decoder(SLOTS, LETTERS, 3.0, share=0.5), prompts(), []
  along = requests.Decoder.along
  monkeypatch.setattr(
    requests.Decoder,
    'along',
    lambda self, order, *how: (taken.append(order), along(self, order, *how))[1],
  )
  _, generated = generate(d, asked, Sampling(seed=3, temperature=0.0), streams=streams)
  step_BxN, (order,) = np.asarray(generated.step_BxN), taken
  assert generated.steps == step_BxN.max()
  ids = to_generation(generated.tokens_BxN, order)
  hidden = d.model.apply({'params': d.params}, ids, order)
  logits = d.model.apply({'params': d.params}, hidden, method='logits')
  for b, step_N in enumerate(step_BxN):
    given, sizes = int(asked.given_BxN[b].sum()), np.bincount(step_N)[1:]
    assert (step_N[:given] == 0).all() and (step_N[given:] > 0).all() and (sizes > 0).all()
    assert sizes.max() > (2 if streams == 12 else 0)
    assert (np.diff(step_N[np.asarray(order.position_BxN[b]) - 1]) >= 0).all()
    np.testing.assert_array_equal(logits[b, given:].argmax(axis=-1), ids[b, given:])
    # The sequential phase goes from left to right.
    alone = np.flatnonzero(step_N > step_N.max() - 10)
    assert (np.diff(step_N[alone]) > 0).all()


def test_batching_changes_nothing_and_stops_are_kept():
  d = decoder(SLOTS, LETTERS, 3.0, share=0.5)
  texts, together = generate(d, prompts(), Sampling(seed=3), streams=12)
  first = prompts()
  first = Request(first.tokens_BxN[:1], first.given_BxN[:1], first.length_B[:1])
  (text,), _ = generate(d, first, Sampling(seed=3), streams=12)
  assert text == texts[0]
  other, _ = generate(d, prompts(), Sampling(seed=4), streams=12)
  assert all(a != b for a, b in zip(texts, other, strict=True))
  tokens_N = np.asarray(together.tokens_BxN)[1]
  stop = int(tokens_N[20])
  cut, stopped = generate(d, prompts(), Sampling(seed=3, stop=stop), streams=12)
  assert len(cut[1]) == np.flatnonzero(tokens_N == stop)[0] <= 20
  assert stopped.steps <= together.steps


def test_an_order_takes_the_place_of_the_samplers():
  d = decoder(SLOTS, LETTERS, 3.0)
  order = orders.right_to_left(SLOTS - 2)
  asked = requests.continue_prompts(['ab'], SLOTS, ByteTokenizer())
  texts, generated = generate(d, asked, Sampling(seed=3), order=order)
  assert np.asarray(generated.step_BxN)[0].tolist() == [0, 0, *range(SLOTS - 2, 0, -1)]
  along, _ = d.complete(asked, 1, Sampling(seed=3), order=order)
  assert texts == along


def test_sequential_steps_after_the_diffusion_phase_have_a_row_each(monkeypatch):
  """The last loop is one of the narrow width, and no other seeds compile anew for long."""
  d = decoder(SLOTS, LETTERS, 3.0, share=0.5)
  widths = []
  predict = step_lib.predict
  monkeypatch.setattr(
    step_lib, 'predict', lambda *args: (widths.append(args[3]), predict(*args))[1]
  )
  jax.clear_caches()
  for seed in range(3):
    generate(d, prompts(), Sampling(seed=seed), streams=12)
  assert set(widths) <= {1, 8, 16} and widths[:3] in ([1, 8, 1], [1, 16, 1])


def test_the_tail_begins_behind_the_last_block_of_several():
  """With the step that commits that block as the last one of many rows."""
  block = jnp.array([[1, 1, 1, 2, 3, 3, 4, 5, 6]])
  order = GenerationOrder(jnp.arange(1, 10)[None], block)
  task = Task.of(order, jnp.zeros(1, int), jnp.full(1, 9), jnp.full(1, BOS))
  plan = types.SimpleNamespace(tail=1)

  def is_in_tail(filled, committed):
    state = types.SimpleNamespace(filled_B=jnp.array([filled]), committed_B=jnp.array([committed]))
    return bool(step_lib._in_tail(plan, task, state))

  assert [is_in_tail(*s) for s in ((0, 0), (3, 1), (4, 4), (6, 5), (7, 7), (8, 8))] == [
    False, False, False, False, True, True,
  ]  # fmt: skip


def test_a_run_goes_on_bit_for_bit(tmp_path):
  """Four steps, and two steps and two more in the same work directory."""

  def run(name, steps):
    raw = tiny_run.config(tmp_path)
    raw.model.update(family='esolm', num_layers=1)
    raw.train.update(steps=steps, checkpoint_every=2, eval_every=4, sample_every=4)
    return loop.train(config_lib.parse(raw), tmp_path / name)

  whole = run('whole', 4)
  run('parts', 2)
  jax.tree.map(np.testing.assert_array_equal, run('parts', 4), whole)

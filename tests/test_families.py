"""Every family of the comparison trains, by the one training step, to what is known of a source."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from armd_jax import config as config_lib
from armd_jax import models, training
from armd_jax.artifacts import weights
from armd_jax.decode import requests
from armd_jax.decode.sampling import Sampling
from armd_jax.evaluation import likelihood, scores
from armd_jax.families import FAMILIES
from armd_jax.parallel import sharding
from armd_jax.training import loop

N, V = 8, 4
# A cyclic walk: the next token is the same, or one or two further.
STEP = np.array([0.7, 0.2, 0.1])
GAP = 0.03  # nats per token, of an entropy of 0.875


def texts(count, seed):
  """Texts, and the negative log-probability of each, nats per token."""
  rng = np.random.RandomState(seed)
  moves = rng.choice(3, size=(count, N), p=STEP)
  moves[:, 0] = rng.randint(V, size=count)
  nats_W = (np.log(V) - np.log(STEP[moves[:, 1:]]).sum(axis=1)) / N
  return (np.cumsum(moves, axis=1) % V).astype(np.int32), nats_W


def run_config(family, steps):
  raw = {
    'model': dict(
      family=family, length=N, num_layers=2, embed_dim=32, num_heads=2, dtype='float32',
      dropout=0.0, position_dim=8, query_seed_chunk=0,
    ),
    'order': dict(ar_steps=0, perm_steps=0, max_shuffled=0),
    # At 3e-3 a denoiser may stay at the frequencies of tokens for all of the steps.
    'optimizer': dict(learning_rate=1e-3, warmup_steps=20, ema_decay=0.99),
    'train': dict(steps=steps, batch_size=64, loss_chunk=N),
  }  # fmt: skip
  return config_lib.parse(raw)


@pytest.mark.drill
@pytest.mark.parametrize('family', FAMILIES)
def test_every_family_reaches_the_entropy_of_a_source(family):
  """What its likelihood or bound is above the texts' own -log p, in the mean over held-out texts,
  is its KL divergence from the source, and for a diffusion bound what its looseness adds: more
  than 0 and at most GAP, four standard errors of the mean granted."""
  steps, batch, count = 1500, 64, 512
  c = run_config(family, steps)
  mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
  state, step = training.new_state(c, V, mesh), training.train_step(c, V, mesh)
  for batch_BxN in texts(steps * batch, seed=0)[0].reshape(steps, batch, N):
    state, _ = step(state, batch_BxN)
  protocol = likelihood.standard_suite(c.model, ())[0]
  assert protocol.kind == ('exact' if family in ('armd', 'ar') else 'bound')
  windows_WxN, own_W = texts(count, seed=1)
  nll = likelihood.nll(
    models.build(c.model, V), state.ema, windows_WxN, protocol, mesh, batch_size=count
  )
  above_W = next(nll).mean(axis=1) - own_W
  error = above_W.std() / count**0.5
  print(f'{family}: {above_W.mean():.4f} above the entropy, standard error {error:.4f}')
  assert -4 * error < above_W.mean() < GAP + 4 * error


@pytest.mark.parametrize('family', ['bd3lm', 'setdlm'])
def test_a_run_that_stops_goes_on_bit_for_bit(tmp_path, family):
  """Dropout, times, masks and orders of a step follow from its number."""
  found = []
  for stops in ((4,), (2, 4)):
    for steps in stops:
      raw = tiny_run.config(tmp_path)
      raw.model.update(family=family, num_layers=1)
      raw.train.update(steps=steps, eval_every=4, sample_every=0, checkpoint_every=2)
      loop.train(config_lib.parse(raw), tmp_path / str(stops))
    found.append(weights.load_ema(tmp_path / str(stops)))
  assert found[0][3] == found[1][3] == 4
  jax.tree.map(np.testing.assert_array_equal, found[0][2], found[1][2])


def test_a_run_learns_is_measured_and_generates(tmp_path, capsys):
  """The programs' own functions, for the family that needs most of its own: noise as an input,
  scores that nothing normalises. Words of letters are told from random bytes in 30 steps."""
  raw = tiny_run.config(tmp_path)
  raw.model.update(family='sedd', num_layers=1)
  raw.train.update(steps=30, eval_every=30, sample_every=30, checkpoint_every=30)
  loop.train(config_lib.parse(raw), tmp_path / 'run')
  records = list(map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()))
  losses = [r['loss'] for r in records if 'loss' in r]
  assert len(losses) == 30 and np.isfinite(losses).all()
  (held_out,) = (r['held_out'] for r in records if 'held_out' in r)
  assert held_out < np.log(256) - 1
  (text,) = (r['sample'] for r in records if 'sample' in r)
  assert text and f'sample: {text}' in capsys.readouterr().out
  config, tokenizer, params, step = weights.load_ema(tmp_path / 'run')
  assert step == 30
  windows = np.tile(np.frombuffer(b'alpha beta gamma', np.uint8), (12, 1))
  model, mesh = models.build(config.model, tokenizer.vocab_size), sharding.make_mesh(config.mesh)
  (score,) = scores.evaluate(model, tokenizer, params, windows, (2, 4), mesh, batch_size=12)
  assert (score.name, score.kind) == ('denoising, random orders', 'bound')
  request = requests.fill_gaps('a____b', 0, 1, 16, tokenizer)
  decoder = requests.Decoder(model, params, tokenizer, mesh)
  (text,), generated = FAMILIES['sedd'].generate(
    decoder, request, Sampling(seed=1), steps=4, sampler='euler'
  )
  assert text.startswith('a') and text.endswith('b') and 1 <= generated.steps <= 4

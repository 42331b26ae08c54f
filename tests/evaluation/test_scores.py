"""Scores are the arithmetic of per-window nats, whether they were measured in one go or not."""

import math

import numpy as np
import pytest
import tiny

from armd_jax import config as config_lib
from armd_jax import models
from armd_jax.data.tokenizers import ByteTokenizer
from armd_jax.evaluation import journal as journal_lib
from armd_jax.evaluation import last_word, likelihood, scores
from armd_jax.parallel import sharding

TOKENIZER = ByteTokenizer()
RAW = {
  'model': dict(length=8, num_layers=2, embed_dim=16, num_heads=2, dtype='float32', position_dim=8),
  'order': {'max_shuffled': 2},
}
CONFIG = config_lib.parse(RAW)
MODEL = models.build(CONFIG.model, TOKENIZER.vocab_size)
MESH = sharding.make_mesh(CONFIG.mesh)


@pytest.fixture(scope='module')
def params():
  return tiny.init(CONFIG.model, TOKENIZER.vocab_size)[1]


def windows(count=7):
  """Letters, in every window one EOS."""
  rows = np.random.RandomState(0).randint(97, 123, (count, 8)).astype(np.uint16)
  rows[:, 3] = TOKENIZER.eos_id
  return rows


def parts():
  return [
    scores.ScoredWindows(likelihood.LEFT_TO_RIGHT, windows(), 'One'),
    scores.ScoredWindows(likelihood.UNIFORM, windows(5), 'Two', orders=4),
  ]


def test_numbers_belong_together(params):
  first, *others = scores.score(MODEL, TOKENIZER, params, parts(), MESH, batch_size=4)
  assert (first.text, first.name, first.kind) == ('One', 'left-to-right', 'exact')
  assert first.tokens == 7 * 8
  assert first.nats_per_byte == pytest.approx(first.nats_per_token * 8 / 7)  # EOS has no bytes
  assert first.bits_per_byte == pytest.approx(first.nats_per_byte / math.log(2))
  assert first.perplexity == pytest.approx(math.exp(first.nats_per_token))
  assert first.row()['perplexity'] == first.perplexity
  assert [(s.text, s.orders) for s in others] == [('Two', 1), ('Two', 2), ('Two', 4)]
  one_by_one = [
    scores.score(MODEL, TOKENIZER, params, [part], MESH)[0]
    for part in (scores.ScoredWindows(likelihood.LEFT_TO_RIGHT, w[None]) for w in windows())
  ]
  nats = np.array([s.nats_per_token for s in one_by_one])
  assert first.nats_per_token == pytest.approx(nats.mean(), rel=1e-5)
  assert first.standard_error == pytest.approx(nats.std(ddof=1) / math.sqrt(7), rel=1e-4)
  assert one_by_one[0].standard_error is None
  text = scores.table([first, *others, one_by_one[0]])
  assert f'{first.nats_per_token:10.4f}' in text and 'Two | uniform orders, K=4' in text


class NoBytes(ByteTokenizer):
  """As one that a user registers without bytes, and as any is on text of [UNK] alone."""

  def __init__(self):
    super().__init__()
    self.token_bytes_V = np.zeros(self.vocab_size, np.int32)


def test_what_holds_no_bytes_has_no_number_per_byte(params):
  first, *_ = scores.score(MODEL, TOKENIZER, params, parts()[:1], MESH, batch_size=4)
  (found,) = scores.score(MODEL, NoBytes(), params, parts()[:1], MESH, batch_size=4)
  assert (found.nats_per_byte, found.bits_per_byte) == (None, None)
  assert found.nats_per_token == first.nats_per_token
  _, line = scores.table([found]).splitlines()
  assert line.split()[-6:-3] == ['exact', '-', '-']
  (with_bytes,) = scores.table([first]).splitlines()[1:]
  assert len(line) == len(with_bytes)
  scores.check_rows([found.row()])


class Crash(Exception):
  pass


def crashing(path, after):
  """A journal whose program dies while it writes row number `after`."""

  class Crashing(journal_lib.Journal):
    def add(self, part, rows):
      if self.count >= after:
        raise Crash
      super().add(part, rows)

  return Crashing(path, {})


@pytest.mark.parametrize('after', [0, 4, 7, 20])
def test_goes_on_where_it_stopped(params, tmp_path, after):
  run = lambda journal: scores.score(
    MODEL, TOKENIZER, params, parts(), MESH, batch_size=4, seed=3, journal=journal
  )
  expected = run(None)
  path = tmp_path / 'partial'
  with pytest.raises(Crash):
    run(crashing(path, after))
  journal = journal_lib.Journal(path, {})
  assert after <= journal.count < after + 4
  assert run(journal) == expected
  # And once everything is there, nothing is measured again.
  assert run(crashing(path, 0)) == expected


def test_last_words(params, tmp_path):
  rows = ['ab cd e', 'a bc', 'e f', 'd cba', 'b b']
  passages = last_word.passages(rows, TOKENIZER, CONFIG.model)
  run = lambda journal: scores.score_last_words(
    MODEL, params, passages, MESH, batch_size=2, journal=journal
  )
  found = run(None)
  assert (found.passages, found.cut, found.accuracy) == (5, 0, 0)
  assert found.perplexity > 100 and 'of 5;' in found.text()
  with pytest.raises(Crash):
    run(crashing(tmp_path / 'partial', 2))
  assert run(journal_lib.Journal(tmp_path / 'partial', {})) == found


def test_model_fingerprint(params):
  before = scores.model_fingerprint(params, MESH)
  assert scores.model_fingerprint(params, MESH) == before
  changed = {**params, 'final_norm': {'scale': params['final_norm']['scale'].at[0].add(1e-6)}}
  assert scores.model_fingerprint(changed, MESH) != before

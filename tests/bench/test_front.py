"""The front of all families: each one's likelihood, speed and texts by its own code."""

import dataclasses
import json
import types

import numpy as np
import pytest

from armd_jax import config as config_lib
from armd_jax import families, order
from armd_jax.bench import front
from armd_jax.errors import UserError
from armd_jax.evaluation import likelihood
from armd_jax.objectives import armd
from armd_jax.training.loop import train
from tests import tiny_run


class Judge:
  """Reads bytes, and finds an 'a' likelier than other letters."""

  name, context = 'a judge', 64

  def encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(int)

  def nats(self, windows):
    return [np.where(ids_T[1:] == ord('a'), 1.0, 3.0) for ids_T in windows]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('front')
  raw = tiny_run.config(folder)
  raw.train.update(steps=2, eval_every=2, checkpoint_every=2)
  paths = {}
  for family in ('ar', 'armd', 'mdlm'):
    raw.model.family = family
    paths[family] = f'{folder}/{family}'
    train(config_lib.parse(raw), folder / family)
  return types.SimpleNamespace(folder=folder, raw=raw, **paths)


def test_all_families_are_measured_by_their_own_ways(runs, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(front.judging, 'open_judge', lambda path: Judge())
  options = front.Options(
    run=(runs.ar, runs.armd, runs.mdlm), streams=(1, 4), steps=(0, 4), batch_sizes=(1, 2),
    repeats=1, windows=3, gaps=(6,), samples=2, judge='here', json=f'{tmp_path}/f.json',
    png=f'{tmp_path}/f.png',
  )  # fmt: skip
  front.main(options)
  numbers = json.loads((tmp_path / 'f.json').read_text())
  rows = {row['way']: row for row in numbers['ways']}
  assert {name: (row['kind'], row['steps']) for name, row in rows.items()} == {
    'ar, S = 1': ('exact', 16),
    'armd, S = 1': ('exact', 16),
    'armd, S = 4': ('exact', 7),
    'mdlm, T = 16': ('bound', rows['mdlm, T = 16']['steps']),
    'mdlm, T = 4': ('bound', rows['mdlm, T = 4']['steps']),
  }
  # The network runs only where something is revealed.
  assert rows['mdlm, T = 4']['steps'] <= 4 < rows['mdlm, T = 16']['steps'] <= 16
  assert rows['mdlm, T = 4']['nats_per_byte'] == rows['mdlm, T = 16']['nats_per_byte']
  assert rows['armd, S = 1']['nats_per_byte'] != rows['armd, S = 4']['nats_per_byte']
  assert rows['ar, S = 1']['gaps'] == {'6': None}  # it reads nothing behind one
  assert rows['armd, S = 1']['gaps']['6'] != rows['armd, S = 4']['gaps']['6'] > 0
  for row in rows.values():
    assert set(row['tokens_per_second']) == {'1', '2'} and row['entropy_nats'] > 0
    assert np.e < row['judge_perplexity'] < 20.1  # all 'a', no 'a'
  out = capsys.readouterr().out
  assert 'armd, S = 4' in out and 'tokens/s, batch 2' in out
  assert (tmp_path / 'f.png').stat().st_size > 10_000


def test_a_way_scores_its_own_likelihood(runs):
  decoders, windows_WxN = front._opened([runs.armd])
  decoder, windows_WxN = decoders['armd'], windows_WxN[:3]
  one, four = front.held_out(front.ways('armd', decoder, (1, 4), ()), windows_WxN)
  for row, protocol in (
    (one, likelihood.LEFT_TO_RIGHT),
    (four, likelihood.strided_protocols(4)[0]),
  ):
    nll = likelihood.nll(
      decoder.model, decoder.params, windows_WxN, protocol, decoder.mesh, batch_size=3
    )
    assert row['nats_per_token'] == pytest.approx(likelihood.mean_nats(nll)[0], rel=1e-6)


def test_a_gap_costs_what_its_tokens_do_after_all_others(runs):
  """By the chain rule along one order: of the whole window, less the window without the gap."""
  decoders, windows_WxN = front._opened([runs.armd])
  decoder, windows_WxN = decoders['armd'], windows_WxN[:3]
  (found,) = front.gaps(front.ways('armd', decoder, (1,), ()), windows_WxN, 6)
  is_given_N = np.ones(16, bool)
  is_given_N[5:11] = False
  around = order.given_first(is_given_N[None].repeat(3, 0), np.full(3, 16), 1)
  _, nll_BxN = armd.nll(
    decoder.model, decoder.params, windows_WxN.astype(np.int32), around, np.zeros((3, 16)),
    loss_chunk=16,
  )  # fmt: skip
  assert found == pytest.approx(float(nll_BxN[:, -6:].sum()) / 3, rel=1e-5)


def test_texts_follow_the_way(runs):
  decoders, _ = front._opened([runs.armd])
  first, _ = front.ways('armd', decoders['armd'], (1, 4), ())
  texts = front.written(first, 3, 2)
  assert len(texts) == 3 and len(set(texts)) == 3
  assert texts == front.written(first, 3, 2)


def test_empty_texts_are_counted_beside_the_numbers_that_leave_them_out(runs):
  decoders, _ = front._opened([runs.armd])
  (way,) = front.ways('armd', decoders['armd'], (1,), ())
  alone = front.judged(way, ['aab', 'ba'], Judge(), ())
  assert alone['empty_texts'] == 0
  assert front.judged(way, ['aab', '', 'ba'], Judge(), ()) == alone | {'empty_texts': 1}


def test_what_does_not_compare_is_refused(runs, tmp_path):
  with pytest.raises(UserError, match='two runs are called ar; give'):
    front._opened([runs.ar, runs.ar])
  runs.raw.model.update(family='ar', length=8)
  train(config_lib.parse(runs.raw), runs.folder / 'shorter')
  with pytest.raises(UserError, match=r'different lengths of text \(.*ar: 16, .*shorter: 8\)'):
    front._opened([runs.ar, f'{runs.folder}/shorter'])
  with pytest.raises(UserError, match='S = 17, but of 16'):
    front.main(front.Options(run=(runs.armd,), streams=(17,), gaps=()))
  with pytest.raises(UserError, match='--gaps=8,16 is more than a window of 16 tokens has'):
    front.main(front.Options(run=(runs.ar,), gaps=(8, 16)))
  with pytest.raises(UserError, match='--mauve compares texts by a judge'):
    front.main(front.Options(run=(runs.ar,), mauve=True))


def test_every_family_has_a_way(runs):
  """Whatever is registered is on the front."""
  for name in families.FAMILIES:
    model = dataclasses.replace(config_lib.parse(runs.raw).model, family=name, length=16)
    decoder = types.SimpleNamespace(model=types.SimpleNamespace(config=model))
    found = front.ways(name, decoder, (1, 2), (4, 2))
    assert len(found) == (1 if model.orders == 'left_to_right' else 2)

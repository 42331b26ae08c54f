"""The decoding benchmark counts steps as published and refuses bad stride counts."""

import dataclasses
import json

import jax
import pytest

from armd_jax import config as config_lib
from armd_jax import evaluate
from armd_jax.bench import decode
from armd_jax.errors import UserError
from armd_jax.training.loop import train
from tests import tiny_run

SHAPE = dict(num_layers=2, embed_dim=32, num_heads=2, length=16, position_dim=8, dtype='float32')


@pytest.fixture(scope='module')
def timed():
  systems = decode.systems(SHAPE, 11, [1, 2, 4])
  return [decode.compiled(system, batch_size=2) for system in systems]


def test_rows(timed):
  rows = decode.measure(timed, 16, 2, repeats=2)
  assert [row['system'] for row in rows] == ['AR, cached', 'ARMD S=1', 'ARMD S=2', 'ARMD S=4']
  assert [row['steps'] for row in rows] == [int(one.run().steps) for one in timed] == [16, 16, 9, 7]
  for row in rows:
    assert row['tokens'] == 32 and row['tokens_per_second'] == row['tokens'] / row['seconds']
    assert row['seconds_per_sequence'] == row['seconds'] / 2
    assert min(row['seconds'], row['prefill_seconds'], row['compile_seconds']) > 0
    weights = decode.systems(SHAPE, 11, [])[0].network
    assert row['memory_bytes'] > sum(x.nbytes for x in jax.tree.leaves(weights))
  text = decode.report(rows)
  assert len(text.splitlines()) == 5 and 'ARMD S=4' in text


def test_floor_of_a_step(timed):
  """AR: every matrix once, and two products with 9 keys of width 32 in both layers."""
  (bytes_, ar), *_, (_, four) = (one.step_floor for one in timed)
  params = decode.systems(SHAPE, 11, [])[0].network.whole()
  assert bytes_ == sum(x.nbytes for x in jax.tree.leaves(params))
  matrices = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
  assert ar == 2 * 2 * (matrices + 2 * 2 * 9 * 32)  # of two texts
  assert 4 < four / ar < 6  # the two-stream layer has more rows than tokens


def test_what_memory_does_not_hold_is_not_timed(timed, monkeypatch):
  needs = sorted(one.memory_bytes for one in timed)
  monkeypatch.setattr(decode, 'memory_limit', lambda: needs[0])
  rows = decode.measure(timed, 16, 2, repeats=1)
  assert [row['seconds'] is None for row in rows] == [
    row['memory_bytes'] > needs[0] for row in rows
  ]
  assert any(row['seconds'] for row in rows) and ' - ' in decode.report(rows)


def test_bad_stride():
  with pytest.raises(UserError, match='S = 17, but of 16 tokens there are 1 to 16'):
    decode.systems(SHAPE, 11, [17])


def test_program_writes_its_numbers(tmp_path, capsys):
  sizes = {
    k: v for k, v in SHAPE.items() if k in ('num_layers', 'embed_dim', 'num_heads', 'length')
  }
  options = decode.Options(
    **sizes, vocab_size=11, streams=(2,), repeats=1, mdlm=(64, 4), json=f'{tmp_path}/d.json',
    png=f'{tmp_path}/d.png',
  )  # fmt: skip
  decode.main(options)
  numbers = json.loads((tmp_path / 'd.json').read_text())
  assert numbers['shape']['length'] == 16 and numbers['machine']['cpu_cores'] >= 1
  steps = {row['system']: row['steps'] for row in numbers['systems']}
  assert steps.pop('MDLM T=4') <= 4 < steps['MDLM T=64'] <= 16  # only where something is revealed
  assert list(steps.values())[:2] == [16, 9]
  assert all(row['tokens_per_second'] > 0 for row in numbers['systems'])
  assert (tmp_path / 'd.png').stat().st_size > 10_000
  out = capsys.readouterr().out
  assert 'N = 16' in out and 'prefill' in out


def test_streams_that_begin_behind_a_text(tmp_path, capsys):
  raw = tiny_run.config(tmp_path)
  raw.train.update(steps=1, eval_every=1, checkpoint_every=1)
  train(config_lib.parse(raw), tmp_path / 'run')
  options = dict(workdir=f'{tmp_path}/run', streams=(4,), repeats=1, windows=4)
  decode.main(decode.Options(**options, behind=' ', json=f'{tmp_path}/d.json'))
  numbers = json.loads((tmp_path / 'd.json').read_text())
  (even,), (behind,) = numbers['quality'], numbers['quality_behind']
  assert even['streams'] == behind['streams'] == 4 and even['nats'] != behind['nats']
  assert "streams that begin behind ' '" in capsys.readouterr().out
  with pytest.raises(UserError, match=r"--behind='ab' is 2 tokens of bytes.*write a text that is"):
    decode.main(decode.Options(**options, behind='ab'))
  for name in ('behind', 'text'):
    with pytest.raises(UserError, match=f'--{name} measures a trained model'):
      decode.main(decode.Options(**{name: ' '}))


def test_another_text_is_scored_as_by_evaluate(tmp_path, capsys):
  raw = tiny_run.config(tmp_path)
  raw.train.update(steps=1, eval_every=1, checkpoint_every=1)
  train(config_lib.parse(raw), tmp_path / 'run')
  text = tmp_path / 'other.txt'
  text.write_text('another text, whose lines are many\n' * 20)
  options = decode.Options(
    workdir=f'{tmp_path}/run', text=f'wikitext2={text}', streams=(2,), repeats=1,
    json=f'{tmp_path}/d.json',
  )  # fmt: skip
  decode.main(options)
  (found,) = json.loads((tmp_path / 'd.json').read_text())['quality']
  asked = dict(workdir=f'{tmp_path}/run', suite='sedd', texts=(f'wikitext2={text}',), streams=(2,))
  evaluate.main(evaluate.Options(**asked, json=f'{tmp_path}/e.json'))
  scores = json.loads((tmp_path / 'e.json').read_text())['scores']
  (parallel,) = [row['nats_per_token'] for row in scores if 'S=2, parallel' in row['name']]
  assert found['nats'] == pytest.approx(parallel, rel=1e-5)
  assert 'windows of WikiText2' in capsys.readouterr().out
  with pytest.raises(UserError, match="there is no text 'wiki'"):
    decode.main(dataclasses.replace(options, text='wiki'))
  assert 'system' not in capsys.readouterr().out  # before anything is timed

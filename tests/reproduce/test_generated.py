"""What trained systems write: each by its own ways, with junctions where streams meet."""

import dataclasses
import types

import numpy as np
import pytest
import synthetic

from armd_jax import config as config_lib
from armd_jax.reproduce import front_tables, generated
from armd_jax.reproduce import pieces as p
from armd_jax.training.loop import train


class Judge:
  name, context = 'a judge', 64

  def encode(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(int)

  def nats(self, windows):
    return [np.where(ids_T[1:] == 32, 1.0, 3.0) for ids_T in windows]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('generated')
  words = ' '.join(f'word{i} and' for i in range(400))
  (folder / 'text.txt').write_text(words.replace('9 and', '9.\n\n'))
  raw = synthetic.config()
  raw.data.source = str(folder / 'text.txt')
  raw.train.update(steps=2, eval_every=2, checkpoint_every=2)
  folders = {}
  for system in ('ar', 'armd', 'mdlm'):
    raw.model.family = system
    folders[system] = folder / system
    config = config_lib.parse(raw)
    train(config, folders[system])
  return types.SimpleNamespace(folders=folders, data=config.data)


def piece(kind, **changes):
  found = next(q for q in p.all_pieces(synthetic.config()) if q.kind == kind)
  return dataclasses.replace(found, **changes)


def test_the_front_has_every_way_of_every_system(runs, monkeypatch):
  monkeypatch.setattr(generated, '_judge', lambda path: Judge() if path else None)
  for name, value in (('SAMPLES', 2), ('REPEATS', 1), ('BATCH_SIZES', (1, 2)), ('GAPS', (8,))):
    monkeypatch.setattr(generated, name, value)
  one = piece('front', streams=(1, 4), steps=(8,), windows=3)
  found = generated.front(one, runs.folders, runs.data, 'here')
  assert [row['way'] for row in found['ways']] == [
    'ar, S = 1', 'armd, S = 1', 'armd, S = 4', 'mdlm, T = 8',
  ]  # fmt: skip
  assert found['judge'] == 'a judge' and all(row['judge_perplexity'] for row in found['ways'])
  assert set(found['ways'][0]['tokens_per_second']) == {'1', '2'}


def test_prompts_are_gone_on_with_and_junctions_kept(runs, monkeypatch):
  monkeypatch.setattr(generated, '_judge', lambda path: Judge() if path else None)
  one = piece('texts', streams=(1, 4), windows=3)
  found = generated.texts(one, runs.folders['armd'], runs.data, 'here')
  first, four = found['rows']
  assert first['junctions'] == [[]] * 3 and first['near'] is None and first['perplexity']
  # A quarter of 32 tokens is given, and the rest is cut into four runs of six.
  assert [(cuts[0], len(cuts)) for cuts in four['junctions']] == [(14, 3)] * 3
  assert four['near'] and four['elsewhere']
  for one_by_one, at_once in zip(first['texts'], four['texts'], strict=True):
    assert one_by_one[:8] == at_once[:8]
  unjudged = generated.texts(one, runs.folders['armd'], runs.data, '')
  assert unjudged['judge'] is None and unjudged['rows'][1]['perplexity'] is None
  assert unjudged['rows'][1]['entropy_nats'] > 0


def test_a_mark_is_put_where_streams_meet():
  assert front_tables._marked('abcd', [1, 3]) == 'a▮bc▮d'
  assert front_tables._marked('abcd', []) == 'abcd'

"""What docs/records/scaling.json holds is of today's sources, and is what docs/scaling.md shows."""

import dataclasses
import pathlib

import known_stale
import pytest

from armd_jax import records
from armd_jax.bench import scaling

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def results():
  return records.Records(ROOT / scaling.PATH).read()


def test_results_are_complete_and_of_this_code(results):
  today = {row.key: (scaling.stamp(row), scaling.readers()) for row in scaling.rows()}
  assert results.keys() == today.keys()
  stale = {key for key, row in results.items() if (row['stamp'], row['readers']) != today[key]}
  known_stale.check(records.Records(scaling.PATH), stale, 'python -m armd_jax.bench.scaling')


def test_what_does_not_fit_says_what_would(results):
  for key, row in results.items():
    if row['kind'] == 'train':
      assert row['memory']['fits'] != ('fix' in row), key


def test_the_document_shows_the_results(results):
  assert scaling.tables(results) in (ROOT / 'docs/scaling.md').read_text()


def test_stamps_cover_the_code_of_a_row_and_no_other():
  every = {row.key: row for row in scaling.rows()}
  covered = {
    key: {str(path.relative_to(ROOT / 'armd_jax')) for path in records.closure(*scaling.code(row))}
    for key, row in every.items()
  }
  train, train_gpu, generate = map(
    covered.get, ('7b v5p:8x8x16 512', '7b h100 512', 'small h100 generate')
  )
  assert {'training/__init__.py', 'objectives/armd.py', 'parallel/axes.py'} <= train & train_gpu
  assert {'decode/state.py', 'decode/generate.py', 'models/layers.py'} <= generate
  assert 'attention/tpu_call.py' in train - train_gpu
  assert 'attention/hopper_kernels.py' in (train_gpu & generate) - train
  assert not {'training/metrics.py', 'objectives/mdlm.py', 'decode/cpu.py'} & (train | generate)


def test_stamps_follow_the_config_of_a_row(monkeypatch):
  configs = {name: scaling.experiment(name) for name in scaling.MODELS.values()}
  monkeypatch.setattr(scaling, 'experiment', configs.get)
  every = {row.key: row for row in scaling.rows()}
  some = [every[key] for key in ('7b v5p:8x8x16 512', '7b h100 512', 'small h100 generate')]
  before = list(map(scaling.stamp, some))
  wider = dataclasses.replace(configs['owt_7b'].model, mlp_dim=8192)
  configs['owt_7b'] = dataclasses.replace(configs['owt_7b'], model=wider)
  after = list(map(scaling.stamp, some))
  assert [a != b for a, b in zip(after, before, strict=True)] == [True, True, False]


def test_a_program_that_is_known_is_not_compiled_again(tmp_path, monkeypatch):
  """Runs go on where they stopped; what is of other sources is looked at again."""
  asked = []

  def measure(row, known):
    asked.append((row.key, known))
    return {'memory': {'total': 1, 'usable': 2}, 'program': row.key}

  monkeypatch.setattr(scaling, 'measure', measure)
  path = tmp_path / 'scaling.json'
  scaling.run(path, 'ladder')
  some = [row.key for row in scaling.rows() if 'ladder' in row.key]
  assert asked == [(key, None) for key in some]
  asked.clear()
  scaling.run(path, '')
  every = [row.key for row in scaling.rows()]
  assert [key for key, _ in asked] == [key for key in every if key not in some]
  assert set(records.Records(path).read()) == set(every)
  for changed in ('stamp', 'readers'):
    asked.clear()
    monkeypatch.setattr(scaling, changed, lambda *_: 'of other code')
    scaling.run(path, '1024')
    ((key, known),) = asked
    assert key == 'ladder 1024'
    # What other readers would make of the same program nobody knows.
    assert known is None if changed == 'readers' else known['program'] == key

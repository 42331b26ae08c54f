"""What docs/scaling.json holds is of today's sources, and is what docs/scaling.md shows."""

import dataclasses
import json
import pathlib

import pytest

from armd_jax.bench import scaling

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def results():
  return json.loads((ROOT / 'docs/scaling.json').read_text())


def test_results_are_of_these_sources(results):
  stale = [key for key, row in results['rows'].items() if row['stamp'] != scaling.stamp()]
  assert not stale, 'run python -m armd_jax.bench.scaling again'


def test_what_does_not_fit_says_what_would(results):
  for key, row in results['rows'].items():
    if row['kind'] == 'train':
      assert row['memory']['fits'] != ('fix' in row), key


def test_the_document_shows_the_results(results):
  assert scaling.tables(results) in (ROOT / 'docs/scaling.md').read_text()


def test_the_stamp_follows_the_sources(tmp_path, monkeypatch):
  configs = {name: scaling.experiment(name) for name in scaling.MODELS.values()}
  monkeypatch.setattr(scaling, 'experiment', configs.get)
  monkeypatch.setattr(scaling, 'ROOT', tmp_path)
  for name in ('training', 'metrics', 'models/layers'):
    path = tmp_path / f'armd_jax/{name}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('1')
  before = scaling.stamp()
  (tmp_path / 'armd_jax/metrics.py').write_text('2')
  assert scaling.stamp() == before  # training is compiled without it
  for name in ('training', 'models/layers'):
    (tmp_path / f'armd_jax/{name}.py').write_text('2')
    assert scaling.stamp() != before
    before = scaling.stamp()
  wider = dataclasses.replace(configs['owt_7b'].model, mlp_dim=8192)
  configs['owt_7b'] = dataclasses.replace(configs['owt_7b'], model=wider)
  assert scaling.stamp() != before


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
  assert list(json.loads(path.read_text())['rows']) == every
  asked.clear()
  monkeypatch.setattr(scaling, 'stamp', lambda: 'of other sources')
  scaling.run(path, '1024')
  ((key, known),) = asked
  assert key == 'ladder 1024' and known['program'] == key

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
  rows = {row.key: row for row in scaling.rows()}
  stale = [
    k for k, r in results['rows'].items() if not r.items() >= scaling.stamps(rows[k]).items()
  ]
  assert not stale, 'run python -m armd_jax.bench.scaling again'


def test_what_does_not_fit_says_what_would(results):
  for key, row in results['rows'].items():
    if row['kind'] == 'train':
      assert row['memory']['fits'] != ('fix' in row), key


def test_the_document_shows_the_results(results):
  assert scaling.tables(results) in (ROOT / 'docs/scaling.md').read_text()


def test_every_source_exists():
  sources = scaling.PROGRAMS, scaling.READERS, *scaling.KINDS.values(), *scaling.KERNELS.values()
  assert all(any(ROOT.glob(pattern)) for patterns in sources for pattern in patterns)


def test_stamps_follow_the_sources_of_a_row(tmp_path, monkeypatch):
  configs = {name: scaling.experiment(name) for name in scaling.MODELS.values()}
  monkeypatch.setattr(scaling, 'experiment', configs.get)
  monkeypatch.setattr(scaling, 'ROOT', tmp_path)
  every = {row.key: row for row in scaling.rows()}
  some = ['7b v5p:8x8x16 512', '7b h100 512', 'small h100 generate']

  def changed(path):
    """The rows of `some` whose stamps a change of a source changes, and which of the two."""
    before = {key: scaling.stamps(every[key]) for key in some}
    file = tmp_path / 'armd_jax' / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('changed')
    after = {key: scaling.stamps(every[key]) for key in some}
    pairs = [(key, name) for key in some for name in after[key]]
    return [(key, name) for key, name in pairs if after[key][name] != before[key][name]]

  assert changed('metrics.py') == changed('bench/scaling.py') == []
  assert changed('training.py') == changed('models/layers.py') == [(key, 'stamp') for key in some]
  assert changed('objectives/armd.py') == [(key, 'stamp') for key in some[:2]]
  assert changed('decode/state.py') == [(some[2], 'stamp')]
  assert changed('attention/tpu_call.py') == [(some[0], 'stamp')]
  assert changed('attention/hopper_kernels.py') == [(key, 'stamp') for key in some[1:]]
  assert changed('hlo.py') == [(key, 'readers') for key in some]
  before = [scaling.stamps(every[key]) for key in some]
  wider = dataclasses.replace(configs['owt_7b'].model, mlp_dim=8192)
  configs['owt_7b'] = dataclasses.replace(configs['owt_7b'], model=wider)
  after = [scaling.stamps(every[key]) for key in some]
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
  assert list(json.loads(path.read_text())['rows']) == every
  for changes in ({'stamp': 'of other sources'}, {'readers': 'others'}):
    asked.clear()
    stamps = scaling.stamps
    monkeypatch.setattr(scaling, 'stamps', lambda row, c=changes, old=stamps: old(row) | c)
    scaling.run(path, '1024')
    ((key, known),) = asked
    assert key == 'ladder 1024'
    # What other readers would make of the same program nobody knows.
    assert known is None if 'readers' in changes else known['program'] == key

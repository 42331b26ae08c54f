"""Pieces: their configs are valid, and each is run once for a text and code."""

import dataclasses
import json

import pytest
import synthetic
import tiny_run

from armd_jax import config as config_lib
from armd_jax import records
from armd_jax.data import corpus as corpus_lib
from armd_jax.errors import UserError
from armd_jax.reproduce import page, run
from armd_jax.reproduce import pieces as p
from armd_jax.reproduce import place as place_lib

DRILL_ALSO = ('experiments/miniature.py',)
PIECES = p.all_pieces(synthetic.config())


# What that family sets: masks as queries in all layers.
ESOLM = ('query_seed', 'query_seed_norm', 'content_mask', 'num_two_stream_layers')


class Recorder:
  """Does pieces by writing down that they were done, and results that were made up."""

  def __init__(self, failing=''):
    self.done, self.failing = [], failing

  def __call__(self, piece, place, key):
    if piece.name == self.failing:
      raise UserError('it does not work')
    self.done.append(piece.name)
    record = {'kind': piece.kind, 'seconds': 1.0, 'result': synthetic.result(piece)}
    place.keep(piece.name, key, record)
    return {'stamp': key, 'seconds': 1.0}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A place where all is done, and what was done in which order."""
  place, recorder = synthetic.place(tmp_path_factory.mktemp('finished')), Recorder()
  assert run.run(PIECES, place, 1, recorder) == []
  return place, recorder.done


def test_every_piece_is_done_once_and_after_what_it_needs(finished):
  _, done = finished
  assert sorted(done) == sorted(piece.name for piece in PIECES)
  for piece in PIECES:
    assert all(done.index(need) < done.index(piece.name) for need in piece.needs)


def test_every_config_is_valid_and_keeps_what_is_measured(finished):
  place, _ = finished
  trained = {piece.name: piece for piece in PIECES if piece.kind == 'train'}
  for piece in trained.values():
    config = place_lib.config_of(piece, place)
    assert all(step % config.train.keep_every == 0 for step in piece.steps)
    assert max(piece.steps) == config.train.steps
    if piece.base:
      base = place_lib.config_of(trained[piece.base], place)
      assert base.model == config.model and base.train.steps < config.train.steps
  for piece in PIECES:
    if piece.kind in ('evaluate', 'speed'):
      assert set(piece.steps) <= set(trained[piece.needs[0]].steps), piece.name


def test_systems_differ_by_family_and_orders_alone(finished):
  """At every seed: the same tokens, sizes and optimizer, but for the rate of the sweep; all are
  read at the same steps, and those whose bounds fall slowly are trained on and read once more."""
  place, _ = finished
  by_name = {piece.name: piece for piece in PIECES}
  ours = config_lib.to_dict(place_lib.config_of(by_name[p.core_name('armd', 0)], place))
  for seed in p.SEEDS:
    found = set()
    for system in p.SYSTEMS:
      raw = config_lib.to_dict(place_lib.config_of(by_name[p.core_name(system, seed)], place))
      del raw['model']['family'], raw['order'], raw['optimizer']['learning_rate']
      del raw['model']['diffusion']  # a family reads its own part of it
      if system == 'esolm':
        raw['model'] |= {name: ours['model'][name] for name in ESOLM}
      piece, long = by_name[p.core_name(system, seed)], p.long_steps(synthetic.config())
      assert (long in piece.steps) == (system in p.ANY_ORDER)
      assert {long // p.LONG // part for part in (1, 2, 4)} <= set(piece.steps)
      del raw['train']['keep_every'], raw['train']['checkpoint_every'], raw['train']['steps']
      found.add(json.dumps(raw))
    assert len(found) == 1


def test_finished_pieces_are_not_done_again(finished):
  place, _ = finished
  again = Recorder()
  run.run(PIECES, place, 1, again)
  assert again.done == []
  assert place_lib.results_of(place, PIECES).keys() == {piece.name for piece in PIECES}


def test_a_run_whose_weights_are_elsewhere_is_done_again_where_they_are_read(finished, tmp_path):
  """As where pieces.json came from another machine."""
  place, _ = finished
  here = synthetic.place(tmp_path)
  lacking = 'length.32.many.strided'
  lines = place.kept.path.read_text('utf-8').splitlines(keepends=True)
  lines = [line for line in lines if f'"{lacking}"' not in line]
  here.kept.path.write_text(''.join(lines), 'utf-8')
  recorder = Recorder()
  run.run(PIECES, here, 1, recorder)
  # The base of the fine-tune is needed as well; what else was read from it is still there.
  assert recorder.done == ['core.armd.0', 'length.32.many', lacking]
  here.keep(lacking, 'of other code', {'kind': 'evaluate', 'seconds': 1.0, 'result': {}})
  key = here.result('length.32.many')['stamp']
  (here.run_folder('length.32.many', key) / 'checkpoints' / '28').mkdir(parents=True)
  recorder = Recorder()
  run.run(PIECES, here, 1, recorder)
  assert recorder.done == [lacking]


def test_another_text_or_result_is_done_anew(finished, tmp_path):
  some = run.chosen(PIECES, '^rate.ar')
  place, first = synthetic.place(tmp_path), Recorder()
  run.run(some, place, 1, first)
  record = place.result('rate.ar.0.0005')
  del record['stamp']
  place.keep('rate.ar.0.0005', 'of other code', record)
  lost = Recorder()
  run.run(some, place, 1, lost)
  assert lost.done == ['rate.ar.0.0005']
  other = Recorder()
  run.run(some, synthetic.place(tmp_path, sha256='cd34'), 1, other)
  assert sorted(other.done) == sorted(first.done)


def test_another_judge_reads_the_texts_anew_whatever_its_name(finished, tmp_path):
  (wrote,) = (piece for piece in PIECES if piece.name == 'texts')
  place = dataclasses.replace(finished[0], judge=str(tmp_path / 'judge.gguf'))
  needs = {name: 'of what it needs' for piece in PIECES for name in piece.needs}
  keys = set()
  for held in (b'a judge', b'another', None):
    place_lib._held_by.cache_clear()
    if held:
      (tmp_path / 'judge.gguf').write_bytes(held)
    keys.add(place_lib.key_of(wrote, place if held else finished[0], needs))
  assert len(keys) == 3


def test_the_best_rate_is_read_from_the_sweep(finished, tmp_path):
  place = synthetic.place(tmp_path)
  run.run(run.chosen(PIECES, '^rate.ar'), place, 1, Recorder())
  name = p.evaluated(p.rate_name('ar', 1.25e-3))
  record = place.result(name)
  for rows in record['result'].values():
    rows[0]['nats_per_byte'] = 0.5
  place.keep(name, record.pop('stamp'), record)
  (piece,) = (piece for piece in PIECES if piece.name == p.core_name('ar', 0))
  assert place_lib.config_of(piece, place).optimizer.learning_rate == 1.25e-3


def test_what_needs_a_failed_piece_is_left_and_the_rest_done(tmp_path, capsys):
  some = run.chosen(PIECES, '^core.(ar|mdlm).0')
  recorder = Recorder(failing='rate.ar.0.003')
  failed = run.run(some, synthetic.place(tmp_path), 1, recorder)
  assert failed == [
    'rate.ar.0.003',
    'rate.ar.0.003.scores',
    'core.ar.0',
    'core.ar.0.scores',
  ]
  assert 'core.mdlm.0.scores' in recorder.done
  assert 'rate.ar.0.003 failed (it does not work)' in capsys.readouterr().err


def test_some_pieces_bring_what_they_need():
  names = [piece.name for piece in run.chosen(PIECES, '^core.ar.1.scores$')]
  assert names[-2:] == ['core.ar.1', 'core.ar.1.scores'] and len(names) == 8
  with pytest.raises(UserError, match='matches no piece'):
    run.chosen(PIECES, 'nothing')
  with pytest.raises(UserError, match='no regular expression'):
    run.chosen(PIECES, '(')


def test_results_cover_what_they_are_made_with():
  covered = {
    kind: {
      str(path.relative_to(records.ROOT / 'armd_jax'))
      for path in records.closure(entries, place_lib.WITHOUT)
    }
    for kind, entries in place_lib.ENTRIES.items()
  }
  training = {'training/__init__.py', 'models/armd.py', 'config.py', 'data/pipeline.py'}
  assert training <= covered['train']
  assert {'evaluation/scores.py', 'reproduce/work.py'} <= covered['evaluate']
  assert {'decode/generate.py', 'hardware/clock.py'} <= covered['speed']
  assert {'compiled/flops.py', 'bench/train_step.py'} <= covered['cost']


@pytest.mark.drill
def test_every_kind_runs_and_fills_the_page(tmp_path):
  """In two processes: a base, its scores, a fine-tune, sampling and the costs."""
  tiny_run.write_experiment(tmp_path)
  place = synthetic.place(tmp_path / 'work', source=str(tmp_path / 'text.txt'))
  some = run.chosen(PIECES, r'^core\.sedd\.0|^length\.32\.many|^length\.32\.speed|^cost$')
  assert run.run(some, place, 2) == []
  raw = synthetic.config()
  raw.data.source = str(tmp_path / 'text.txt')
  corpus = corpus_lib.load(config_lib.parse(raw).data, raw.model.length)
  numbers = page.numbers(raw, place, PIECES, 'a command', corpus)
  assert numbers['pieces'].keys() == {piece.name for piece in some}
  page.write(numbers, tmp_path / 'out')
  text = (tmp_path / 'out' / 'reproduction.md').read_text()
  assert 'SEDD-absorb' in text and 'ARMD S=32' in text and 'core.ar.0' in text
  runs = {path.name.rsplit('-', 1)[0]: path for path in (tmp_path / 'work' / 'runs').iterdir()}
  kept = {int(path.name) for path in (runs['core.armd.0'] / 'checkpoints').iterdir()}
  assert kept == {6, 8, 12, 24}

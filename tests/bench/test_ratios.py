"""The ratios that `make bench` keeps for every commit."""

import json

import pytest

from armd_jax.bench import ratios
from armd_jax.errors import UserError

DRILL_ALSO = ('armd_jax/bench/decode.py', 'armd_jax/bench/train_step.py', 'armd_jax/train.py')

TINY = (
  '--num_layers=1', '--embed_dim=16', '--num_heads=2', '--length=16', '--vocab_size=11',
  '--repeats=1',
)  # fmt: skip


def record(commit, number):
  return {'commit': commit, 'date': '2026-01-01'} | dict.fromkeys(ratios.RATIOS, number)


@pytest.mark.drill
def test_every_ratio_is_measured():
  model = {'length': 32, 'num_layers': 1, 'embed_dim': 16, 'num_heads': 2}
  start = [*ratios.START, *(f'--config.model.{name}={value}' for name, value in model.items())]
  found = ratios.measure(
    [*TINY, '--streams=1,4'], [*TINY, '--loss_chunk=16', '--batch_size=1'], start, repeats=1
  )
  assert found.keys() == ratios.RATIOS.keys() | {'import_seconds', 'start_seconds'}
  assert all(value > 0 for value in found.values())
  # A run imports what the training loop imports, and that imports jax.
  assert found['start_seconds'] > found['import_seconds'] and found['import_over_jax'] > 1


def test_a_part_that_fails_is_a_sentence(capfd):
  with pytest.raises(UserError, match=r'python -m armd_jax.bench.decode ended with exit code 1'):
    ratios.measure(['--streams=99', *TINY])
  assert '--streams' in capfd.readouterr().err


def test_lines_are_added_and_drawn(tmp_path):
  path = tmp_path / 'records' / 'history.jsonl'
  first, second = record('aaaa', 1.5), record('bbbb+', 2.0)
  assert ratios.append(path, first) == [first]
  assert ratios.append(path, second) == [first, second]
  assert [json.loads(line) for line in path.read_text().splitlines()] == [first, second]
  ratios.draw([first, second], tmp_path / 'history.png')
  assert (tmp_path / 'history.png').read_bytes().startswith(b'\x89PNG')


def test_the_commit_is_named_with_its_date():
  found = ratios.commit()
  assert len(found['commit'].rstrip('+')) == 10 and len(found['date']) == 10


def test_committed_lines_hold_every_ratio():
  path = ratios.ROOT / ratios.HISTORY
  lines = path.read_text('utf-8').splitlines()
  assert lines
  for line in lines:
    assert ratios.RATIOS.keys() < json.loads(line).keys()

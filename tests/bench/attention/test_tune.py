"""Tuning with a timer that knows the answer; what it writes is what the kernels take."""

import json
import math

import pytest

from armd_jax.attention import shapes, tpu_blocks
from armd_jax.bench.attention import tune

SHAPE = shapes.NAMED['train_1024_12x64']


def _timer(wanted_forward, wanted_backward):
  """Fast for the wanted cuts only; refuses blocks without any key beyond a unit."""
  calls = []

  def seconds(shape, streams, blocks, backward):
    calls.append((shape, streams, blocks, backward))
    chosen = blocks[backward]
    if chosen.keys == 2048:
      return math.inf
    wanted = wanted_backward if backward else wanted_forward
    return 1.0 if (chosen.rows, chosen.keys, chosen.unit_rows) == wanted else 2.0

  return seconds, calls


def test_fastest_blocks_reach_the_kernels_through_the_table(tmp_path, monkeypatch):
  timer, calls = _timer((512, 512, 256), (256, 1024, 256))
  path = tmp_path / 'tpu_blocks.json'
  path.write_text('{"v4 of somebody else": []}\n')
  tune.tune(path, 'v5e', [SHAPE.name], timer)
  assert {streams for _, streams, _, _ in calls} == {2}
  # Backward is timed with the forward blocks that won.
  assert {blocks[0].rows for *_, blocks, backward in calls if backward} == {512}

  arguments = 'v5e', 1, SHAPE.rows, SHAPE.keys, SHAPE.head_dim, 2
  assert set(json.loads(path.read_text())) == {'v4 of somebody else', tpu_blocks.name(*arguments)}
  before = tpu_blocks.choose(*arguments)
  monkeypatch.setattr(tpu_blocks, 'TABLE', path)
  tpu_blocks.tuned.cache_clear()
  forward, backward = tpu_blocks.choose(*arguments)
  tpu_blocks.tuned.cache_clear()
  assert (forward.rows, forward.keys, forward.unit_rows) == (512, 512, 256)
  assert (backward.rows, backward.keys, backward.unit_rows) == (256, 1024, 256)
  assert backward.span >= SHAPE.keys
  assert not any(blocks[1].transposed for *_, blocks, _ in calls)
  assert any(blocks[0].transposed for *_, blocks, _ in calls)
  assert before != (forward, backward)


def test_decoding_is_tuned_as_the_kernels_fold_it(tmp_path):
  timer, _ = _timer((0, 0, 0), (0, 0, 0))
  path = tmp_path / 'table.json'
  tune.tune(path, 'v6e', ['decode_8_of_1024_32/8x128'], timer)
  assert set(json.loads(path.read_text())) == {
    'v6e copies=1 rows=32 keys=1024 D=128 bytes=2',
    'v6e copies=1 rows=64 keys=1024 D=128 bytes=2',
  }


def test_candidates_are_distinct_and_include_no_tile_beyond_the_keys():
  options = tune.candidates(1024, 1024)
  assert len(options) == len(set(options)) > 10
  assert max(b.keys for b in options) == 1024


def test_nothing_that_runs_is_an_error():
  with pytest.raises(ValueError, match='refuses all'):
    tune.fastest([1, 2], lambda _: math.inf)


def test_what_the_rule_takes_for_long_calls_is_tried():
  """Forward on a narrow and on a wide matrix unit, one query head to a key head."""
  tried = tune.candidates(4096, 4096)
  for chip in ('v5e', 'v6e'):
    forward, _ = tpu_blocks.rule(chip, 1, 4096, 4096, 128, 2)
    assert forward in tried, chip

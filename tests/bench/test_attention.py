"""The attention benchmark on a machine without the device."""

import json

import pytest

from armd_jax.attention import schedule
from armd_jax.bench import attention as bench
from armd_jax.errors import UserError

PASS = {
  'blocks': [512, 256, 128, 128],
  'active': 3,
  'partial': 2,
  'cycles_per_active_tile': 100,
  'useful': 0.5,
}


def test_compiled_view_lists_every_program(tmp_path):
  path = tmp_path / 'aot.json'
  programs = {'v5e train_1024_12x64 x2': {'forward': PASS, 'backward': {**PASS, 'useful': 0.7}}}
  path.write_text(json.dumps({'stamp': schedule.stamp(), 'programs': programs}))
  (row,) = bench.compiled_rows(path)
  assert (row['chip'], row['shape'], row['streams']) == ('v5e', 'train_1024_12x64', 2)
  assert (row['tile'], row['active'], row['partial']) == ('512x256', 3, 2)
  assert (row['forward useful'], row['backward useful']) == (0.5, 0.7)


def test_compiled_view_says_what_is_missing(tmp_path):
  path = tmp_path / 'aot.json'
  with pytest.raises(UserError, match='python -m armd_jax'):
    bench.compiled_rows(path)
  path.write_text(json.dumps({'stamp': 'old', 'programs': {}}))
  with pytest.raises(UserError, match='other sources'):
    bench.compiled_rows(path)

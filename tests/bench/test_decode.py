"""The decoding benchmark counts steps as published and refuses bad stride counts."""

import json
import subprocess
import sys

import pytest

from armd_jax.bench import decode
from armd_jax.config import UserError

SHAPE = dict(num_layers=2, embed_dim=32, num_heads=2, length=16, pe_dim=8, dtype='float32')


def test_rows():
  systems = decode.systems(SHAPE, 11, [1, 2, 4], None)
  rows = decode.measure(systems, 11, batch_size=2, repeats=2)
  assert [row['system'] for row in rows] == ['AR, cached', 'ARMD S=1', 'ARMD S=2', 'ARMD S=4']
  assert [row['steps'] for row in rows] == [16, 16, 9, 7]
  for row in rows:
    assert row['tokens'] == 32 and row['tokens_per_second'] == row['tokens'] / row['seconds']
    assert min(row['seconds'], row['prefill_seconds'], row['compile_seconds']) > 0
  text = decode.report(rows)
  assert len(text.splitlines()) == 5 and 'ARMD S=4' in text


def test_bad_stride():
  with pytest.raises(UserError, match='S = 3, which does not divide the length 16'):
    decode.systems(SHAPE, 11, [3], None)


def test_program_writes_its_numbers(tmp_path):
  sizes = {
    k: v for k, v in SHAPE.items() if k in ('num_layers', 'embed_dim', 'num_heads', 'length')
  }
  flags = [f'--{name}={value}' for name, value in sizes.items()]
  flags += ['--vocab_size=11', '--streams=2', '--repeats=1', f'--json={tmp_path}/d.json']
  command = [sys.executable, '-m', 'armd_jax.bench.decode', *flags]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  numbers = json.loads((tmp_path / 'd.json').read_text())
  assert numbers['shape']['length'] == 16 and numbers['machine']['cpu_cores'] >= 1
  assert [row['steps'] for row in numbers['systems']] == [16, 9]
  assert 'N = 16' in done.stdout and 'prefill' in done.stdout

"""The whole command: it ends in time with a table, a page and a picture, whatever stages do."""

import json
import os
import subprocess
import sys

import made_rows
import pytest

from armd_jax.bench.device import __main__ as command
from armd_jax.bench.device import page, stages
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.environment import ROOT
from armd_jax.bench.device.stages import Process, Stage
from armd_jax.errors import UserError


def _python(name, code):
  return lambda place: [Stage(name, 8, (Process(name, (sys.executable, '-c', code)),))]


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the command in this process; returns the rows."""
  monkeypatch.setattr(command, 'SCRATCH', tmp_path / 'scratch')
  monkeypatch.setattr(command.signal, 'signal', lambda *_: None)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')

  def call(*flags):
    command.main([f'--out={tmp_path / "out"}', f'--kept={tmp_path / "kept"}', *flags])
    return rows_lib.read(tmp_path / 'out')

  return call


def test_one_stage_hangs_one_fails_and_the_others_are_measured(run, tmp_path, monkeypatch, capsys):
  real = {name: stages.STAGES[name] for name in ('ceilings', 'torch')}
  hangs, fails = _python('smoke', 'while 1: 0'), _python('numerics', 'raise SystemExit(3)')
  monkeypatch.setattr(stages, 'STAGES', {'smoke': hangs, 'numerics': fails} | real)
  names = ','.join(stages.STAGES)
  found = run(f'--stages={names}')
  assert found['process', 'smoke: smoke']['error'].startswith('killed after 8 s')
  assert 'exit code 3' in found['process', 'numerics: numerics']['error']
  product = found['ceilings', 'product']
  assert product['dry'] and product['tflops'] > 0 and product['device']
  text = (tmp_path / 'out' / page.PAGE).read_text()
  assert page.DRY in text and 'killed after 8 s' in text and page.PICTURE in text
  assert (tmp_path / 'out' / page.PICTURE).read_bytes().startswith(b'\x89PNG')
  assert page.DRY in (tmp_path / 'out' / page.TABLE).read_text()
  assert page.DRY in capsys.readouterr().out
  # Again, after the folder of results was emptied: what was measured is there, and is not again.
  for path in (tmp_path / 'out').iterdir():
    path.unlink()
  ceilings = rows_lib.lines(tmp_path / 'kept')
  again = run(f'--stages={",".join(real)}')
  assert again['ceilings', 'product'] == product
  measured = lambda lines: [
    x for x in lines if json.loads(x)['stage'] not in ('machine', 'process')
  ]
  assert measured(rows_lib.lines(tmp_path / 'kept')) == measured(ceilings)


def test_without_time_the_page_is_made_all_the_same(run, tmp_path):
  found = run('--stages=ceilings,models', f'--limit={command.FOR_PAGE + 2}')
  assert {row.get('skipped') for (stage, _), row in found.items() if stage == 'process'} == {
    rows_lib.NO_TIME
  }
  assert (tmp_path / 'out' / page.PAGE).exists()


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    (['--stages=smoke,walk'], '--stages=walk is unknown'),
    (['--limit=3'], 'leaves no time'),
    (['--limit=long'], 'see --help'),
    (['--ptxas=carried'], 'needs --wheels'),
    (['--wheels=nowhere'], 'holds no wheels'),
  ],
)
def test_bad_flags(run, flags, told):
  with pytest.raises(UserError, match=told):
    run(*flags)


def test_it_imports_nothing_that_could_be_missing(tmp_path):
  """Python alone, without any package."""
  told = subprocess.run(
    [sys.executable, '-I', '-S', '-c', f'import sys; sys.path.insert(0, {str(ROOT)!r}); '
     'sys.argv[1:] = ["--help"]; import runpy; '
     'runpy.run_module("armd_jax.bench.device", run_name="__main__")'],
    text=True, capture_output=True, env={'PATH': os.environ['PATH']},
  )  # fmt: skip
  assert told.returncode == 0 and '--stages' in told.stdout, told.stderr


def test_wrong_flag_is_one_sentence(tmp_path):
  told = subprocess.run(
    [sys.executable, '-m', 'armd_jax.bench.device', '--out', str(tmp_path), '--stages=walk'],
    text=True, capture_output=True, cwd=ROOT,
  )  # fmt: skip
  assert told.returncode == 1 and told.stderr.startswith('error: --stages=walk is unknown')
  assert len(told.stderr.splitlines()) == 1


def test_a_page_of_rows_that_are_there(run, tmp_path, capsys):
  with pytest.raises(UserError, match='holds no rows'):
    run('--page_only')
  found = made_rows.rows()
  text = ''.join(f'{json.dumps(row)}\n' for row in found.values())
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / rows_lib.FILE).write_text(text)
  assert run('--page_only') == found
  assert made_rows.DEVICE in (tmp_path / 'out' / page.PAGE).read_text()
  assert (tmp_path / 'out' / page.PICTURE).exists()
  assert not (tmp_path / 'kept').exists()

"""Every stage measures what it should, here at tiny sizes on the CPU, and sees what is wrong."""

import dataclasses
import importlib.util
import json
import lzma
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax.attention import reference, shapes
from armd_jax.bench.device import (
  ahead,
  calls,
  cases,
  ceilings,
  decode,
  environment,
  learn,
  numerics,
  smoke,
  stages,
  suite,
  times,
  torch_times,
  train,
)
from armd_jax.bench.device import rows as rows_lib

SMALL = cases.SMOKE['both 64']


@pytest.fixture
def rows(tmp_path):
  job = rows_lib.Job('stage', tmp_path / 'out', tmp_path / 'kept', time.time() + 600)
  rows_lib.merge(job.out, job.kept)
  return rows_lib.Rows(job, 'a CPU', dry=True)


def found(rows, stage='stage'):
  return {key: row for (of, key), row in rows_lib.read(rows.job.out).items() if of == stage}


def broken(monkeypatch, change):
  """Attention whose results are changed."""

  def ours(lengths):
    attend = lambda q, k, v: reference.prefix_attention(q, k, v, lengths)
    return lambda q, k, v: change(attend, q, k, v)

  monkeypatch.setattr(calls, 'ours', ours)


# ---- attention ---------------------------------------------------------------------------------


def test_sizes_of_a_real_run_and_of_a_dry_one():
  grouped = cases.Case('train_4096_32/8x128', 2, 1)
  assert calls.size_of(grouped, dry=False) == (2, (4096, 4096, 32, 8, 128))
  batch, (length, keys, heads, groups, dim) = calls.size_of(grouped, dry=True)
  assert (batch, length, heads, groups, dim) == (1, keys, 2, 1, 128)
  every = (*cases.SMOKE.values(), *cases.NUMERICS, *cases.TIMES)
  for case in every:
    batch, (length, keys, heads, groups, dim) = calls.size_of(case, dry=False)
    assert heads % groups == 0 and dim in (64, 128, 256)
    lengths = calls.lengths(case, batch, calls.size_of(case, dry=False)[1])
    assert lengths.shape in ((1, case.streams, length), (batch, case.streams, length))
    assert lengths.min() >= 0 and lengths.max() <= keys


def test_keys_are_all_different():
  for keys in (
    [case.key for case in cases.NUMERICS],
    [case.key for case in cases.TIMES],
    [step.key for step in cases.STEPS],
    [cases.decode_key(*run) for run in cases.DECODED],
  ):
    assert len(set(keys)) == len(keys)


def test_order_lengths_are_those_of_the_shape():
  for name in ('train_1024_12x64', 'decode_8_of_1024_12x64'):
    case = cases.Case(name, 1, 2)
    ours = calls.lengths(case, *calls.size_of(case, dry=False))
    np.testing.assert_array_equal(ours, shapes.NAMED[name].lengths(2))


def test_smoke_of_what_is_right():
  told = smoke.check(SMALL, dry=True)
  assert told['ok'] and set(told) == {'ok', 'compile_s', 'out', 'dq', 'dk', 'dv'}
  assert 0 < told['dk'] < smoke.TOLERANCE  # bfloat16 rounds, or it would not be compared


@pytest.mark.parametrize(
  'change',
  [
    lambda attend, q, k, v: 1.05 * attend(q, k, v),
    lambda attend, q, k, v: attend(q, k, v) * jnp.nan,
  ],
)
def test_smoke_sees_what_is_wrong(monkeypatch, change):
  broken(monkeypatch, change)
  assert not smoke.check(SMALL, dry=True)['ok']


def test_numerics_of_what_is_right():
  case = cases.Case('small', 2, 2, (40, 56, 2, 1, 64), 'random', runs=3)
  told = numerics.check(case, dry=False)
  assert told['ok'] and told['moved'] == 0 and told['runs'] == 3
  assert told['dv'] > 0 and told['dv xla'] > 0


def test_numerics_sees_a_wrong_gradient(monkeypatch):
  def doubled(attend, q, k, v):
    @jax.custom_jvp
    def same(x):
      return x

    same.defjvp(lambda x, t: (x[0], 2 * t[0]))
    return attend(q, same(k), v)

  broken(monkeypatch, doubled)
  told = numerics.check(dataclasses.replace(SMALL, size=(32, 32, 2, 2, 64)), dry=False)
  assert not told['ok']
  assert told['dk'] > 0.5 and told['dq'] < 0.01 and told['out'] < 0.01


def test_numerics_sees_runs_that_differ(monkeypatch):
  real, turns = numerics.program, iter((0, 2**-7, 0))  # what is added to the results of each run

  def program(lengths):
    run = real(lengths)

    def moved(*arguments):
      off = next(turns)
      return [x.at[(0,) * x.ndim].add(off) for x in run(*arguments)]

    return moved

  monkeypatch.setattr(numerics, 'program', program)
  told = numerics.check(dataclasses.replace(SMALL, size=(32, 32, 2, 2, 64), runs=3), dry=False)
  assert told['moved'] == 1 and not told['ok']
  assert told['out'] < 0.01  # the first run was right


def test_numerics_of_many_rows_at_a_time_is_that_of_few(monkeypatch):
  case = cases.Case('small', 1, 2, (50, 50, 2, 1, 64))
  batch, size = calls.size_of(case, dry=False)
  lengths = jnp.asarray(calls.lengths(case, batch, size))
  arguments = [x.astype(jnp.float32) for x in calls.arrays(case, batch, size)]
  whole = numerics.by_rows(*arguments, lengths)
  monkeypatch.setattr(numerics, 'ROWS_AT_ONCE', 16)
  for a, b in zip(whole, numerics.by_rows(*arguments, lengths), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_numerics_takes_its_part_and_what_is_asked_for(rows, monkeypatch):
  seen = []
  monkeypatch.setattr(numerics, 'check', lambda case, dry: seen.append(case.key) or {'ok': True})
  for part in range(4):
    assert numerics.main(rows, [f'{part}', '4']) == 0
  assert sorted(seen) == sorted(case.key for case in cases.NUMERICS)
  seen.clear()
  other = dataclasses.replace(rows.job, stage='again')
  numerics.main(rows_lib.Rows(other), ['0', '1', 'holes B2 x2'])
  assert seen == ['holes B2 x2']


def test_repeated_calls_are_all_made():
  made = []

  def call(q, x):
    jax.debug.callback(lambda: made.append(1))
    return q * x, q + x

  q = jnp.arange(6.0).reshape(2, 3)
  results = calls.repeated(call)([q, q + 1, q + 2], q)
  jax.effects_barrier()
  for i, (product, total) in enumerate(results):
    np.testing.assert_array_equal(product, (q + i) * q)
    np.testing.assert_array_equal(total, q + i + q)
  assert len(made) == 3


def test_times(rows, monkeypatch):
  monkeypatch.setattr(times, 'TIMES', (cases.TIMES[1],))
  assert times.main(rows, []) == 0
  kinds = {(k.rsplit(' ', 2)[1], k.rsplit(' ', 1)[1]) for k in found(rows)}
  assert kinds == {(name, kind) for name in ('ours', 'xla') for kind in cases.KINDS}
  assert all(row['ms'] > 0 and row['dry'] for row in found(rows).values())


def test_times_of_a_real_run_stand_beside_others(monkeypatch):
  monkeypatch.setattr(calls, 'peak', lambda: 989e12)
  keys = {one.key for case in cases.TIMES for one in times.timed(case, dry=False)}
  case = cases.TIMES[0]
  for kernel in ('ours', 'xla', 'cudnn'):
    assert {cases.time_key(case, kernel, kind) for kind in cases.KINDS} <= keys
  assert cases.time_key(case, 'jax mosaic gpu', 'forward') in keys
  # Decoding has no backward pass.
  assert not any(key.startswith('decode') and key.endswith('both') for key in keys)
  one, two = (times.timed(case, dry=False)[0] for case in cases.TIMES[:2])
  # Two streams are nearly twice the products of one: query rows do not see their own slot.
  assert two.flops / one.flops == pytest.approx(2, rel=0.01)
  assert one.flops == 2 * 2 * 64 * 12 * 16 * 1024 * 1025 / 2
  assert 4 <= two.count <= one.count <= 100


@pytest.mark.skipif(not importlib.util.find_spec('torch'), reason='torch is not installed')
def test_times_of_torch(rows, monkeypatch):
  monkeypatch.setattr(torch_times, 'TIMES', (cases.TIMES[0], cases.TIMES[1], cases.TIMES[-1]))
  assert torch_times.main(rows, []) == 0
  assert set(found(rows)) == {
    cases.time_key(cases.TIMES[0], 'torch flash', kind) for kind in cases.KINDS
  }


def test_a_package_that_is_missing_is_told_and_is_no_error(rows, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['torch_times', *rows.job.arguments()])
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(SystemExit) as ended:
    torch_times.begin('torch')
  assert ended.value.code == 0 and 'torch' in found(rows)['torch']['skipped']


def test_ceilings(rows):
  assert ceilings.main(rows, []) == 0
  told = found(rows)
  assert told['product']['tflops'] > 0 and told['copy']['gb_per_s'] > 0
  assert told['versions']['numpy'] == np.__version__


# ---- programs ----------------------------------------------------------------------------------


def test_programs_that_are_late_are_skipped_and_others_are_measured(rows, monkeypatch):
  compiled = []

  def compile_(key):
    compiled.append(key)
    if key == 'slow':
      time.sleep(4)
    if key == 'broken':
      raise ValueError('no such program')
    return key.upper()

  late = dataclasses.replace(rows.job, until=time.time() + 8)
  rows = rows_lib.Rows(late, dry=True)  # one thread
  monkeypatch.setattr(ahead, 'SHARE', 0.2)
  keys = ['a', 'broken', 'slow', 'late']
  ahead.compiled_ahead(rows, keys, compile_, lambda key, made, busy: {'made': made, 'busy': busy})
  told = found(rows)
  assert told['a']['made'] == 'A'
  assert told['broken']['error'] == 'ValueError: no such program'
  assert 'skipped' in told['slow'] and 'skipped' in told['late']
  assert compiled == ['a', 'broken', 'slow'] and rows.exit_code() == 1


def test_training_step(rows, monkeypatch):
  monkeypatch.setattr(train, 'STEPS', (cases.Step('gpt2_small', 'armd', 16, 1),))
  assert train.main(rows, []) == 0
  (row,) = found(rows).values()
  assert row['ok'] and row['ms'] > 0 and row['mfu'] is None and row['gflop'] > 0
  assert len(row['all_ms']) == 3 and row['first_loss'] == pytest.approx(np.log(256), rel=0.1)


def test_training_configs_are_those_of_their_keys():
  for step in cases.STEPS:
    config, vocab_size = train.config_of(step, dry=False)
    assert config.model.dtype == 'bfloat16' and vocab_size == 50257
    assert config.model.num_layers == {'gpt2_small': 12, 'gpt2_medium': 24}[step.shape]
    assert (config.model.family, config.train.batch_size) == (step.family, step.batch)
    assert (config.model.remat, config.model.attention) == (step.remat, step.attention)
    if step.family == 'armd':
      half = config.model.num_layers // 2
      assert config.model.num_two_stream_layers == (step.two_stream or half)


def test_decoding(rows):
  assert decode.main(rows, ['ar 1 1', 'armd 4 1']) == 0
  told = found(rows)
  assert list(told) == ['AR batch 1', 'ARMD S=4 batch 1']
  assert [row['steps'] for row in told.values()] == [32, 4 + 32 // 4 - 1]
  for row in told.values():
    assert row['tokens_per_s'] > 0
  before = rows_lib.lines(rows.job.out)
  assert decode.main(rows, ['ar 1 1', 'armd 4 1']) == 0
  assert rows_lib.lines(rows.job.out) == before


# ---- tests, and a trained model ----------------------------------------------------------------


def test_outcomes_of_the_suite(tmp_path):
  report = tmp_path / 'suite.xml'
  passed, skipped = '<testcase name="a"/>', '<testcase name="b"><skipped/></testcase>'
  wrong = '<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>'
  told = lambda text: (
    report.write_text(f'<testsuites><testsuite>{text}</testsuite></testsuites>')
    and suite.outcomes(report)
  )
  assert told(passed + skipped) == {'ok': True, 'passed': 1, 'skipped': 1, 'bad': []}
  assert not told(skipped)['ok']  # nothing was tested
  assert told(passed + wrong) | {'ok': None} == {
    'ok': None, 'passed': 1, 'failure': 1, 'error': 1, 'bad': ['c', 'd'],
  }  # fmt: skip
  assert not told(passed + wrong)['ok']


def test_tests_that_are_left_out_or_taken_exist():
  for name in (*suite.TESTS, suite.LEFT_OUT.split('::')[0], suite.DRY_TESTS[0]):
    assert (environment.ROOT / name).exists()
  test = suite.LEFT_OUT.split('::')[1]
  assert f'def {test}(' in (environment.ROOT / suite.LEFT_OUT.split('::')[0]).read_text()


def test_texts_are_unpacked(tmp_path):
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text' / 'book.txt.xz').write_bytes(lzma.compress(b'words'))
  pattern = learn.unpack(tmp_path / 'text', tmp_path / 'unpacked')
  assert [p.read_text() for p in pathlib.Path('/').glob(pattern[1:])] == ['words']


@pytest.mark.parametrize('code', [0, 75, 1])
def test_learning_is_a_row_however_it_ends(rows, monkeypatch, code):
  """In place of the quickstart a process that leaves what it would."""
  workdir = rows.job.kept / 'learn-dry'
  workdir.mkdir()
  records = [{'step': 1, 'loss': 5.0}, {'step': 2, 'loss': 4.0, 'tokens_per_second': 9.0}]
  (workdir / 'metrics.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in records))
  results = {
    'held_out': {'after_sbp': [{'name': 'left-to-right', 'nats_per_byte': 1.5}]},
    'generation': [{'streams': 4, 'tokens_per_second': 100.0}],
  }
  (workdir / 'results.json').write_text(json.dumps(results))

  class Popen(learn.subprocess.Popen):
    def __init__(self, command, **more):
      assert 'armd_jax.quickstart' in command and f'--workdir={workdir}' in command
      super().__init__([sys.executable, '-c', f'raise SystemExit({code})'], **more)

  monkeypatch.setattr(learn.subprocess, 'Popen', Popen)
  assert learn.main(rows, []) == int(code != 0)
  (row,) = found(rows).values()
  if code == 1:
    assert 'quickstart ended with 1' in row['error']
    return
  assert (row['step'], row['loss'], row['tokens_per_second']) == (2, 4.0, 9.0)
  assert ('skipped' in row) == (code == 75)
  if code == 0:
    assert row['nats_per_byte'] == {'left-to-right': 1.5}
    assert row['generated_per_s'] == {'S=4': 100.0}
    assert json.loads((rows.job.out / 'learn.json').read_text()) == results


# ---- the list ----------------------------------------------------------------------------------


def test_list_of_stages(tmp_path):
  place = stages.Place(tmp_path, None, None)
  made = [stage for make in stages.STAGES.values() for stage in make(place)]
  assert [stage.name for stage in made if stage.name not in ('flags',)] == [
    name for name in stages.STAGES if name not in ('again', 'flags')
  ]
  for stage in made:
    names = [process.name for process in stage.processes]
    assert len(set(names)) == len(names)
    for process in stage.processes:
      assert importlib.util.find_spec(process.command[2]), process.command
  decoded = {' '.join(map(str, run)) for run in cases.DECODED}
  for stage in stages.STAGES['flags'](place):
    assert set(stage.processes[0].arguments) <= decoded


def test_another_ptxas_is_compared_where_there_is_one(tmp_path):
  other = environment.Cuda(tmp_path / 'cuda', '13.5.37')
  place = stages.Place(tmp_path, other, None)
  labelled = [p for p in stages.STAGES['smoke'](place)[0].processes if p.label]
  assert [p.arguments for p in labelled] == [('both 64',), ('both 128',)]
  assert all(p.variables['CUDA_ROOT'] == str(tmp_path / 'cuda') for p in labelled)
  assert stages.STAGES['again'](place) == []  # nothing was wrong
  job = rows_lib.Job('numerics', tmp_path, tmp_path, 0)
  rows_lib.Rows(job).add('holes B2 x2', ok=False)
  rows_lib.Rows(job).add('five rows B1 x2', ok=True)
  (stage,) = stages.STAGES['again'](place)
  (process,) = stage.processes
  assert process.arguments == ('0', '1', 'holes B2 x2') and process.label == ', ptxas 13.5.37'
  assert stages.STAGES['again'](dataclasses.replace(place, carried=None)) == []

"""Runs in a bucket: trained, killed, damaged, gone on with and read, as on a disk."""

import contextlib
import json
import os
import subprocess
import sys
import time
import types

import corpora
import jax
import numpy as np
import pytest
import tiny_run
from training.test_checkpoint import ABSTRACT, state_of
from training.test_loop import config

from armd_jax import config as config_lib
from armd_jax import evaluate, export, flags, report, sample
from armd_jax import train as program
from armd_jax.artifacts import weights
from armd_jax.config import DataConfig
from armd_jax.data import corpus, prepare, prepared
from armd_jax.errors import UserError
from armd_jax.files import buckets, paths
from armd_jax.show import goodput, history
from armd_jax.training import checkpoint, loop, metrics
from armd_jax.training import workdir as workdir_lib


@pytest.fixture(scope='module')
def run(bucket, tmp_path_factory):
  """A run of 12 steps, in two starts; the same on a disk, in one."""
  folder = tmp_path_factory.mktemp('run')
  where = bucket.folder('run')
  loop.train(config(folder, train__steps=6), where)
  state = loop.train(config(folder, train__steps=12), where)
  on_disk = loop.train(config(folder), folder / 'disk')
  jax.tree.map(np.testing.assert_array_equal, state, on_disk)
  return where, folder


def test_what_a_run_leaves_is_what_it_leaves_on_a_disk(bucket, run):
  where, folder = run
  names = {name.partition('/')[0] for name in bucket.names(where)}
  assert names == {path.name for path in (folder / 'disk').iterdir()}
  assert checkpoint.Checkpoints(where).found() == [6, 12]
  found = history.read(paths.kept(where, 'x') / 'metrics.jsonl')
  expected = history.read(folder / 'disk' / 'metrics.jsonl')
  assert {step: record['loss'] for step, record in found.items()} == {
    step: record['loss'] for step, record in expected.items()
  }
  assert goodput.of(history.lines(paths.kept(where, 'x') / 'metrics.jsonl')).starts == 2
  assert bucket.read(f'{where}/training.png').startswith(b'\x89PNG')
  events = [name for name in bucket.names(where) if name.startswith('tensorboard/')]
  assert len(events) == 2 and all(len(bucket.read(f'{where}/{name}')) > 1000 for name in events)
  assert len([name for name in bucket.names(where) if name.startswith('metrics.jsonl/')]) == 2


def test_programs_read_a_run(run, capsys, tmp_path):
  where, _ = run
  evaluate.main(
    flags.parse(evaluate.Options, ['e', f'--workdir={where}', '--windows=4', '--orders=1'])
  )
  assert 'exact' in capsys.readouterr().out
  sample.main(flags.parse(sample.Options, ['s', f'--workdir={where}', '--streams=1']))
  assert 'weights of step 12' in capsys.readouterr().out
  report.main(flags.parse(report.Options, ['r', f'--workdir={where}', '--streams=1']))
  assert f'{where}/report.html: ' in capsys.readouterr().out


def test_another_run_goes_on_from_one_in_a_bucket(run, tmp_path):
  where, folder = run
  more = dict(train__steps=14)
  a = loop.train(config(folder, init_from=where, **more), tmp_path / 'a')
  b = loop.train(config(folder, init_from=str(folder / 'disk'), **more), tmp_path / 'b')
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_killed_run_goes_on(bucket, run, tmp_path):
  """kill -9 as soon as there is a checkpoint, and what it has left of another one."""
  _, folder = run
  where = bucket.folder('killed')
  command = tiny_run.train(folder / 'experiment.py', where, '--config.train.steps=4000')
  variables = os.environ | tiny_run.VARIABLES
  process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
  checkpoints = checkpoint.Checkpoints(where)
  deadline = time.time() + 120
  while not checkpoints.found():
    assert time.time() < deadline and process.poll() is None
    time.sleep(0.1)
  process.kill()
  process.wait()
  first = checkpoints.found()
  bucket.write(f'{where}/checkpoints/3999/d/left', b'half')
  last = max(first) + 6
  state = loop.train(config(folder, train__steps=last), where)
  on_disk = loop.train(config(folder, train__steps=last), tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, state, on_disk)
  assert 3999 not in checkpoints.found() and last in checkpoints.found()
  assert not any('3999' in name for name in bucket.names(where))
  lines = list(history.lines(paths.kept(where, 'x') / 'metrics.jsonl'))
  losses = {line['step']: line['loss'] for line in lines if 'loss' in line}
  assert sorted(losses) == list(range(1, last + 1))  # none of a saved step is lost


def save(where, *steps, held_out=None, **kept):
  with contextlib.closing(checkpoint.Checkpoints(where, **kept)) as checkpoints:
    for step in steps:
      checkpoints.save(step, state_of(step), 8 * step, (held_out or {}).get(step))


def restored(where):
  with contextlib.closing(checkpoint.Checkpoints(where)) as checkpoints:
    state, _ = checkpoints.restore(ABSTRACT)
  jax.tree.map(np.testing.assert_array_equal, state, state_of(int(state.step)))
  return int(state.step)


def test_kept_are_the_last_the_best_and_every_so_many(bucket):
  where = bucket.folder('kept')
  save(
    where, 1, 2, 3, 4, 5, 6, held_out={2: 1.0, 3: 2.0}, keep_last=1, keep_best=1, keep_every=3
  )  # fmt: skip
  assert checkpoint.Checkpoints(where).found() == [2, 3, 6] and restored(where) == 6
  steps = {name.split('/')[1] for name in bucket.names(where)}
  assert steps == {'2', '3', '6'}


def test_a_prepared_corpus_is_read_from_a_bucket(bucket, tmp_path, monkeypatch):
  """Through a copy, which is made once, and again where it is cut short."""
  source = corpora.write_text(tmp_path / 'a.txt', corpora.documents(200))
  where, cache = bucket.folder('corpus'), tmp_path / 'cache'
  monkeypatch.setenv(prepared.FOLDER_VARIABLE, str(cache))
  for out in (where, str(tmp_path / 'disk')):
    prepare.prepare(source, 'bytes', out, held_out=0.2, part_bytes=10_000)
  load = lambda place: corpus.load(DataConfig(source=place), 64)
  for _ in range(2):
    np.testing.assert_array_equal(
      load(where).train_WxN[:], load(str(tmp_path / 'disk')).train_WxN[:]
    )
    (folder,) = (path for path in cache.iterdir() if not path.name.startswith('.'))
    (folder / 'train-00001.array_record').write_bytes(b'')
  bucket.write(f'{where}/train-00001.array_record', b'x' * 10)
  with pytest.raises(UserError, match=r'train-00001.array_record is missing or cut short; prepare'):
    load(where)


DAMAGES = {
  'another byte': lambda bucket, path: bucket.write(path, b'\x00' + bucket.read(path)[1:]),
  # By half: a seal without the end of its last line is still whole.
  'cut short': lambda bucket, path: bucket.write(
    path, bucket.read(path)[: -len(bucket.read(path)) // 2]
  ),
  'gone': lambda bucket, path: bucket.remove(path),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damage_is_seen_by_what_the_store_knows(bucket, damage, capsys, monkeypatch):
  where = bucket.folder(f'damaged {damage}'.replace(' ', '-'))
  save(where, 1, 2, keep_last=2)
  names = [name for name in bucket.names(f'{where}/checkpoints/2') if name != checkpoint._SEAL]
  largest = max(names, key=lambda name: len(bucket.read(f'{where}/checkpoints/2/{name}')))
  DAMAGES[damage](bucket, f'{where}/checkpoints/2/{largest}')
  monkeypatch.setattr(checkpoint, '_size_and_crc', None)  # nothing is read for it
  assert restored(where) == 1
  assert f'checkpoints/2 is damaged ({largest} ' in capsys.readouterr().err
  save(where, 2, keep_last=2)
  assert restored(where) == 2


def test_a_busy_store_is_asked_again(bucket):
  where = bucket.folder('busy')
  bucket.be_unavailable(4)
  save(where, 1)
  bucket.be_unavailable(4)
  assert restored(where) == 1


def test_a_stalled_connection_is_given_up_and_made_again(bucket, monkeypatch):
  """Of gcsfs here, and of TensorStore in a process of its own, which reads its limit once."""
  import aiohttp
  import fsspec

  soon = aiohttp.ClientTimeout(total=None, sock_connect=1, sock_read=1)
  monkeypatch.setitem(fsspec.config.conf['gcs'], 'requests_timeout', soon)
  where = bucket.folder('stalled')
  bucket.be_silent(1)
  (paths.kept(where, 'x') / 'a').write_text('text')
  assert bucket.read(f'{where}/a') == b'text'
  variables = os.environ | {'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '1'}
  script = f"""
import sys
sys.path.insert(0, {str(tiny_run.ROOT / 'tests')!r})
from training.test_buckets import restored, save
save({where!r}, 1)
print('saved', flush=True)
input()
print(restored({where!r}))
"""
  process = subprocess.Popen(
    [*tiny_run.PYTHON, '-c', script],
    env=variables | tiny_run.VARIABLES,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'saved\n'
  assert process.communicate('\n')[0] == '1\n'


def test_a_checkpoint_without_its_seal_is_none(bucket):
  where = bucket.folder('unsealed')
  save(where, 1, 2, keep_last=2)
  bucket.remove(f'{where}/checkpoints/2/{checkpoint._SEAL}')
  assert checkpoint.Checkpoints(where).found() == [1] and restored(where) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir=gs://bucket'], 'is a whole bucket; write a folder in it'),
    (['--workdir=gs://nowhere/run'], "but the bucket 'nowhere' cannot be read .*; check its name"),
    (['--workdir=gs://bucket/new', '--config.train.profile_steps=(1,2)'], 'a trace cannot be writ'),
    (['--workdir=gs://bucket/run', '--config.seed=7'], 'was started with config.seed = 0, not 7'),
  ],
)
def test_what_a_bucket_cannot_do_is_a_sentence_before_the_first_step(run, arguments, message):
  _, folder = run
  argv = ['train', f'--config={folder}/experiment.py', *arguments]
  with pytest.raises(UserError, match=message):
    program.main(flags.parse(program.Options, argv))


def test_programs_are_told_of_a_bucket_that_is_not_there(bucket):
  with pytest.raises(UserError, match=r"the bucket 'nowhere' cannot be read .*; check its name"):
    weights.load_ema('gs://nowhere/run')
  with pytest.raises(UserError, match='holds no run'):
    weights.load_ema(bucket.folder('none'))


def test_a_store_that_refuses_to_write_is_a_sentence(bucket, run, monkeypatch):
  """As one does without the right to."""
  import gcsfs.retry

  _, folder = run

  def refused(*_, **__):
    raise gcsfs.retry.HttpError({'code': 403, 'message': 'no storage.objects.create access'})

  monkeypatch.setattr(metrics.BucketLines, 'flush', refused)
  with pytest.raises(UserError, match=r'cannot write to gs://.*no storage.objects.create access'):
    loop.train(config(folder), bucket.folder('refused'))


def test_log_lines_go_into_parts(bucket, monkeypatch):
  monkeypatch.setattr(metrics, '_PART_LINES', 3)
  folder = paths.kept(bucket.folder('lines'), 'x') / 'metrics.jsonl'
  for start in range(2):
    lines = metrics.BucketLines(folder)
    for step in range(4):
      lines.write(10 * start + step, {'loss': 1.0})
      lines.flush()
    lines.close()
  assert [line['step'] for line in history.lines(folder)] == [0, 1, 2, 3, 10, 11, 12, 13]
  assert len(bucket.names(bucket.folder('lines'))) == 4
  assert all(json.loads(line) for line in bucket.read(f'{folder}/000000.jsonl').splitlines())


def test_other_addresses_stay_refused():
  refused = {
    's3://bucket/run': 'is not supported here',
    'gcs://bucket/run': 'is not supported here',
    'GS://bucket/run': "write a bucket as a text that begins so: 'gs://bucket/run'",
  }
  for path, message in refused.items():
    with pytest.raises(UserError, match=message):
      paths.kept(path, '--workdir')
  assert not buckets.is_bucket('/gs:/bucket')


# ----- a run in the place of another one


def named(bucket, where):
  return {name.partition('/')[0] for name in bucket.names(where)}


def test_overwrite_replaces_a_run_with_its_first_checkpoint(bucket, tmp_path, monkeypatch):
  """Until then the old one is set aside, and comes back where the new one fails."""
  where, wanted = bucket.folder('over'), config(tmp_path, train__steps=6)
  loop.train(wanted, where)
  bucket.write(f'{where}/mine.txt', b'kept')
  before = {name: bucket.read(f'{where}/{name}') for name in bucket.names(where)}
  other = config(tmp_path, train__steps=6, seed=1)

  def fails(*_):
    assert '.replaced' in named(bucket, where)
    raise UserError('no')

  with monkeypatch.context() as patch, pytest.raises(UserError, match=r'^no$'):
    patch.setattr(checkpoint.Checkpoints, 'save', fails)
    loop.train(other, where, overwrite=True)
  assert {name: bucket.read(f'{where}/{name}') for name in bucket.names(where)} == before
  expected = loop.train(other, where, overwrite=True)
  with contextlib.closing(checkpoint.Checkpoints(where)) as checkpoints:
    state, _ = checkpoints.restore(expected)
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert '.replaced' not in named(bucket, where)
  assert bucket.read(f'{where}/mine.txt') == b'kept'
  assert len([name for name in bucket.names(where) if name.startswith('metrics.jsonl/')]) == 1


@pytest.mark.parametrize('change', range(16))
def test_a_kill_while_a_run_is_replaced_loses_none(bucket, change):
  """After so many changes to the bucket; the next start finds the old run whole, or the new one."""
  where = paths.kept(bucket.folder(f'killed-over-{change}'), 'x')
  old, new = config_lib.Config(), config_lib.Config(seed=1)
  files = {'text.json': b'{}', 'checkpoints/6/a': b'a', 'checkpoints/6/checkpoint.json': b'{}'}
  workdir_lib.write_config(where, old)
  for name, data in files.items():
    bucket.write(f'{where}/{name}', data)
  whole_run = {name: bucket.read(f'{where}/{name}') for name in bucket.names(str(where))}
  bucket.allow(change)
  died = False
  try:  # what handles the error can change nothing either, as after a kill
    with workdir_lib.begun(where, new, overwrite=True):
      pass
  except Exception:
    died = True
  bucket.allow(None)
  assert died if change < 9 else not died or change < 15  # it takes some 13 of them
  workdir_lib.put_back(where)
  found = workdir_lib.read_config(where)
  if found.seed == 0:
    there = {name for name in bucket.names(str(where)) if not name.startswith('.replaced/')}
    assert there == whole_run.keys()
    assert all(bucket.read(f'{where}/{name}') == whole_run[name] for name in there)
  else:
    assert not died or workdir_lib._is_aside(where)


def test_a_run_of_wandb_goes_on_in_a_bucket(bucket, monkeypatch):
  """And is another one where --overwrite begins another run."""
  asked = []
  monkeypatch.setitem(
    sys.modules, 'wandb', types.SimpleNamespace(init=lambda **options: asked.append(options))
  )
  where, whole_config = paths.kept(bucket.folder('wandb'), 'x'), config_lib.Config()
  workdir_lib.write_config(where, whole_config)
  for _ in range(2):
    metrics.Wandb('armd', where, whole_config)
  with workdir_lib.begun(where, whole_config, overwrite=True):
    metrics.Wandb('armd', where, whole_config)
  first, again, other = (options['id'] for options in asked)
  assert first == again != other and asked[0]['name'] == 'wandb' and asked[0]['dir'] is None
  for folder, run_id in (('.replaced/', first), ('', other)):
    assert json.loads(bucket.read(f'{where}/{folder}wandb_run.json')) == {'id': run_id}


# ----- exports


def exported(where, out, *more):
  export.main(flags.parse(export.Options, ['e', f'--workdir={where}', f'--out={out}', *more]))


@pytest.mark.parametrize('out', ['export', 'export.safetensors'])
def test_exports_go_to_a_bucket_and_are_opened_there(bucket, run, tmp_path, capsys, out):
  where, there = run[0], bucket.folder(out)
  exported(where, there)
  exported(where, tmp_path / out)
  with pytest.raises(UserError, match=f'{there} exists; write another --out, or --overwrite'):
    exported(where, there)
  exported(where, there, '--overwrite')
  _, _, params, step = weights.load_ema(there)
  _, _, expected, _ = weights.load_ema(tmp_path / out)
  assert step == 12
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  assert weights.text_sha256_of(there) == weights.text_sha256_of(where)
  sample.main(flags.parse(sample.Options, ['s', f'--workdir={there}', '--streams=1']))
  assert 'weights of step 12' in capsys.readouterr().out


def test_a_damaged_export_in_a_bucket_is_told_by_its_name(bucket, run):
  where, there = run[0], bucket.folder('damaged-export')
  exported(where, there)
  name = next(name for name in bucket.names(there) if name.startswith('weights/d/'))
  bucket.write(f'{there}/{name}', bucket.read(f'{there}/{name}')[:-1])
  with pytest.raises(UserError, match=f'^export {there} is damaged .{name} has .* bytes'):
    weights.load_ema(there)
  bucket.write(f'{there}/mine', b'')
  with pytest.raises(UserError, match=f'{there} holds mine, which is no part of the export'):
    exported(where, there, '--overwrite')
  with pytest.raises(UserError, match="the bucket 'nowhere' cannot be read"):
    exported(where, 'gs://nowhere/e')

"""Checkpoints: what is kept, and that no damage and no full disk ever leads to a wrong restore."""

import contextlib
import errno
import json
import logging
import math
import os
import resource
import shutil

import forbidden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from armd_jax import config as config_lib
from armd_jax.config import MeshConfig, UserError
from armd_jax.parallel import sharding
from armd_jax.training import TrainState, checkpoint
from armd_jax.training import workdir as workdir_lib

MESH = sharding.make_mesh(MeshConfig(), jax.devices()[:1])


def state_of(step):
  """A state whose every number depends on the step, of some 300 kB that do not compress."""
  numbers = np.random.default_rng(step).random((3, 256, 96), np.float32)
  params = {'query': {'kernel': numbers[0]}, 'scale': np.arange(4, dtype=np.float32)}
  state = TrainState(np.int32(step), np.int32(0), params, {'scale': numbers[1]}, (numbers[2],))
  return jax.tree.map(lambda x: jnp.asarray(x, device=sharding.replicated(MESH)), state)


ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0)
)


def save(workdir, *steps, held_out=None, **kept):
  checkpoints = checkpoint.Checkpoints(workdir, **kept)
  with contextlib.closing(checkpoints):
    for step in steps:
      checkpoints.save(step, state_of(step), 8 * step, (held_out or {}).get(step))


def restore(workdir, step=None):
  """The step that was restored, after checking that it is what was saved."""
  with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
    state, next_index = checkpoints.restore(ABSTRACT, step)
  jax.tree.map(np.testing.assert_array_equal, state, state_of(int(state.step)))
  assert next_index == 8 * state.step
  return int(state.step)


def found(workdir):
  return checkpoint.Checkpoints(workdir).found()


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A work directory with checkpoints 1 and 2."""
  workdir = tmp_path_factory.mktemp('two')
  save(workdir, 1, 2, keep_last=2)
  return workdir


@pytest.fixture
def copied(two, tmp_path):
  return shutil.copytree(two, tmp_path / 'copy')


def test_kept_are_the_last_the_best_and_every_so_many(tmp_path):
  held_out = {2: 3.0, 3: 1.0, 4: 2.0, 7: 2.5}
  save(tmp_path, *range(1, 9), held_out=held_out, keep_last=2, keep_every=5, keep_best=2)
  assert found(tmp_path) == [3, 4, 5, 7, 8]
  # What was the best is known to a later start, too.
  save(tmp_path, 9, held_out={9: 1.5}, keep_last=1, keep_every=5, keep_best=2)
  assert found(tmp_path) == [3, 5, 9]
  assert restore(tmp_path) == 9 and restore(tmp_path, 5) == 5


@pytest.mark.parametrize('bad', [math.nan, -math.inf, None])
def test_what_is_not_finite_is_never_the_best(tmp_path, monkeypatch, bad):
  held_out = {1: bad, 2: 3.0, 3: bad, 4: 1.0, 5: bad}
  save(tmp_path, *range(1, 7), held_out=held_out, keep_last=1, keep_best=1)
  assert found(tmp_path) == [4, 6]
  # Nor is it where an older version has written it down as it was.
  seal = checkpoint.Checkpoints._seal
  monkeypatch.setattr(
    checkpoint.Checkpoints, '_seal', lambda *a: (s := seal(*a)) and s | {'held_out': held_out.get(
      s['step'])}
  )  # fmt: skip
  save(tmp_path / 'older', *range(1, 7), keep_last=1, keep_best=1)
  assert found(tmp_path / 'older') == [4, 6]


DAMAGES = {
  'cut short': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  'emptied': lambda path: path.write_bytes(b''),
  'deleted': lambda path: path.unlink(),
  'of other bytes': lambda path: path.write_bytes(bytes(255 - b for b in path.read_bytes())),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_whichever_file_it_is(copied, damage, capsys):
  """Every file in turn; nothing of it is changed, and put right it is the newest again."""
  newest = copied / 'checkpoints' / '2'
  files = contents(newest)
  assert len(files) > 8
  for path, data in files.items():
    DAMAGES[damage](path)
    before = contents(newest)
    assert restore(copied) == 1
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f'warning: checkpoint {newest} is damaged (')
    assert warning.endswith(') and is passed over')
    assert path.name in warning
    with pytest.raises(UserError, match=r'checkpoints/2 is damaged .*there is no other'):
      restore(copied, 2)
    capsys.readouterr()
    assert contents(newest) == before
    path.write_bytes(data)
  assert restore(copied) == 2


def test_where_all_are_damaged_nothing_is_restored(copied):
  for path in copied.glob('checkpoints/*/manifest.ocdbt'):
    path.write_bytes(b'')
  with pytest.raises(UserError, match=r'2 is damaged \(manifest.ocdbt has 0 of \d+ bytes\), and'):
    restore(copied)


def test_none_at_all_is_a_sentence(tmp_path):
  with pytest.raises(UserError, match='holds no checkpoint; train there first'):
    restore(tmp_path)
  with pytest.raises(UserError, match='holds no step 3 checkpoint'):
    restore(tmp_path, 3)
  assert list(tmp_path.iterdir()) == []


def test_a_damaged_one_is_replaced_and_never_counts_as_kept(copied, capfd):
  (copied / 'checkpoints' / '2' / '_METADATA').unlink()
  with contextlib.closing(checkpoint.Checkpoints(copied, keep_last=2)) as checkpoints:
    assert checkpoints.restore(ABSTRACT)[1] == 8
    checkpoints.save(2, state_of(2), 16, None)
  assert '2, which is damaged, is replaced' in capfd.readouterr().err
  assert found(copied) == [1, 2] and restore(copied) == 2

  (copied / 'checkpoints' / '2' / '_METADATA').unlink()
  with contextlib.closing(checkpoint.Checkpoints(copied, keep_last=2)) as checkpoints:
    checkpoints.restore(ABSTRACT)
    checkpoints.save(3, state_of(3), 24, None)
  assert '2, which is damaged, is removed' in capfd.readouterr().err
  assert found(copied) == [1, 3]


def test_an_unfinished_save_is_none_and_goes_with_the_next(copied):
  folder = copied / 'checkpoints'
  for name in ('3.part', '4.part.orbax-checkpoint-tmp', '1.part-removed'):
    shutil.copytree(folder / '2', folder / name)
  assert found(copied) == [1, 2] and restore(copied) == 2
  save(copied, 3, keep_last=2)
  assert sorted(path.name for path in folder.iterdir()) == ['2', '3']


def test_what_somebody_put_there_is_no_checkpoint_and_stays(copied):
  folder, theirs = copied / 'checkpoints', ['007', '20.partial', '5.parts', '\u0667', '9.backup']
  for name in theirs:
    shutil.copytree(folder / '2', folder / name)
  assert found(copied) == [1, 2] and restore(copied) == 2
  save(copied, 3, keep_last=2)
  assert sorted(path.name for path in folder.iterdir()) == sorted(['2', '3', *theirs])


def test_a_folder_without_a_checkpoint_stays_and_is_told_of(copied, capfd):
  folder = copied / 'checkpoints'
  for name in ('0', '9.part', '1.part-removed'):
    (folder / name).mkdir()
    (folder / name / 'notes.txt').write_text('theirs')
  with contextlib.closing(checkpoint.Checkpoints(copied)) as checkpoints:
    checkpoints.save(3, state_of(3), 24, None)
    checkpoints.save(4, state_of(4), 32, None)
  assert capfd.readouterr().err.count('/0 holds nothing of a checkpoint, and stays') == 1
  assert sorted(path.name for path in folder.iterdir()) == ['0', '1.part-removed', '4', '9.part']
  assert len(list(folder.glob('*/notes.txt'))) == 3


@pytest.mark.parametrize('name', ['3', '3.part'])
@pytest.mark.parametrize('kind', ['folder', 'file', 'link'])
def test_no_save_takes_the_place_of_what_is_no_checkpoint(copied, name, kind):
  path = copied / 'checkpoints' / name
  if kind == 'folder':
    path.mkdir()
    (path / 'notes.txt').write_text('theirs')
  elif kind == 'file':
    path.write_text('theirs')
  else:
    path.symlink_to(copied / 'none')
  with pytest.raises(UserError, match=rf'/{name} is no checkpoint, .*; move it away, and give'):
    save(copied, 3)
  assert os.path.lexists(path) and (kind != 'folder' or (path / 'notes.txt').exists())
  assert restore(copied, 2) == 2


def test_a_checkpoint_that_is_kept_elsewhere_loses_its_link_alone(copied, tmp_path):
  folder, elsewhere = copied / 'checkpoints', tmp_path / 'elsewhere'
  elsewhere.mkdir()
  for name, link in (('1', '1'), ('2', '0.part-removed')):  # which an older version left
    shutil.copytree(folder / name, elsewhere / name)
    if link == name:
      shutil.rmtree(folder / name)
    (folder / link).symlink_to(elsewhere / name)
  before = contents(elsewhere)
  assert restore(copied, 1) == 1
  save(copied, 3)
  assert [path.name for path in folder.iterdir()] == ['3'] and contents(elsewhere) == before


@contextlib.contextmanager
def largest_file(num_bytes):
  """A full disk, nearly: the system refuses files larger than this."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# orbax abandons its other writes when one of them fails, and Python tells of each of them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_what_cannot_be_written_is_a_sentence_and_loses_nothing(copied):
  sentence = r'cannot save in .*checkpoints \(File too large\); free space .* go on from step 2$'
  with largest_file(50_000), pytest.raises(UserError, match=sentence):
    save(copied, 3)
  assert found(copied) == [1, 2] and restore(copied) == 2
  save(copied, 3)
  assert restore(copied) == 3


def test_asyncio_tells_of_other_errors_than_refused_writes(tmp_path, caplog):
  """The sentence has told of the first one; of a second, orbax's abandoned tasks would again."""
  checkpoint.Checkpoints(tmp_path).close()
  full, bug = OSError(errno.ENOSPC, 'No space left on device'), ValueError('a bug')
  for error in (full, bug):
    logging.getLogger('asyncio').error('never retrieved', exc_info=error)
  assert [record.exc_info[1] for record in caplog.records] == [bug]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(UserError, match=r'cannot save in .* go on from the start'):
    save(tmp_path, 1)


def test_a_crash_of_another_kind_is_no_bad_input(tmp_path, monkeypatch):
  """Launchers start a job again after a crash, and not after bad input."""
  with contextlib.closing(checkpoint.Checkpoints(tmp_path)) as checkpoints:
    monkeypatch.setattr(checkpoint, '_size_and_crc', lambda _: 1 / 0)
    checkpoints.save(1, state_of(1), 8, None)
    with pytest.raises(ZeroDivisionError):
      checkpoints.wait()
  assert found(tmp_path) == []


@pytest.mark.parametrize('name', ['a[1]', 'a\\b', '*?', 'gs:', 'ü 漢', "it's", '\n'], ids=ascii)
def test_no_name_of_a_folder_loses_a_checkpoint(name, tmp_path, monkeypatch):
  workdir = tmp_path / name / 'run'
  save(workdir, 1, 2)
  assert restore(workdir) == 2
  monkeypatch.chdir(workdir.parent)
  for relative in ('run', './run/', f'../{name}/run'):
    assert restore(relative) == 2
  (tmp_path / 'link').symlink_to(workdir)
  save(tmp_path / 'link', 3)
  assert restore(workdir) == 3


def test_a_mounted_bucket_is_told_of_once(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(checkpoint.mounts, 'bucket', lambda folder: 'gcsfuse')
  save(tmp_path, 1, 2)
  told = capfd.readouterr().err
  assert told.count('is on a bucket that gcsfuse mounts') == 1 and 'keep two or more' in told


def test_what_orbax_does_not_find_again_is_no_save(tmp_path, monkeypatch):
  """As where it once merged nothing in a folder with brackets in its name, and raised nothing."""
  save(tmp_path, 1)
  monkeypatch.setattr(checkpoint.Checkpoints, '_written', lambda *_: {})
  with pytest.raises(UserError, match=r'orbax does not find what it wrote in .*2\.part; save in'):
    save(tmp_path, 2)
  monkeypatch.undo()
  assert found(tmp_path) == [1] and restore(tmp_path) == 1


def test_no_flipped_bit_of_a_seal_is_believed(copied):
  path = copied / 'checkpoints' / '2' / 'checkpoint.json'
  data = path.read_bytes()
  checkpoints = checkpoint.Checkpoints(copied)
  true = checkpoints._seal(2)
  assert true['next_index'] == 16
  for index in range(len(data)):
    for bit in range(8):
      path.write_bytes(data[:index] + bytes([data[index] ^ 1 << bit]) + data[index + 1 :])
      assert checkpoints._seal(2) in (None, true), data[index - 20 : index + 20]


@pytest.mark.parametrize(
  'change',
  [
    lambda seal: seal | {'files': {}},
    lambda seal: seal | {'next_index': '16'},
    lambda seal: [seal],
    lambda seal: seal | {'files': [1]},
    lambda seal: seal | {'step': 1},
    lambda seal: seal | {'more': 1},
    lambda seal: {name: value for name, value in seal.items() if name != 'next_index'},
  ],
)
@pytest.mark.parametrize('of', ['this version', '0.1'])
def test_a_seal_of_another_form_is_passed_over(copied, change, of):
  path = copied / 'checkpoints' / '2' / 'checkpoint.json'
  seal = json.loads(path.read_text())
  if of == '0.1':
    seal.pop('sha256')
    path.write_text(json.dumps(seal))
    assert restore(copied) == 2
  path.write_text(json.dumps(change(seal)))
  assert restore(copied) == 1


def test_a_file_that_was_put_there_later_is_damage(copied):
  (copied / 'checkpoints' / '2' / 'd' / 'new').write_text('')
  with pytest.raises(UserError, match='d/new was put there later'):
    restore(copied, 2)


def test_no_flipped_bit_of_a_config_is_believed(tmp_path):
  """What decides what a run is; how it goes on may be changed, and is checked by its ranges."""
  config = config_lib.parse({'model': {'num_layers': 4}})
  workdir_lib.write_config(tmp_path, config)
  save(tmp_path, 1)
  path = tmp_path / 'config.json'
  data = path.read_bytes()
  rng = np.random.default_rng(0)
  checkpoints, outcomes = checkpoint.Checkpoints(tmp_path), {True: 0, False: 0}
  saved = checkpoints._seal(1)['config']
  for index in rng.permutation(len(data))[:400]:
    flipped = data[index] ^ 1 << rng.integers(8)
    path.write_bytes(data[:index] + bytes([flipped]) + data[index + 1 :])
    try:
      checkpoints._check_config(saved, tmp_path)
    except UserError as error:
      assert '\n' not in str(error)
      outcomes[True] += 1
    else:
      outcomes[False] += 1
      assert workdir_lib.first_difference(workdir_lib.read_config(tmp_path), config) is None
  assert outcomes[True] > 300
  path.write_bytes(data.replace(b'"num_layers": 4', b'"num_layers": 6'))
  with pytest.raises(UserError, match=r'has model.num_layers = 6, but .*/1 was saved with 4; put'):
    restore(tmp_path)


@pytest.mark.parametrize(
  'closed', ['checkpoints', 'checkpoints/3', 'checkpoints/3/checkpoint.json']
)
def test_what_may_not_be_read_is_told_and_no_damage(tmp_path, closed):
  """Nor is an older one taken in its place."""
  save(tmp_path, 2, 3, keep_last=2)
  file = next(path for path in (tmp_path / 'checkpoints/3').rglob('*') if path.parent.name == 'd')
  code = f"""
from armd_jax.training import checkpoint
checkpoints = checkpoint.Checkpoints({str(tmp_path)!r})
try:
  checkpoints.restore({{}})
except Exception as error:
  print(f'{{type(error).__name__}}: {{error}}')
checkpoints.close()
"""
  for path in (tmp_path / closed, file, file.parent):
    with forbidden.Closed(path):
      done = forbidden.python(code)
    told = f'UserError: this user may not use {path}'
    assert done.stdout.startswith(told) and not done.stderr, (done.stdout, done.stderr)
    assert '(Permission denied); ask its owner' in done.stdout

"""Checkpoints: what is kept, and that no damage and no full disk ever leads to a wrong restore."""

import contextlib
import errno
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import other_values
import pytest

from armd_jax import config as config_lib
from armd_jax.config import MeshConfig, UserError
from armd_jax.parallel import sharding
from armd_jax.training import TrainState, checkpoint

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


def resumes(workdir, config):
  """Whether a run may go on with a config; if not, the sentence names a field."""
  try:
    checkpoint.check_same_run(workdir, config)
  except UserError as error:
    assert '\n' not in str(error)
    return str(error)
  return True


def test_every_field_is_resumable_or_refused(tmp_path):
  base = config_lib.parse({})
  checkpoint.write_config(tmp_path, base)
  assert resumes(tmp_path, base) is True
  for name, field, other in other_values.one_by_one(base):
    found = resumes(tmp_path, other)
    assert found is True if field.metadata['resumable'] else f'config.{name} = ' in found, name


def test_runs_go_on_longer_and_elsewhere_but_with_the_same_model_and_text(tmp_path):
  base = config_lib.parse({})
  checkpoint.write_config(tmp_path, base)
  changed = lambda name, value: resumes(tmp_path, other_values.changed(base, name, value))
  for name, value in (('train.steps', 5), ('mesh.fsdp', 2), ('model.attention', 'reference')):
    assert changed(name, value) is True
  for name, value in (('model.length', 5), ('data.tokenizer', 'gpt2'), ('train.batch_size', 4)):
    assert f'config.{name} = ' in changed(name, value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"model": {"lenght": 8}}', "holds no config .*: config.model has no field 'lenght'; write"),
    ('{"train": {"steps": NaN}}', 'holds no config .*: config.train.steps is nan'),
    ('[1]', r'holds no config .*: config is \[1\] but must hold'),
    ('{"model": ', 'is damaged'),
    ('\xff', 'is damaged'),
  ],
)
def test_a_config_that_cannot_be_read_is_a_sentence(tmp_path, text, message):
  (tmp_path / 'config.json').write_text(text, 'latin-1')
  with pytest.raises(UserError, match=message) as error:
    checkpoint.read_config(tmp_path)
  assert '\n' not in str(error.value) and str(tmp_path / 'config.json') in str(error.value)

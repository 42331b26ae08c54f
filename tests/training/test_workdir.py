"""Nothing is deleted that no run of ours made, and no run before the one after it has saved."""

import contextlib
import json
import pathlib
import shutil

import other_values
import pytest
import tiny_llama

from armd_jax import config as config_lib
from armd_jax.data.tokenizer_file import FileTokenizer
from armd_jax.errors import UserError
from armd_jax.training import text
from armd_jax.training import workdir as workdir_lib

CONFIG = config_lib.parse({})
OTHER = config_lib.parse({'seed': 5})
# Names that a user may give things in the folders of a run.
THEIRS = (
  'notes.txt', 'checkpoints/backup.partial', 'checkpoints/5.backup', 'checkpoints/best/x',
  'checkpoints/20.partial/a', 'checkpoints/5.parts/a', 'checkpoints/007/a', 'checkpoints/\u0667/a',
  'tensorboard/mine.txt', 'profile/mine', 'training.png.bak', 'model.safetensors',
)  # fmt: skip
OURS = (
  'metrics.jsonl', 'training.png', 'wandb_run.json', 'tensorboard/events.out.tfevents.1.host',
  'profile/plugins/a', 'checkpoints/5/a', 'checkpoints/10/a', 'checkpoints/15.part/a',
  'checkpoints/20.part.orbax-checkpoint-tmp/a',
)  # fmt: skip


def fill(workdir, names):
  for name in names:
    path = workdir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(name)


def contents(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


@pytest.fixture
def run(tmp_path):
  """A run, and things of a user beside it."""
  workdir = tmp_path / 'run'
  workdir_lib.write_config(workdir, CONFIG)
  fill(workdir, OURS + THEIRS)
  return workdir


def test_the_first_checkpoint_of_the_new_run_deletes_the_old_one_and_nothing_else(run):
  theirs = {name: contents(run)[name] for name in THEIRS}
  old = {name: data for name, data in contents(run).items() if name not in theirs}
  with workdir_lib.begun(run, OTHER, overwrite=True):
    assert workdir_lib.read_config(run).seed == 5
    aside = contents(run / workdir_lib.REPLACED)
    assert aside == old
    fill(run, ['checkpoints/3/a'])
    workdir_lib.forget_replaced(run)
  assert contents(run).keys() == {*THEIRS, 'config.json', 'checkpoints/3/a'}
  assert contents(run).items() >= theirs.items()


def test_a_run_is_put_back_where_the_new_one_fails_before_it_has_saved(run):
  before = contents(run)
  for error in (UserError('x'), KeyboardInterrupt(), SystemExit(1)):
    with pytest.raises(type(error)), workdir_lib.begun(run, OTHER, overwrite=True):
      fill(run, ['metrics.jsonl', 'checkpoints/3.part/a'])
      raise error
    assert contents(run) == before


def test_a_run_that_has_saved_stays_where_it_fails_later(run):
  with pytest.raises(UserError), workdir_lib.begun(run, OTHER, overwrite=True):
    fill(run, ['checkpoints/3/a'])
    raise UserError('x')
  assert workdir_lib.read_config(run).seed == 5 and (run / 'checkpoints/3/a').exists()


class Killed(BaseException):
  """Ends everything that the code would still do, as a kill does."""


@pytest.mark.parametrize('again', [False, True], ids=['other command', 'same command'])
@pytest.mark.parametrize('last', range(40))
def test_a_kill_at_any_moment_loses_no_run(run, last, again, monkeypatch):
  """Killed after any of the changes that --overwrite and its failure make to the folder."""
  before, count, dead = contents(run), iter(range(1000)), []

  def counted(function):
    def changed(*args, **options):
      if dead or next(count) > last:
        dead.append(True)
        raise Killed
      return function(*args, **options)

    return changed

  for name in ('rename', 'unlink', 'rmdir', 'mkdir'):
    monkeypatch.setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
  monkeypatch.setattr(shutil, 'rmtree', counted(shutil.rmtree))
  with (
    contextlib.suppress(Killed, UserError),
    workdir_lib.begun(run, OTHER, overwrite=True),
  ):
    fill(run, ['metrics.jsonl', 'checkpoints/3.part/a'])
    raise UserError('x')
  monkeypatch.undo()
  workdir_lib.put_back(run)
  if again:
    with pytest.raises(UserError), workdir_lib.begun(run, OTHER, overwrite=True):
      raise UserError('x')
  if contents(run) != before:  # then the new run is there, the old one aside, and whole
    assert workdir_lib.read_config(run) == OTHER and not again
    ours = {k: v for k, v in before.items() if k not in THEIRS}
    assert contents(run / workdir_lib.REPLACED) == ours


def test_what_cannot_be_moved_is_put_back(run, monkeypatch):
  before, rename = contents(run), pathlib.Path.rename

  def renamed(path, target):
    if path.name == '10':
      monkeypatch.undo()
      raise PermissionError(13, 'Permission denied')
    return rename(path, target)

  monkeypatch.setattr(pathlib.Path, 'rename', renamed)
  with (
    pytest.raises(UserError, match=r'cannot write to .* \(Permission denied\)'),
    workdir_lib.begun(run, OTHER, overwrite=True),
  ):
    pass
  assert contents(run) == before


@pytest.mark.parametrize('overwrite', [False, True])
@pytest.mark.parametrize(
  'text',
  ['', '{', '[]', json.dumps({'architectures': ['GPT2LMHeadModel'], 'n_embd': 768})],
  ids=['empty', 'cut', 'list', 'of another library'],
)
def test_a_config_that_is_no_runs_is_nobodys_to_replace(run, text, overwrite):
  (run / 'config.json').write_text(text)
  before = contents(run)
  with pytest.raises(UserError, match=r'config\.json (is damaged|holds no config)'):
    workdir_lib.check_free(run, overwrite)
  (run / 'config.json').unlink()
  with pytest.raises(UserError, match=r'holds .* but no config\.json that says whose it is'):
    workdir_lib.check_free(run, overwrite)
  assert contents(run).items() >= {k: v for k, v in before.items() if k != 'config.json'}.items()


def test_links_are_not_followed(run, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  shutil.move(run / 'checkpoints', elsewhere)
  (run / 'checkpoints').symlink_to(elsewhere)
  workdir_lib.check_free(run, overwrite=False)
  with pytest.raises(UserError, match=r'checkpoints is a link, and --overwrite deletes nothing'):
    workdir_lib.check_free(run, overwrite=True)


@pytest.mark.parametrize('name', ['.replaced', '.replaced-moving'])
def test_what_somebody_put_where_a_run_is_set_aside_is_not_touched(run, tmp_path, name):
  other, place, new = tmp_path / 'other', run / name, tmp_path / 'new'
  shutil.copytree(run, other)
  puts = (
    lambda: place.symlink_to(other),
    lambda: place.symlink_to(tmp_path / 'none'),
    lambda: place.write_text('theirs'),
    lambda: fill(place, ['config.json', 'notes.txt']),
    lambda: fill(place, ['config.json', 'checkpoints/backup.partial']),
    lambda: (place / 'checkpoints').mkdir(parents=True) or fill(place, ['mine/empty/x']),
  )
  for put in puts:
    for has_config in (True, False):
      shutil.copytree(run, new)
      if not has_config:
        (run / 'config.json').unlink()
      put()
      before = contents(tmp_path)
      with pytest.raises(UserError, match=rf'{name} is no run that .*; move it away, or use'):
        workdir_lib.put_back(run)
      assert contents(tmp_path) == before
      shutil.rmtree(run)
      new.rename(run)


@pytest.mark.parametrize('name', ['9', '9.part'])
def test_a_file_in_the_place_of_a_checkpoint_is_told_of_at_the_start(run, name):
  path = run / 'checkpoints' / name
  workdir_lib.check_free(run, overwrite=False)
  path.write_text('theirs')
  with pytest.raises(UserError, match=rf'/{name} is no folder, and has the name of a checkpoint'):
    workdir_lib.check_free(run, overwrite=False)
  assert path.read_text() == 'theirs'


def test_places_that_are_no_run_s(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  repository = tmp_path / 'clone'
  (repository / '.git').mkdir(parents=True)
  for name in ('', '/', '~', '.', str(repository), 's3://bucket/run'):
    with pytest.raises(UserError, match='--workdir is '):
      workdir_lib.place(name)
  assert workdir_lib.place('clone/work/mine') == pathlib.Path('clone/work/mine')


# ----- which runs go on


def resumes(workdir, config):
  """Whether a run may go on with a config; if not, the sentence names a field."""
  try:
    workdir_lib.check_same_run(workdir, config)
  except UserError as error:
    assert '\n' not in str(error)
    return str(error)
  return True


def test_every_field_is_resumable_or_refused(tmp_path):
  base = config_lib.parse({})
  workdir_lib.write_config(tmp_path, base)
  assert resumes(tmp_path, base) is True
  for name, field, other in other_values.one_by_one(base):
    found = resumes(tmp_path, other)
    assert found is True if field.metadata['resumable'] else f'config.{name} = ' in found, name


def test_runs_go_on_longer_and_elsewhere_but_with_the_same_model_and_text(tmp_path):
  base = config_lib.parse({})
  workdir_lib.write_config(tmp_path, base)
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
    ('[1]', r'is damaged .it holds \[1\] at its top, not an object'),
    ('{"model": ', 'is damaged'),
    ('\xff', 'is damaged'),
  ],
)
def test_a_config_that_cannot_be_read_is_a_sentence(tmp_path, text, message):
  (tmp_path / 'config.json').write_text(text, 'latin-1')
  with pytest.raises(UserError, match=message) as error:
    workdir_lib.read_config(tmp_path)
  assert '\n' not in str(error.value) and str(tmp_path / 'config.json') in str(error.value)


# ----- vocabularies that are files


def with_tokenizer(name, config=CONFIG):
  return other_values.changed(config, 'data.tokenizer', str(name))


@pytest.fixture
def tokenized(tmp_path):
  """A run whose vocabulary is a file elsewhere, and that file."""
  tiny_llama.write_tokenizer(tmp_path)
  run, file = tmp_path / 'run', tmp_path / 'tokenizer.json'
  workdir_lib.write_config(run, with_tokenizer(file))
  text.keep_tokenizer(run, FileTokenizer(str(file)))
  return run, file


def test_a_run_has_a_copy_of_its_vocabulary(tokenized, tmp_path):
  """Which is used where the file is gone, or another one by now, and wherever the run is moved."""
  run, file = tokenized
  fingerprint = FileTokenizer(str(file)).fingerprint
  found = lambda run: workdir_lib.read_config(run).data.tokenizer
  assert found(run) == str(file)
  moved = tmp_path / 'moved'
  run.rename(moved)
  tiny_llama.write_tokenizer(tmp_path, tiny_llama.V - 1)
  assert found(moved) == str(moved / 'tokenizer.json')
  file.unlink()
  assert found(moved) == str(moved / 'tokenizer.json')
  assert FileTokenizer(found(moved)).fingerprint == fingerprint
  tiny_llama.write_tokenizer(moved, tiny_llama.V - 1)  # which is not its own
  assert found(moved) == str(file)


def test_a_run_goes_on_with_its_vocabulary_whatever_its_name(tokenized, tmp_path, monkeypatch):
  run, file = tokenized
  monkeypatch.chdir(tmp_path)
  shutil.copy(file, 'copy.json')
  for name in (file, 'tokenizer.json', tmp_path, 'copy.json', run / 'tokenizer.json'):
    assert resumes(run, with_tokenizer(name)) is True
  tiny_llama.write_tokenizer(tmp_path, tiny_llama.V - 1)
  for name in (file, 'bytes'):
    assert 'config.data.tokenizer = ' in resumes(run, with_tokenizer(name))
  file.unlink()
  assert resumes(run, with_tokenizer('copy.json')) is True


def test_a_package_s_own_vocabulary_is_in_no_file(tmp_path, monkeypatch):
  """Also where a folder of its name is a model's."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'gpt2').mkdir()
  tiny_llama.write_tokenizer(tmp_path / 'gpt2')
  workdir_lib.write_config('run', with_tokenizer('gpt2'))
  assert {path.name for path in (tmp_path / 'run').iterdir()} == {'config.json'}
  assert workdir_lib.read_config('run').data.tokenizer == 'gpt2'


@pytest.mark.parametrize('name', ['tokenizer.json', '', '.replaced/tokenizer.json', 'link.json'])
def test_the_vocabulary_of_a_new_run_is_not_deleted_with_the_old_one(tokenized, tmp_path, name):
  run, file = tokenized
  fill(run, OURS + THEIRS)
  (tmp_path / 'link.json').symlink_to(run / 'tokenizer.json')
  if name.startswith('.replaced'):
    (run / '.replaced').mkdir()
    shutil.copy(file, run / name)
  where, before = (tmp_path if name == 'link.json' else run) / name, contents(run)
  with (
    pytest.raises(UserError, match=r'^config.data.tokenizer is .*, which --overwrite would delete'),
    workdir_lib.begun(run, with_tokenizer(where, OTHER), overwrite=True),
  ):
    pass
  assert contents(run) == before
  with workdir_lib.begun(run, with_tokenizer(file, OTHER), overwrite=True):
    fill(run, ['checkpoints/3/a'])
  assert (run / 'tokenizer.json').read_text() == file.read_text()

"""A path means what it looks like, whatever characters it is made of."""

import os
import pathlib
import tempfile

import corpora
import forbidden
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from armd_jax.errors import UserError
from armd_jax.files import paths

NAMES = (
  'plain', 'with space', 'a[1]', 'a[', ']', '[[]]', 'a\\b', 'a*', 'a?b', 'a#b', 'a%20b', '{a,b}',
  'ü漢字🙂', 'new\nline', 'tab\t', "quote'", 'double"', '$HOME', '`x`', 'a|b', '~', '-a', 'c:',
  'gs:',
  'not \udcff utf-8',
)  # fmt: skip


@pytest.mark.parametrize('name', NAMES, ids=ascii)
def test_orbax_reads_back_what_it_wrote_below_any_name(name, tmp_path):
  folder = tmp_path / name / 'inside'
  folder.mkdir(parents=True)
  # What a pattern would find there, too.
  decoy = tmp_path / 'a1' / 'inside' / 'x' / 'ocdbt.process_7'
  decoy.mkdir(parents=True)
  tree = {'a': jnp.arange(100.0), 'b': {'c': jnp.ones((3, 4))}}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(paths.plain(folder) / 'x', tree)
    checkpointer.wait_until_finished()
    back = checkpointer.restore(paths.plain(folder) / 'x', tree)
  np.testing.assert_array_equal(back['a'], tree['a'])
  np.testing.assert_array_equal(back['b']['c'], tree['b']['c'])
  assert (folder / 'x' / '_METADATA').is_file()


def test_a_plain_path_is_itself(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert paths.plain(pathlib.Path('work/mine')) == tmp_path / 'work/mine'


ADDRESSES = (
  'gs://bucket/run', 'GS://bucket/run', 's3://b', 's3:/b', 'hdfs://host:9000/run', 'hf://a/b',
  's3+http://b', 'file:/x', 'file:///x', 'https://example.org/run',
)  # fmt: skip


@pytest.mark.parametrize('text', ['', '  ', 'a\0b', *ADDRESSES])
def test_what_names_nothing_on_a_disk_is_refused(text):
  with pytest.raises(UserError, match=r'^--out is ') as caught:
    paths.given(text, '--out')
  assert '\n' not in str(caught.value) and '; write ' in str(caught.value)


def test_texts_and_corpora_may_be_in_a_bucket_of_google_alone(tmp_path, monkeypatch):
  corpora.fake_bucket(monkeypatch).pipe('gs://bucket/a.txt', b'text')
  assert paths.readable('gs://bucket/a.txt', 'the text').read_bytes() == b'text'
  assert paths.readable(tmp_path / 'a', 'the text') == tmp_path / 'a'
  for text in set(ADDRESSES) - {'gs://bucket/run'}:
    with pytest.raises(UserError, match=r'^the text is '):
      paths.readable(text, 'the text')


@pytest.mark.parametrize(
  'path', [pathlib.Path('gs://bucket/run'), 'gs:/bucket/run', 'GS://bucket/run']
)
@pytest.mark.parametrize('find', [paths.readable, paths.kept])
def test_an_address_that_is_nearly_a_bucket_is_told_how_to_be_one(find, path):
  with pytest.raises(UserError, match=r"; write a bucket as a text .* 'gs://bucket/run'"):
    find(path, '--workdir')


def test_a_bucket_without_its_package_is_one_sentence(monkeypatch):
  import fsspec

  def missing(name):
    raise ImportError(f'{name} needs gcsfs')

  monkeypatch.setattr(fsspec, 'get_filesystem_class', missing)
  with pytest.raises(UserError, match=r'pip install gcsfs'):
    paths.readable('gs://bucket/a.txt', 'the text')


@pytest.mark.parametrize('path', [None, 3, b'work', ['work'], True])
def test_what_is_no_path_is_refused(path):
  with pytest.raises(UserError, match=r'; write a text or a pathlib\.Path'):
    paths.given(path, '--workdir')


def test_a_circle_of_links_is_one_sentence(tmp_path):
  (tmp_path / 'loop').symlink_to('loop')
  (tmp_path / 'dangling').symlink_to('new')  # which `whole.replacing` makes
  for path in (tmp_path / 'loop', tmp_path / 'loop' / 'run'):
    for find in (paths.given, paths.kept, paths.readable):
      with pytest.raises(UserError, match=r'^--out is .*, whose links lead in a circle; write'):
        find(path, '--out')
  assert paths.given(tmp_path / 'dangling', '--out') == tmp_path / 'dangling'


def test_a_current_directory_that_is_gone_is_one_sentence(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.mkdir('gone')
  os.chdir('gone')
  os.rmdir(tmp_path / 'gone')
  with pytest.raises(UserError, match=r'^--out is y, but the current directory is gone; change'):
    paths.given('y', '--out')
  assert paths.given(tmp_path / 'y', '--out') == tmp_path / 'y'


def test_no_pipe_and_no_device_is_an_experiment(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  for path in (tmp_path / 'fifo', '/dev/zero', tmp_path):
    for options in ('', ':family=mdlm'):
      with pytest.raises(UserError, match=r'^--config is .*, which is no ordinary file; write'):
        paths.experiment(f'{path}{options}', '--config')


def test_links_to_other_names_are_where_none_is_a_pattern(tmp_path, monkeypatch):
  for name in ('T[1]', 'a[1]', 'a[2]'):
    (tmp_path / name).mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'T[1]'))
  link = paths.plain(tmp_path / 'a[1]')
  assert link.resolve() == tmp_path / 'a[1]' and not set('[]*?\\') & set(str(link))
  monkeypatch.setattr(paths, '_TEMPORARY', ())
  with pytest.raises(UserError, match=r'TMPDIR, .*T\[1\]; set TMPDIR to a folder whose name'):
    paths.plain(tmp_path / 'a[2]')


def test_home_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert paths.given('~/runs/a/', '--workdir') == tmp_path / 'runs/a'
  with pytest.raises(UserError, match='no such home'):
    paths.given('~nobody-of-this-name/x', '--workdir')


def test_experiments_are_the_projects_own_where_there_are_no_others(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  find = lambda path: paths.experiment(path, '--config')
  own = pathlib.Path(find('experiments/text8.py'))
  assert own.is_absolute() and 'get_config' in own.read_text('utf-8')
  assert find('./experiments/text8.py:family=mdlm') == f'{own}:family=mdlm'
  assert find('experiments/sweeps/standard.py:seeds').endswith('standard.py:seeds')
  # Whatever else is missing stays what it is, and what is there comes first.
  for path in ('text8.py', 'other/text8.py', 'experiments/mine.py'):
    assert find(path) == path
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments' / 'text8.py').touch()
  assert find('experiments/text8.py') == 'experiments/text8.py'
  monkeypatch.setenv('HOME', str(tmp_path))
  assert find('~/experiments/text8.py:x') == f'{tmp_path}/experiments/text8.py:x'


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('a\0b', 'which no file system takes; write another name'),
    ('x' * 5000, 'which no file system takes; write another name'),
    ('file:///work/a', 'the address of a file; write its path alone'),
    ('hdfs://a/b', 'hdfs:// is not supported here; write a path on a disk, and mount that store'),
    (' ', r'--workdir is empty; write the name of a folder or a file'),
  ],
)
def test_names_of_no_place(path, message):
  with pytest.raises(UserError, match=message):
    paths.given(path, '--workdir')


@pytest.mark.parametrize('name', ['', '/run', '/run/*.txt'])
def test_a_folder_that_may_not_be_entered_is_one_sentence(tmp_path, name):
  """Wherever a user names it, or what is in it."""
  closed = tmp_path / 'alice'
  (closed / 'run').mkdir(parents=True)
  code = f"""
from armd_jax.files import paths
for find in (paths.given, paths.kept, paths.readable, paths.experiment):
  try:
    find({f'{closed}{name}'!r}, '--workdir')
  except Exception as error:
    print(f'{{type(error).__name__}}: {{error}}')
print(paths.given({str(tmp_path / 'new')!r}, '--workdir'))
"""
  with forbidden.Closed(closed):
    done = forbidden.python(code)
  sentence = (
    f'UserError: --workdir is {closed}{name}, which this user may not look into (Permission '
    'denied); ask its owner for the permission, or write another'
  )
  assert done.stdout.splitlines() == [*[sentence] * 4, str(tmp_path / 'new')], done.stderr


def test_a_cache_that_may_not_be_entered_is_done_without(tmp_path):
  """As a home is that belongs to another user."""
  closed = tmp_path / 'home'
  closed.mkdir()
  code = 'from armd_jax.hardware import kept_programs; kept_programs.keep('
  with forbidden.Closed(closed):
    done = forbidden.python(f'{code}{str(closed / "compiled")!r})')
  assert done.returncode == 0 and done.stderr.startswith('note: compiled programs are not kept in ')

"""A path means what it looks like, whatever characters it is made of."""

import pathlib

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


@pytest.mark.parametrize('text', ['', '  ', 'a\0b', 'gs://bucket/run', 's3://b', 'file:/x'])
def test_what_names_nothing_on_a_disk_is_refused(text):
  with pytest.raises(UserError, match=r'^--out is ') as caught:
    paths.given(text, '--out')
  assert '\n' not in str(caught.value) and '; write ' in str(caught.value)


def test_home_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert paths.given('~/runs/a/', '--workdir') == tmp_path / 'runs/a'
  with pytest.raises(UserError, match='no such home'):
    paths.given('~nobody-of-this-name/x', '--workdir')

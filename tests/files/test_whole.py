"""Files are there whole or as they were; JSON of a wrong form is named, never a traceback."""

import errno
import json
import math
import os
import pathlib
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armd_jax.errors import UserError
from armd_jax.files import whole


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
  path = tmp_path / 'a.json'
  whole.write_json(path, [1])
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(OSError) as caught:
      whole.write_text(path, 'x' * 100_000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert caught.value.errno == errno.EFBIG
  assert json.loads(path.read_text()) == [1] and list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_leaves_nothing_behind(tmp_path):
  with pytest.raises(ZeroDivisionError), whole.replacing(tmp_path / 'a') as part:
    part.write_text(str(1 / 0))
  assert list(tmp_path.iterdir()) == []


def test_links_and_permissions_stay(tmp_path):
  target, link = tmp_path / 'target', tmp_path / 'link'
  target.write_text('old')
  target.chmod(0o640)
  link.symlink_to(target)
  whole.write_text(link, 'new')
  assert link.is_symlink() and target.read_text() == 'new'
  assert target.stat().st_mode & 0o777 == 0o640
  before = os.umask(0o027)
  try:
    whole.write_text(tmp_path / 'fresh', '')
  finally:
    os.umask(before)
  assert (tmp_path / 'fresh').stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to(tmp_path):
  read, write = os.pipe()
  whole.write_text(f'/dev/fd/{write}', 'through')
  assert os.read(read, 100) == b'through'
  os.close(read), os.close(write)


def test_a_name_as_long_as_the_file_system_takes(tmp_path):
  path = tmp_path / ('x' * 255)
  whole.write_text(path, 'y')
  assert path.read_text() == 'y'


def test_json_that_is_written_is_json(tmp_path):
  """Which has null where a number is not finite, at any depth, and all else as it was."""
  path = tmp_path / 'a.json'
  value = {'margin': math.inf, 'rows': [(1.5, -math.inf), {'x': np.float64('nan')}], 'n': [2, True]}
  whole.write_json(path, value)
  expected = {'margin': None, 'rows': [[1.5, None], {'x': None}], 'n': [2, True]}
  assert json.loads(path.read_text(), parse_constant=pytest.fail) == expected
  for one, read in ((math.nan, None), ('NaN', 'NaN'), (1e308, 1e308), (None, None)):
    whole.write_json(path, one)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == read


def test_a_lone_surrogate_is_written_as_its_escape(tmp_path):
  whole.write_text(tmp_path / 'a', 'x\ud800')
  assert (tmp_path / 'a').read_text('utf-8') == 'x\\ud800'


FORM = {
  'step': int,
  'name': (str, type(None)),
  'files': {str: [int, float]},
  'rows': [{'x': bool}],
  'notes': ({str: int}, None),
}
VALUE = {
  'step': 3,
  'name': None,
  'files': {'a': [1, 2]},
  'rows': [{'x': True}, {'x': False}],
  'notes': None,
}


def test_a_value_of_the_form_comes_back():
  for value in (VALUE, VALUE | {'notes': {'a': 1}}, VALUE | {'other': 10**30}):
    assert whole.parse_json(json.dumps(value), FORM) == value


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'step': True}, 'holds True at step, not int'),
    ({'step': 3.0}, 'holds 3.0 at step, not int'),
    ({'name': 3}, 'holds 3 at name, not str or null'),
    ({'step': 2**63}, 'holds 9223372036854775808 at step, a number out of range'),
    ({'files': []}, r'holds \[\] at files, not an object'),
    ({'files': {'a': [1]}}, r'holds \[1\] at files.a, not a list'),
    ({'files': {'a': [1, 'x']}}, r"holds 'x' at files.a\[1\], not float or int"),
    ({'notes': 3}, 'holds 3 at notes, not an object'),
    ({'rows': [{}]}, r"lacks 'x' at rows\[0\]"),
  ],
)
def test_another_form_is_named(changed, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    whole.parse_json(json.dumps(VALUE | changed), FORM)


@pytest.mark.parametrize(
  'text',
  ['', '{', '[' * 100_000, '9' * 5000, f'{{"step": {"9" * 5000}}}', '1e5000' * 400, b'\xff', 'NaN'],
  ids=lambda text: f'{text[:8]!r}',
)
def test_what_is_no_json_of_the_form_is_a_value_error(text):
  with pytest.raises(ValueError) as caught:
    whole.parse_json(text, FORM)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=10,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=st.sampled_from([*VALUE, 'other']), value=json_values)
def test_any_value_has_the_form_or_is_refused(name, value):
  data = json.dumps(VALUE | {name: value})
  try:
    found = whole.parse_json(data, FORM)
  except ValueError as error:
    assert name in str(error) and name != 'other'
  else:
    assert type(found['step']) is int
    assert all(len(pair) == 2 for pair in found['files'].values())


def test_a_damaged_file_is_a_sentence(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('[]')
  with pytest.raises(UserError, match=r'a.json is damaged \(it holds \[\] .*\); make it anew$'):
    whole.read_json(path, FORM, 'make it anew')
  with pytest.raises(FileNotFoundError):
    whole.read_json(tmp_path / 'none', FORM, 'make it anew')
  with pytest.raises(UserError, match='Is a directory'):
    whole.read_json(tmp_path, FORM, 'make it anew')


def test_a_file_that_cannot_be_read_is_no_refused_write(tmp_path):
  refused = RuntimeError()
  refused.__cause__ = OSError(errno.ENOSPC, 'No space left on device')
  assert whole.refusal(refused) == 'No space left on device'
  with pytest.raises(UserError) as caught:
    whole.read_json(tmp_path, FORM, 'make it anew')
  assert isinstance(caught.value.__cause__, OSError) and whole.refusal(caught.value) is None


def test_what_would_be_read_for_ever_is_a_sentence(tmp_path):
  os.mkfifo(tmp_path / 'fifo')
  for path in (tmp_path / 'fifo', pathlib.Path('/dev/zero')):
    with pytest.raises(UserError, match=r' \(it is no ordinary file\); make it anew$'):
      whole.read_json(path, FORM, 'make it anew')
  (tmp_path / 'large').touch()
  os.truncate(tmp_path / 'large', 2**40)  # of zeros, which take no space
  with pytest.raises(UserError, match=r'\(it has more than 256 MiB\); make it anew$'):
    whole.read_json(tmp_path / 'large', FORM, 'make it anew')

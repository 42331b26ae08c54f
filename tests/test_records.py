"""What makes a result stale, what does not, and files that are whole at any time."""

import concurrent.futures
import functools
import json
import pathlib
import subprocess
import sys

import pytest

from armd_jax import records
from armd_jax.errors import UserError
from armd_jax.files import whole

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = '''"""Runs."""

from armd_jax import kernel, other
from armd_jax.room.shapes import AREA


def run(x):
  """Docs."""
  return kernel.apply(x) + AREA  # a comment
'''
FILES = {
  'armd_jax/program.py': PROGRAM,
  'armd_jax/kernel.py': 'def apply(x):\n  from armd_jax import deep\n  return deep.TWO * x\n',
  'armd_jax/deep.py': 'TWO = 2\n',
  'armd_jax/other.py': 'import math\nTHREE = 3\n',
  'armd_jax/room/__init__.py': 'EVERYTHING = 1\n',
  'armd_jax/room/shapes.py': 'AREA = 12\n',
  'armd_jax/unused.py': 'X = 1\n',
  'tests/test_program.py': 'import helper\nfrom armd_jax import program\nDRILL_ALSO = ("a",)\n',
  'tests/helper.py': 'RIGHT = True\n',
  'data.txt': 'one',
}


@pytest.fixture
def folder(tmp_path):
  for name, text in FILES.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return tmp_path


def digest(folder, *entries, without=(), settings=''):
  """As a new process, which has read none of the files."""
  for function in (records.digest, records.closure, records._tree, records._imports):
    function.cache_clear()
  for function in (records._statements, records._definition, records._defined):
    function.cache_clear()
  return records.digest(entries or ('armd_jax/program.py',), without, settings, folder)


def names(folder, *entries, without=()):
  records.closure.cache_clear()
  return {str(path.relative_to(folder)) for path in records.closure(entries, without, folder)}


def test_closure_is_what_is_imported_anywhere_in_a_file(folder):
  found = {f'armd_jax/{name}.py' for name in ('program', 'kernel', 'deep', 'other', 'room/shapes')}
  assert names(folder, 'armd_jax/program.py') == found
  tests = {'tests/test_program.py', 'tests/helper.py'}
  assert names(folder, 'tests/test_program.py') == found | tests
  assert names(folder, 'armd_jax/program.py', 'data.txt') == found | {'data.txt'}
  # Left out: neither taken nor followed.
  less = found - {'armd_jax/kernel.py', 'armd_jax/deep.py'}
  assert names(folder, 'armd_jax/program.py', without=('armd_jax/kernel.py',)) == less


def test_globs_that_match_nothing_are_refused(folder):
  for entries, without in ((('nothing*.py',), ()), (('data.txt',), ('nothing*.py',))):
    with pytest.raises(ValueError, match=r'nothing\*\.py match no file'):
      records.closure(entries, without, folder)


def test_folders_that_a_glob_matches_are_no_sources(folder):
  (folder / '__pycache__').mkdir()
  assert names(folder, '*') == names(folder, 'data.txt')


def write(folder, name, text):
  (folder / name).write_text(text)


def move_shapes(folder):
  (folder / 'armd_jax' / 'lengths.py').write_text(FILES['armd_jax/room/shapes.py'])
  (folder / 'armd_jax' / 'room' / 'shapes.py').unlink()
  write(folder, 'armd_jax/program.py', PROGRAM.replace('armd_jax.room.shapes', 'armd_jax.lengths'))


def rename_kernel(folder):
  (folder / 'armd_jax' / 'kernel.py').rename(folder / 'armd_jax' / 'room' / 'product.py')
  text = PROGRAM.replace('import kernel, other', 'import other').replace('kernel.', 'product.')
  write(folder, 'armd_jax/program.py', f'from armd_jax.room import product\n{text}')


def move_two(folder):
  write(folder, 'armd_jax/deep.py', '')
  write(folder, 'armd_jax/other.py', f'{FILES["armd_jax/other.py"]}TWO = 2\n')
  kernel = FILES['armd_jax/kernel.py']
  write(folder, 'armd_jax/kernel.py', kernel.replace('import deep', 'import other as deep'))


def move_apply(folder):
  """The kernel's function into the program that uses it."""
  function = FILES['armd_jax/kernel.py'].partition('\n  from armd_jax import deep\n')
  function = f'\n\n{function[0]}\n{function[2]}'
  program = PROGRAM.replace('kernel.', '').replace('import kernel, other', 'import deep, other')
  write(folder, 'armd_jax/program.py', program + function)
  write(folder, 'armd_jax/kernel.py', '')


@pytest.mark.parametrize(
  'change',
  [
    move_apply,
    functools.partial(write, name='armd_jax/deep.py', text='"""Two."""\n\n# Why two.\nTWO = 2\n'),
    functools.partial(write, name='armd_jax/deep.py', text='TWO = (\n  2\n)\n'),
    functools.partial(write, name='armd_jax/other.py', text='THREE = 3\n'),
    functools.partial(write, name='armd_jax/program.py', text=PROGRAM.replace('Docs', 'More')),
    functools.partial(
      write, name='armd_jax/program.py', text=PROGRAM.replace('(x):', '(x: int) -> int:')
    ),
    functools.partial(write, name='armd_jax/unused.py', text='X = 2\n'),
    functools.partial(write, name='armd_jax/room/__init__.py', text='EVERYTHING = 2\n'),
    functools.partial(write, name='armd_jax/unused.py', text=''),
    move_two,
    move_shapes,
    rename_kernel,
  ],
)
def test_words_layout_and_places_make_nothing_stale(folder, change):
  before = digest(folder)
  change(folder)
  assert digest(folder) == before


@pytest.mark.parametrize(
  'change',
  [
    functools.partial(write, name='armd_jax/deep.py', text='TWO = 3\n'),
    functools.partial(write, name='armd_jax/deep.py', text='TWO = 2.0\n'),
    functools.partial(write, name='armd_jax/deep.py', text='TWO = 2\nFOUR = 4\n'),
    functools.partial(write, name='armd_jax/room/shapes.py', text='AREA = "12"\n'),
    functools.partial(write, name='armd_jax/program.py', text=PROGRAM.replace('+', '-')),
    functools.partial(write, name='armd_jax/program.py', text=PROGRAM.replace('(x)', '(x=1)')),
    # The same name in another module.
    functools.partial(
      write, name='armd_jax/program.py', text=PROGRAM.replace('kernel.apply', 'other.apply')
    ),
  ],
)
def test_code_and_constants_do(folder, change):
  before = digest(folder)
  change(folder)
  assert digest(folder) != before


def test_types_of_fields_count_and_those_of_local_variables_do_not(folder):
  text = 'class A:\n  field: {} = 1\n\n  def run(self):\n    x: {} = 2\n    return x\n'
  digests = []
  for types in (('int', 'int'), ('int', 'float'), ('float', 'int')):
    write(folder, 'armd_jax/program.py', text.format(*types))
    digests.append(digest(folder))
  assert digests[0] == digests[1] != digests[2]


def test_settings_and_other_files_count(folder):
  entries = 'armd_jax/program.py', 'data.txt'
  before = digest(folder, *entries)
  assert digest(folder, *entries, settings='fast') != before
  write(folder, 'data.txt', 'two')
  assert digest(folder, *entries) != before


def test_what_a_module_declares_of_its_drills_does_not_count(folder):
  before = digest(folder, 'tests/test_program.py')
  write(folder, 'tests/test_program.py', FILES['tests/test_program.py'].replace('"a"', '"b"'))
  assert digest(folder, 'tests/test_program.py') == before


def test_is_the_same_in_every_version_of_python(folder):
  """The smoke tests run it in others than the one whose digest is written here."""
  write(
    folder,
    'armd_jax/program.py',
    '@staticmethod\nasync def f(a, /, b: int = 1, *c, d=(1, 2), **e) -> str:\n'
    '  x = f"{a!r:>{b}} {{b}} {a + 1=}"\n  y = [i for i in c if i] or {**e, 1: lambda z: z}\n'
    '  match a:\n    case {"k": [1, *_]} | None:\n      return "a" "b" + rb"\\x"\n'
    '  while (n := b) > 0:\n    try:\n      yield n\n    except* (ValueError, KeyError) as g:\n'
    '      raise g from None\n  return u"é" + "\\u2028"[1:2, ...]\n\n\n'
    'class A(dict, total=False):\n  """Docs."""\n  x: int = 1\n',
  )
  assert digest(folder) == 'b14dcd044dc5fb06'


# ----- the files


def test_records_are_current_under_their_stamp_alone(tmp_path):
  kept = records.Records(tmp_path / 'folder' / 'kept.json')
  assert kept.read() == {} and kept.missing({'b': '1', 'a': '1'}) == ['b', 'a']
  kept.add('b', '1', {'found': 1})
  kept.add('a', '2', {'found': [1, {'x': None}]})
  assert kept.current({'a': '2', 'b': '2'}) == {'a': {'stamp': '2', 'found': [1, {'x': None}]}}
  assert kept.missing({'b': '2', 'a': '2', 'c': '2'}) == ['b', 'c']
  kept.add('b', '2', {'found': 3})
  assert kept.read()['b'] == {'stamp': '2', 'found': 3}
  lines = kept.path.read_text().splitlines()
  assert [json.loads(f'{{{line.rstrip(",")}}}') for line in lines[1:-1]] == [
    {key: record | {'sha256': whole.sha256(record)}} for key, record in kept.read().items()
  ]
  assert [path.name for path in kept.path.parent.iterdir()] == ['kept.json']


def test_a_number_that_was_changed_afterwards_is_not_believed(tmp_path):
  kept = records.Records(tmp_path / 'kept.json')
  kept.add('a', '1', {'nats': 1.625, 'of': {'b': [1, 2]}})
  kept.add('b', '2', {'nats': float('nan')})
  kept.add('c', '3', {})
  assert kept.read()['a'] == {'stamp': '1', 'nats': 1.625, 'of': {'b': [1, 2]}}
  text = kept.path.read_text()
  for before, after in (('1.625', '1.125'), ('[1, 2]', '[1, 3]'), ('"3"', '"4"'), ('NaN', '1.0')):
    kept.path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match=r'kept.json is damaged .*; bring it back, or delete it'):
      kept.read()
  # Records of before there were digests.
  kept.path.write_text('{"a": {"stamp": "1", "nats": 1.625}}')
  assert kept.read() == {'a': {'stamp': '1', 'nats': 1.625}}


def test_processes_that_add_at_once_lose_nothing(tmp_path):
  path = tmp_path / 'kept.json'
  code = (
    'import sys\nfrom armd_jax.records import Records\n'
    'for i in range(20): Records(sys.argv[1]).add(f"{sys.argv[2]} {i}", "1", {"found": i})\n'
  )
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    commands = [[sys.executable, '-c', code, str(path), name] for name in 'abc']
    done = list(pool.map(functools.partial(subprocess.run, cwd=ROOT), commands))
  assert [process.returncode for process in done] == [0, 0, 0]
  assert len(records.Records(path).read()) == 60

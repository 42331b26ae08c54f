"""Sources: the embedded corpus, text files, bad input, and the split by document."""

import ast
import dataclasses
import os
import pathlib
import platform
import random
import subprocess
import sys
import time

import pytest

from armd_jax.data import sources, stdlib_text
from armd_jax.errors import UserError

SHARED = pathlib.Path(__file__).parents[3] / 'shared/data/train'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f'real text is not at {SHARED}')


@pytest.fixture(scope='module')
def stdlib():
  begin = time.process_time()
  documents = sources.load_documents('stdlib')
  assert time.process_time() - begin < 5  # seconds of CPU; 1.6 where this was written
  return documents


def write(folder, name, text):
  path = folder / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode('utf-8'))
  return str(path)


def of_texts(texts):
  return sources.Documents(texts, '', '')


def test_stdlib_is_two_megabytes_of_distinct_documents(stdlib):
  assert 1e6 < stdlib.num_bytes < 4e6
  assert len(stdlib.texts) > 300 and len(set(stdlib.texts)) == len(stdlib.texts)
  assert all(text == text.strip() and text for text in stdlib.texts)
  assert platform.python_version() in stdlib.description
  whole = '\0'.join(stdlib.texts)
  assert '\nThe "assert" statement' in '\n' + whole  # a topic
  assert 'difflib -- helpers for computing deltas' in whole  # a module
  assert (
    'Use SequenceMatcher to return list of the best "good enough" matches.' in whole
  )  # its function


def test_stdlib_is_the_same_in_another_process(stdlib):
  code = "from armd_jax.data import sources; print(sources.load_documents('stdlib').sha256)"
  # Neither the hash seed nor the language may matter.
  env = {**os.environ, 'PYTHONHASHSEED': '7', 'LC_ALL': 'C', 'PYTHONUTF8': '0'}
  run = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, check=True)
  assert run.stdout.decode().strip() == stdlib.sha256


def test_data_needs_neither_jax_nor_tensorflow():
  code = (
    'import sys; from armd_jax.data import sources, tokenizers; from armd_jax.evaluation import '
    "ngram; print({'jax', 'tensorflow'} & set(sys.modules))"
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True)
  assert run.stdout.decode().strip() == 'set()'


def test_docstrings_of_every_definition_in_source_order():
  code = '''
"""Module."""
class A:
  """Class
     indented."""
  def method(self):
    "Method."
    def inner():
      "Inner."
    return lambda: "no docstring"
if True:
  async def f():
    r"""F \\d."""
else:
  def g(): pass
try:
  def h(): "H."
except ImportError:
  def h(): "Other H."
x = 1
"""Only a string."""
def half(): "\\ud800"
def blank(): "  "
'''
  found = list(stdlib_text._docstrings_in(ast.parse(code)))
  expected = ['Module.', 'Class\nindented.', 'Method.', 'Inner.', 'F \\d.', 'H.', 'Other H.', '?']
  assert found == expected


def test_only_importable_modules_without_tests(tmp_path):
  # Enough names that a disk would hardly list them sorted.
  letters = 'cdefghijklmnopq'
  wanted = [
    'a.py',
    'b/__init__.py',
    *(f'b/{x}.py' for x in letters),
    *(f'{x}/x.py' for x in letters),
  ]
  unwanted = [
    *('test/x.py', 'b/tests/x.py', 'b/idle_test/x.py', 'site-packages/x.py', 'config-3.11/x.py'),
    *('b/not-a-name.py', 'b/data.txt', '__pycache__/a.pyc'),
  ]
  for name in random.Random(0).sample(wanted, len(wanted)) + unwanted:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('')
  paths = list(stdlib_text._module_paths(str(tmp_path)))
  assert [os.path.relpath(path, tmp_path) for path in paths] == wanted


def test_repeated_docstrings_and_broken_files_fall_out(tmp_path, monkeypatch):
  write(tmp_path, 'a.py', '"""Shared."""\ndef f(): "Shared."\ndef g(): "Own."')
  write(tmp_path, 'b.py', '"""Shared."""')
  write(tmp_path, 'c.py', '"""Broken."""\ndef (')
  write(tmp_path, 'd.py', b'# -*- coding: utf-8 -*-\n"""\xff"""')
  write(tmp_path, 'e.py', '"""Last."""')
  monkeypatch.setattr(stdlib_text.sysconfig, 'get_path', lambda name: str(tmp_path))
  assert list(stdlib_text._docstrings()) == ['Shared.\n\nOwn.', 'Last.']


def test_blank_lines_separate_documents(tmp_path):
  text = '\ufeff\n\n  One\r\nline two\r\n \t\r\n\r\nTwo \n\n\n\u2028Th\x0cree\n'
  documents = sources.load_documents(write(tmp_path, 'a.txt', text))
  assert documents.texts == ['  One\nline two', 'Two ', '\u2028Th\x0cree']
  assert 'blank lines' in documents.description and 'a.txt' in documents.description
  assert documents.num_bytes == sum(len(text.encode()) for text in documents.texts)


def test_lines_are_documents_where_there_are_no_blank_ones(tmp_path):
  documents = sources.load_documents(write(tmp_path, 'a.txt', '\n\none\ntwo\nthree\n\n'))
  assert documents.texts == ['one', 'two', 'three']
  assert 'one document a line' in documents.description


def test_glob_is_sorted_and_each_file_has_its_rule(tmp_path, monkeypatch):
  write(tmp_path, 'b.txt', 'b1\n\nb2')
  write(tmp_path, 'a.txt', 'a1\na2')
  write(tmp_path, 'c.md', 'c1\n\nc2')
  (tmp_path / 'd.txt').mkdir()
  monkeypatch.setenv('HOME', str(tmp_path))
  documents = sources.load_documents('~/*.txt')
  assert documents.texts == ['a1', 'a2', 'b1', 'b2']
  assert documents.description.startswith('2 files of ~/*.txt')
  assert 'in 1 files without them one a line' in documents.description
  assert sources.load_documents('~/**/*.txt').texts == documents.texts


def test_a_name_with_brackets_is_a_file(tmp_path):
  assert sources.load_documents(write(tmp_path, 'a[1].txt', 'x\ny')).texts == ['x', 'y']


def test_hash_sees_every_byte_and_every_border(tmp_path):
  texts = ['ab\n\nc', 'a\n\nbc', 'ab\n\nd', 'c\n\nab', 'ab\n\nc\n\nc']
  hashes = [sources.load_documents(write(tmp_path, 'a', text)).sha256 for text in texts]
  assert len(set(hashes)) == len(texts)
  assert sources.load_documents(write(tmp_path, 'b', texts[0])).sha256 == hashes[0]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'no file matches'),
    ('', 'is empty'),
    (' \n\t\n\n', 'is empty'),
    ('one\n', 'only one document'),
    (b'caf\xe9\n\nb', r'not UTF-8 \(byte 3\)'),
  ],
)
def test_bad_text_is_one_sentence(tmp_path, content, message):
  path = tmp_path / 'a.txt'
  if content is not None:
    write(tmp_path, 'a.txt', content)
  with pytest.raises(UserError, match=message) as error:
    sources.load_documents(str(path))
  assert str(path) in str(error.value) and ';' in str(error.value)
  assert '\n' not in str(error.value)


def test_a_directory_and_an_unmatched_glob_are_errors(tmp_path):
  with pytest.raises(UserError, match='is a directory'):
    sources.load_documents(str(tmp_path))
  with pytest.raises(UserError, match='no file matches'):
    sources.load_documents(str(tmp_path / '*.txt'))


def test_documents_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    of_texts([]).texts = ['x']


def test_split_is_a_partition_in_source_order_whatever_that_is():
  rng = random.Random(0)
  texts = [f'{i} ' + 'x' * rng.randrange(100) for i in range(500)]
  train, held_out = sources.split_documents(of_texts(texts), 0.1)
  assert sorted(train + held_out) == sorted(texts)
  assert train == [text for text in texts if text in set(train)]
  assert held_out == [text for text in texts if text in set(held_out)]
  share = sum(map(len, held_out)) / sum(map(len, texts))
  assert 0.1 <= share < 0.1 + 110 / sum(map(len, texts))
  # Which texts are held out has nothing to do with where they stand, only with what they say.
  assert 100 < sum(texts.index(text) for text in held_out) / len(held_out) < 400

  shuffled = rng.sample(texts, len(texts))
  train_2, held_out_2 = sources.split_documents(of_texts(shuffled), 0.1)
  assert set(held_out_2) == set(held_out) and set(train_2) == set(train)
  assert held_out_2 == [text for text in shuffled if text in set(held_out)]


def test_split_grows_with_the_share():
  texts = [f'text {i}' for i in range(100)]
  sides = [set(sources.split_documents(of_texts(texts), f)[1]) for f in (0.05, 0.2, 0.6)]
  assert sides[0] < sides[1] < sides[2]


@pytest.mark.parametrize('fraction', [1e-9, 0.05, 0.2])
def test_a_document_that_is_most_of_the_text_is_trained_on(fraction):
  """Whatever its hash is."""
  for n in range(9):
    texts = [f'{n} ' + 'x' * 100_000, *(f'{n} {k} ' + 'y' * 70 for k in range(5))]
    train, held_out = sources.split_documents(of_texts(texts), fraction)
    assert texts[0] in train and held_out


@pytest.mark.parametrize('fraction', [1e-9, 0.5, 1 - 1e-9])
def test_split_leaves_a_document_on_each_side(fraction):
  for texts in (['a', 'b' * 1000], ['a', 'b', 'c']):
    train, held_out = sources.split_documents(of_texts(texts), fraction)
    assert train and held_out


def test_equal_documents_stay_together():
  texts = ['a', 'b', 'c'] * 20
  train, held_out = sources.split_documents(of_texts(texts), 0.2)
  assert not set(train) & set(held_out)
  assert len(train) + len(held_out) == 60
  with pytest.raises(UserError, match='all documents of the text are equal'):
    sources.split_documents(of_texts(['a', 'a']), 0.5)


@pytest.mark.parametrize('fraction', [-0.1, 0, 1, 5, float('nan')])
def test_a_share_out_of_range_is_an_error(fraction):
  with pytest.raises(UserError, match='held_out_fraction'):
    sources.split_documents(of_texts(['a', 'b']), fraction)


@needs_shared
def test_real_files():
  documents = sources.load_documents(str(SHARED / 'brown.txt'))
  assert len(documents.texts) == 500  # as its README says
  verses = sources.load_documents(str(SHARED / 'kjv.txt'))
  assert len(verses.texts) > 31_000 and 'one document a line' in verses.description
  train, held_out = sources.split_documents(documents, 0.05)
  assert 0.05 <= sum(map(len, held_out)) / documents.num_bytes < 0.06
  assert len(train) + len(held_out) == 500


def test_a_python_without_its_own_prose(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pydoc_data', None)
  with pytest.raises(
    UserError, match='comes without pydoc_data; install the full standard library'
  ):
    sources.load_documents('stdlib')

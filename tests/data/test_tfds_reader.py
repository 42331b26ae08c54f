"""tensorflow-datasets: prepared sets by name, at random and without TensorFlow."""

import os
import subprocess
import sys

import corpora
import pytest

from armd_jax.data import sources, tfds_reader
from armd_jax.errors import UserError

TEXTS = corpora.documents(60)


@pytest.fixture(scope='module', autouse=True)
def data_dir(tmp_path_factory):
  """A folder of prepared sets, the one that is used when none is named."""
  folder = tmp_path_factory.mktemp('tfds')
  corpora.write_tfds(folder, 'lm1b', {'train': TEXTS, 'test': TEXTS[:6]}, version='1.1.0')
  corpora.write_tfds(folder, 'pg19', {'train': TEXTS}, ('book_title', 'book_text'), '0.1.1')
  corpora.write_tfds(folder, 'lambada', {'test': TEXTS}, ('passage',), '1.0.0')
  corpora.write_tfds(folder, 'wikipedia', {'train': TEXTS}, ('title', 'text'))
  corpora.write_tfds(folder, 'two_columns', {'train': TEXTS}, ('one', 'two'))
  corpora.write_tfds(folder, 'as_tfrecord', {'train': TEXTS})
  info = next(folder.glob('as_tfrecord/*/dataset_info.json'))
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with corpora.tfds_in(folder):
    yield folder


@pytest.mark.parametrize(
  ('source', 'count'),
  [
    ('tfds:lm1b', 60),
    ('tfds:lm1b#test', 6),
    ('tfds:lm1b#train[10:30]', 20),
    ('tfds:lm1b:1.1.0', 60),
  ],
)
def test_a_set_has_its_split(source, count):
  texts = sources.load_documents(source).texts
  assert len(texts) == count and set(texts) <= set(TEXTS)
  if count == 60:
    assert sorted(texts) == sorted(TEXTS)


@pytest.mark.parametrize('name', ['pg19', 'wikipedia', 'lambada#test'])
def test_columns_of_well_known_sets(name):
  """Under their names, whether or not tensorflow-datasets' code for them can be imported."""
  assert sorted(sources.load_documents(f'tfds:{name}').texts) == sorted(TEXTS)


def test_a_set_may_be_cut_anywhere():
  span = tfds_reader.tfds_span('lm1b', 'train', '', prepare=False)
  whole = list(span.documents())
  for num_bytes in (1, span.num_bytes // 7, span.num_bytes * 2):
    pieces = span.split(num_bytes)
    assert [text for piece in pieces for text in piece.documents()] == whole
  assert len(span.split(1)) == 60 and len(span.split(span.num_bytes // 7)) in (7, 8)


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('tfds:nosuch', "has no 'nosuch', neither by that name nor prepared"),
    ('tfds:lm1b#val', "'lm1b' has no split 'val'; write one of"),
    ('tfds:lm1b:9.9.9', "cannot open 'lm1b:9.9.9'|has no 'lm1b:9.9.9'"),
    ('tfds:two_columns', "no text in column 'text' but one, two; write --column=one"),
    (
      'tfds:ag_news_subset',
      r'is not prepared in .*; run armd prepare --source=\S+ --tokenizer=bytes --out=work/ag',
    ),
    ('tfds:as_tfrecord', 'in a format without random access'),
  ],
)
def test_bad_input(source, message):
  with pytest.raises(UserError, match=message) as error:
    sources.load_documents(source)
  assert '\n' not in str(error.value)


def test_preparing_without_a_network_says_where_the_archive_goes(monkeypatch):
  builder = tfds_reader._builder('ag_news_subset')

  def fail(file_format):
    assert file_format == 'array_record'
    raise ConnectionError('Name or service not known\nand more')

  monkeypatch.setattr(builder, 'download_and_prepare', fail)
  with pytest.raises(UserError, match=r'\(Name or service not known\); put its archive into'):
    tfds_reader.tfds_span('ag_news_subset', 'train', '', prepare=True)

  def needs_tensorflow(file_format):
    raise ModuleNotFoundError("No module named 'tensorflow'", name='tensorflow')

  monkeypatch.setattr(builder, 'download_and_prepare', needs_tensorflow)
  with pytest.raises(UserError, match=r'needs tensorflow; pip install tensorflow$'):
    tfds_reader.tfds_span('ag_news_subset', 'train', '', prepare=True)


def test_a_damaged_set_is_a_sentence(data_dir, tmp_path):
  span = tfds_reader.tfds_span('two_columns', 'train', 'one', prepare=False)
  file = next(data_dir.glob('two_columns/*/*array_record*'))
  data = file.read_bytes()
  tfds_reader._examples.cache_clear()
  file.write_bytes(bytes(len(data)))
  with pytest.raises(UserError, match=r"of 'two_columns' cannot be read|cannot open"):
    list(span.documents())
  file.write_bytes(data)


def test_reading_imports_no_tensorflow(data_dir):
  code = (
    'import sys; from armd_jax.data import sources; '
    "assert len(sources.load_documents('tfds:lm1b').texts) == 60; "
    "print({'jax', 'tensorflow'} & set(sys.modules))"
  )
  env = {**os.environ, 'TFDS_DATA_DIR': str(data_dir)}
  run = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, check=True)
  assert run.stdout.decode().strip() == 'set()'

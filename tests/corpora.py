"""Small corpora for the tests of data: texts, and tensorflow-datasets sets prepared on the spot."""

from __future__ import annotations

import contextlib
import json
import pathlib
import random

import pytest

SHARED = pathlib.Path(__file__).parents[2] / 'shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f'no data for tests at {SHARED}')

_WORDS = ['a', 'naïve', '“reader”', 'of', 'texts,', '…', '東京', 'on\tat', 'last.\nNext', 'line']


def documents(count, seed=0, most_words=60):
  """Texts of words and lines, some of them equal, none with a blank line."""
  rng = random.Random(seed)
  texts = [' '.join(rng.choices(_WORDS, k=rng.randint(1, most_words))) for _ in range(count)]
  return [text if i % 10 else texts[0] for i, text in enumerate(texts)]


def write_text(path, texts):
  path.write_text('\n\n'.join(texts), encoding='utf-8')
  return str(path)


def write_jsonl(path, texts, column='text'):
  rows = [{'id': i, column: text} for i, text in enumerate(texts)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
  return str(path)


def write_parquet(path, texts, column='text', row_group_size=7):
  import pyarrow
  from pyarrow import parquet

  table = pyarrow.table({'id': list(range(len(texts))), column: texts})
  parquet.write_table(table, path, row_group_size=row_group_size)
  return str(path)


def write_records(path, stream_T):
  """A file of a prepared corpus that holds these ids."""
  from array_record.python import array_record_module

  from armd_jax.data.prepared import RECORD_TOKENS

  file = array_record_module.ArrayRecordWriter(str(path), 'group_size:1,uncompressed')
  for begin in range(0, len(stream_T), RECORD_TOKENS):
    file.write(stream_T[begin : begin + RECORD_TOKENS].tobytes())
  file.close()


def write_tfds(folder, set_name, splits, columns=('text',), version='1.0.0'):
  """Prepares a set as tensorflow-datasets does.

  Each split is a list of texts, one for all columns, or of dicts with a text for every column.
  tensorflow-datasets shuffles what it writes, so that only the set of texts is known.
  """
  import tensorflow_datasets as tfds

  class SmallSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = set_name
    VERSION = tfds.core.Version(version)

    @classmethod
    def get_metadata(cls):  # which it would read beside the file that defines the class
      return tfds.core.dataset_metadata.DatasetMetadata(description='', citation='', tags=[])

    def _info(self):
      features = {column: tfds.features.Text() for column in columns}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
      return {split: self._generate_examples(texts) for split, texts in splits.items()}

    def _generate_examples(self, texts):
      for i, text in enumerate(texts):
        yield i, text if isinstance(text, dict) else dict.fromkeys(columns, text)

  SmallSet(data_dir=str(folder), file_format='array_record').download_and_prepare()


@contextlib.contextmanager
def tfds_in(folder):
  """Where sets are kept that are asked for by name alone."""
  from tensorflow_datasets.core import constants

  from armd_jax.data import tfds_reader

  caches = tfds_reader._builder, tfds_reader._examples
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, 'DATA_DIR', str(folder))
    for cache in caches:
      cache.cache_clear()
    yield
  for cache in caches:
    cache.cache_clear()


def fake_bucket(monkeypatch):
  """An empty file system of fsspec's, in memory, behind every gs:// path."""
  from etils.epath import backend
  from fsspec.implementations.memory import MemoryFileSystem
  from fsspec.registry import _registry

  class Bucket(MemoryFileSystem):
    protocol = ('gcs', 'gs')
    store, pseudo_dirs = {}, ['']
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
      return '/' + path.removeprefix('gs://').strip('/')

  bucket = Bucket()
  monkeypatch.setitem(_registry, 'gcs', Bucket)
  monkeypatch.setattr(type(backend.fsspec_backend), '_get_filesystem', lambda *_: bucket)
  return bucket

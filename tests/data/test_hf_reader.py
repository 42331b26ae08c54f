"""Sets of Hugging Face's `datasets`, made on the spot, without a network."""

import importlib.util
import sys

import corpora
import pytest

from armd_jax.data import hf_reader, prepare, sources
from armd_jax.errors import UserError

TEXTS = corpora.documents(60)
needs_datasets = pytest.mark.skipif(
  not importlib.util.find_spec('datasets'), reason="needs pip install -e '.[hf]'"
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Files with two splits, and what `save_to_disk` writes, with splits and without."""
  datasets = pytest.importorskip('datasets')
  folder = tmp_path_factory.mktemp('hf')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(folder / 'cache'))
    (folder / 'files').mkdir()
    corpora.write_jsonl(folder / 'files' / 'train.jsonl', TEXTS)
    corpora.write_jsonl(folder / 'files' / 'test.jsonl', TEXTS[:6])
    columns = {'id': list(range(60)), 'text': [None, ' ', *TEXTS[2:]]}
    table = datasets.Dataset.from_dict(columns)
    table.save_to_disk(str(folder / 'alone'))
    datasets.DatasetDict({'train': table, 'test': table}).save_to_disk(str(folder / 'saved'))
    yield folder


def read(folder, name, **options):
  source = sources.open_source(f'hf:{folder}/{name}', prepare=True, **options)
  return source, [text for span in source.spans for text in span.documents(lambda tell: None)]


@needs_datasets
@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('files', TEXTS),
    ('files#test', TEXTS[:6]),
    ('files/default#train[:10%]', TEXTS[:6]),
    ('alone', TEXTS[2:]),
    ('saved#test', TEXTS[2:]),
    ('saved#train[10:30]', TEXTS[10:30]),
    ('saved#test[50:]+train[10:30]', TEXTS[50:] + TEXTS[10:30]),
  ],
)
def test_a_set_has_its_split(folder, name, expected):
  source, texts = read(folder, name)
  assert texts == expected and "column 'text'" in source.description
  (span,) = source.spans
  for num_bytes in (1, span.num_bytes // 3):
    pieces = span.split(num_bytes)
    cut = [text for piece in pieces for text in piece.documents(lambda tell: None)]
    assert cut == texts and len(pieces) > 2


@needs_datasets
def test_a_set_is_prepared_by_several_processes(folder, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_DATASETS_CACHE', str(folder / 'cache'))
  options = {'held_out': 0.2, 'num_workers': 2, 'part_bytes': 1000}
  manifest = prepare.prepare(f'hf:{folder}/files', 'bytes', str(tmp_path / 'out'), **options)
  assert sum(total['documents'] for total in manifest['totals'].values()) == len(TEXTS)
  with pytest.raises(UserError, match=r"row 0 of .* has null in column 'text'"):
    prepare.prepare(f'hf:{folder}/alone', 'bytes', str(tmp_path / 'other'), held_out=0.2)


@needs_datasets
@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('files#dev', {}, r'hf:.*files#dev cannot be read \(.*dev.*\); write NAME/CONFIG#SPLIT'),
    ('saved#dev', {}, 'cannot be read'),
    ('saved#train[', {}, 'cannot be read'),
    ('saved/other#train', {}, r'cannot be read \(.*other.*\)'),
    ('files', {'column': 'id'}, r"no text in column 'id' but id, text; write --column=text"),
  ],
)
def test_what_is_not_there_is_a_sentence(folder, name, options, message):
  with pytest.raises(UserError, match=message):
    read(folder, name, **options)


def test_only_prepare_reads_sets():
  with pytest.raises(UserError, match='is read by armd prepare alone; prepare it, and name the fo'):
    sources.load_documents('hf:Salesforce/wikitext/wikitext-2-v1')


def test_a_missing_package_is_a_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, 'datasets', None)
  hf_reader._table.cache_clear()
  with pytest.raises(UserError, match='pip install datasets'):
    sources.open_source('hf:Salesforce/wikitext', prepare=True)

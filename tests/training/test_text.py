"""No number is told of a text that it was not measured on, whatever the text is called."""

import json
import os
import shutil

import corpora
import pytest
import tokenizers

from armd_jax.config import parse
from armd_jax.data import corpus as corpus_lib
from armd_jax.data import prepare
from armd_jax.errors import UserError
from armd_jax.evaluation import suites
from armd_jax.training import text
from armd_jax.training import workdir as workdir_lib

TEXTS = corpora.documents(100)
WRITERS = {
  'txt': corpora.write_text,
  'jsonl': corpora.write_jsonl,
  'parquet': corpora.write_parquet,
}


def config_of(source):
  data = {'source': str(source), 'held_out': 0.2}
  return parse({'model': {'length': 16}, 'order': {'max_shuffled': 4}, 'data': data})


def load(config):
  return corpus_lib.load(config.data, 16)


def start(workdir, source):
  config = config_of(source)
  workdir_lib.write_config(workdir, config)
  text.keep(workdir, config, load(config))
  return config


def swap(texts):
  """Another text of the same size."""
  return [one.replace('last', 'lost') for one in texts]


@pytest.mark.parametrize('kind', WRITERS)
def test_another_text_under_the_same_name_is_refused(tmp_path, kind):
  source = tmp_path / f'a.{kind}'
  WRITERS[kind](source, TEXTS)
  config = start(tmp_path / 'run', source)
  text.keep(tmp_path / 'run', config, load(config))  # the same goes on
  before = source.stat()
  WRITERS[kind](source, swap(TEXTS))
  os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
  for refuse in (
    lambda: text.keep(tmp_path / 'run', config, load(config)),
    lambda: text.check(tmp_path / 'run', load(config)),
    lambda: suites.likelihood_task(config, (), 1, 0, text.sha256_of(tmp_path / 'run')),
  ):
    with pytest.raises(UserError, match=r'of another text .* bring that text back') as error:
      refuse()
    assert '\n' not in str(error.value) and str(source) in str(error.value)


def test_the_same_text_is_accepted_in_another_place_and_another_file(tmp_path):
  corpora.write_text(tmp_path / 'a.txt', TEXTS)
  start(tmp_path / 'run', tmp_path / 'a.txt')
  (tmp_path / 'moved').mkdir()
  shutil.move(tmp_path / 'a.txt', tmp_path / 'moved' / 'b.txt')
  corpora.write_jsonl(tmp_path / 'moved' / 'c.jsonl', TEXTS)
  for name in ('b.txt', 'c.jsonl'):
    config = config_of(tmp_path / 'moved' / name)
    workdir_lib.check_same_run(tmp_path / 'run', config)
    text.keep(tmp_path / 'run', config, load(config))
    assert workdir_lib.read_config(tmp_path / 'run') == config  # where evaluations look for it


def test_a_prepared_text_is_the_same_wherever_it_is(tmp_path):
  source = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  for name, held_out in (('one', 0.2), ('two', 0.2), ('split', 0.4)):
    prepare.prepare(source, 'bytes', str(tmp_path / name), held_out=held_out)
  start(tmp_path / 'run', tmp_path / 'one')
  text.check(tmp_path / 'run', load(config_of(tmp_path / 'two')))
  # Windows of other documents, though the text is the same: cut anew, or in memory.
  for other in ('split', 'a.txt'):
    with pytest.raises(UserError, match='of another text'):
      text.check(tmp_path / 'run', load(config_of(tmp_path / other)))


def test_a_run_of_before_keeps_its_source(tmp_path):
  """One without text.json: nothing tells whether a text elsewhere is the same."""
  corpora.write_text(tmp_path / 'a.txt', TEXTS)
  corpora.write_text(tmp_path / 'b.txt', swap(TEXTS))
  config, other = config_of(tmp_path / 'a.txt'), config_of(tmp_path / 'b.txt')
  workdir_lib.write_config(tmp_path / 'run', config)
  assert text.sha256_of(tmp_path / 'run') == ''
  with pytest.raises(UserError, match=r'was started with config.data.source = .*a.txt'):
    text.keep(tmp_path / 'run', other, load(other))
  text.keep(tmp_path / 'run', config, load(config))
  assert text.sha256_of(tmp_path / 'run') == load(config).sha256


@pytest.mark.parametrize('data', ['', '[]', '{"sha256": 5}', '{"sha256": "ab"}', '[' * 99_999])
def test_a_damaged_file_is_a_sentence(tmp_path, data):
  (tmp_path / text.FILE).write_text(data)
  with pytest.raises(UserError, match=r'text.json is damaged .*; delete it if'):
    text.sha256_of(tmp_path)


@pytest.mark.parametrize('has_text', [True, False])
def test_any_changed_character_is_damage_and_no_other_text(tmp_path, has_text):
  """Whoever is told of another text looks for one, and his was right."""
  config = start(tmp_path / 'run', corpora.write_text(tmp_path / 'a.txt', TEXTS))
  corpus = load(config)
  if not has_text:
    text.keep_tokenizer(tmp_path / 'run', corpus.tokenizer)
  path = tmp_path / 'run' / text.FILE
  data = path.read_text()
  for place, character in enumerate(data):
    if character.isspace():
      continue
    path.write_text(data[:place] + ('1' if character == '0' else '0') + data[place + 1 :])
    with pytest.raises(UserError, match=r'text.json is damaged \(its? .*\); delete it') as error:
      text.check(tmp_path / 'run', corpus)
    assert '\n' not in str(error.value)
  path.write_text(data)
  text.check(tmp_path / 'run', corpus)


def test_a_file_of_an_older_version_has_no_seal(tmp_path):
  config = start(tmp_path, corpora.write_text(tmp_path / 'a.txt', TEXTS))
  path = tmp_path / text.FILE
  older = {name: value for name, value in json.loads(path.read_text()).items() if name != 'seal'}
  assert older.keys() == {'sha256', 'description', 'tokenizer', 'statistics'}
  path.write_text(json.dumps(older))
  text.check(tmp_path, load(config))
  assert text.sha256_of(tmp_path) == older['sha256']


def test_numbers_name_their_text(tmp_path):
  source = corpora.write_text(tmp_path / 'a.txt', TEXTS)
  config = config_of(source)
  task = suites.likelihood_task(config, (), 1, 0, load(config).sha256)
  assert load(config).sha256[:16] in json.dumps(task.described)


def test_another_vocabulary_under_the_same_name_is_refused(tmp_path):
  workdir, path = tmp_path / 'run', tmp_path / 'mine.json'
  corpora.write_text(tmp_path / 'a.txt', TEXTS)
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel({'last': 0, 'one': 1}, unk_token='one'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.save(str(path))
  config = parse({
    'model': {'length': 16}, 'order': {'max_shuffled': 4},
    'data': {'source': str(tmp_path / 'a.txt'), 'held_out': 0.2, 'tokenizer': str(path)},
  })  # fmt: skip
  workdir_lib.write_config(workdir, config)
  text.keep(workdir, config, load(config))
  text.check(workdir, load(config))
  made.add_tokens(['first'])
  made.save(str(path))
  with pytest.raises(UserError, match=r'trained with another vocabulary .* bring that one back'):
    text.check(workdir, load(config))


def test_a_digest_that_is_none_is_damage(tmp_path):
  start(tmp_path, corpora.write_text(tmp_path / 'a.txt', TEXTS))
  path = tmp_path / text.FILE
  older = {'sha256': text.sha256_of(tmp_path)}  # without a seal, which would tell of it first
  path.write_text(json.dumps(older).replace(older['sha256'], 'ab'))
  with pytest.raises(UserError, match=r'text.json is damaged \(its sha256 is none\); delete it if'):
    text.sha256_of(tmp_path)

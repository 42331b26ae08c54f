"""docs/python.md runs as it stands, from top to bottom, in small."""

import pathlib
import re
import sys

import pytest

import armd_jax
from armd_jax import config as config_lib
from armd_jax import families, register
from armd_jax.data import readers, tokenizers
from armd_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'python.md').read_text('utf-8')
BLOCKS = re.findall(r'^```python\n(.*?)^```$', PAGE, re.M | re.S)
# Fewer steps and a smaller network.
SMALLER = {'steps=300': 'steps=8', 'steps=100': 'steps=8', 'embed_dim=128': 'embed_dim=32'}


@pytest.fixture
def clean(monkeypatch):
  """Registries and paths as they were."""
  registries = families.FAMILIES, config_lib.FAMILIES, tokenizers.REGISTERED, readers.REGISTERED
  before = [dict(one) for one in registries]
  monkeypatch.setattr(sys, 'path', [*sys.path])
  yield
  for one, old in zip(registries, before, strict=True):
    one.clear()
    one.update(old)
  sys.modules.pop('own_parts', None)


def test_the_page_runs(clean, tmp_path, monkeypatch, capsys):
  assert len(BLOCKS) == 6
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'examples').symlink_to(ROOT / 'examples')
  namespace = {}
  for block in BLOCKS:
    for old, new in SMALLER.items():
      block = block.replace(old, new)
    exec(compile(block, 'docs/python.md', 'exec'), namespace)
  printed = capsys.readouterr().out
  assert '<armd_jax model: armd, ' in printed and "64 tokens of 'bytes', step 8>" in printed
  assert '(2, 3, 4, 5, 6, 7)' in printed  # what the first token saw
  assert namespace['model'].config.model.family == 'both_ends'
  assert namespace['model'].tokenizer.name == 'capitals'


def test_the_example_is_short():
  text = (ROOT / 'examples' / 'own_parts.py').read_text('utf-8')
  assert sum(bool(line.strip()) for line in text.splitlines()) < 30


def test_what_fit_refuses_is_a_sentence(tmp_path):
  fit = lambda texts=('a b', 'c d'), **how: armd_jax.fit(list(texts), tmp_path / 'run', **how)
  for call, message in (
    (lambda: fit(stepps=3), "the config has no single field 'stepps'"),
    (lambda: fit(steps='many'), 'config.train.steps is .many. but must be of type int'),
    (lambda: fit([1, 2]), 'a list of texts'),
    (lambda: armd_jax.fit('text', tmp_path / 'run'), 'a list of texts'),
    (lambda: fit(learning_rate=10**5000), 'digits; write a smaller number'),
    (lambda: fit(experiment='no.py'), "there is no experiment 'no.py'"),
    (lambda: fit(experiment=tmp_path / 'no.py'), 'there is no experiment '),
    (lambda: fit(experiment=None), 'experiment is None; give the path of a file'),
    (lambda: fit(experiment=[1]), r'experiment is \[1\]; give the path of a file'),
    (lambda: fit(family=[]), r'config.model.family is \[\] but must be of type str'),
    (lambda: fit(family=None), 'config.model.family is None but must be of type str'),
    (lambda: armd_jax.fit({'a b': 1, 'c d': 2}, tmp_path / 'run'), 'a list of texts'),
    (lambda: fit(source='stdlib'), 'source is given, and so are texts, which are trained on'),
    (lambda: fit(**{'data.mixture': ('a', 'b')}), 'data.mixture is given, and so are texts'),
    (lambda: fit(seed=-1), 'config.seed is -1'),
    (lambda: fit(steps=10**10), 'config.train.steps is 10000000000; write'),
    (lambda: fit(length=10**5000), 'is a number of more than 4000 digits; write'),
  ):
    with pytest.raises(UserError, match=message):
      call()
  assert not (tmp_path / 'run').exists()  # nothing is written before all is looked at
  with pytest.raises(UserError, match='holds only one document'):
    fit(['one'])
  assert not list((tmp_path / 'run').iterdir())


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('1 / 0', r'ZeroDivisionError: division by zero'),
    ('def get_config(:', r'SyntaxError: '),
    ('get_confg = dict', r"KeyError: 'get_config'"),
    ('raise SystemExit(0)', 'SystemExit: 0'),
    ('get_config = lambda: 5', 'TypeError: get_config returns 5, no ConfigDict'),
  ],
)
def test_what_an_experiment_of_fit_raises_is_a_sentence(tmp_path, text, message):
  (tmp_path / 'a.py').write_text(text)
  with pytest.raises(UserError, match=rf'a.py cannot be run \({message}.*; mend it'):
    armd_jax.fit(['a b', 'c d'], tmp_path / 'run', experiment=str(tmp_path / 'a.py'))


def test_every_family_is_trained(tmp_path):
  small = dict(steps=1, length=8, num_layers=1, embed_dim=16, num_heads=2, batch_size=1)
  for family in ('ar', 'radd', 'esolm'):
    texts = ['alpha beta gamma delta', 'epsilon zeta eta theta']
    model = armd_jax.fit(texts, tmp_path / family, family=family, **small)
    assert model.config.model.family == family and model.step == 1


def test_other_texts_never_go_on_with_a_run(tmp_path):
  small = dict(steps=1, length=8, num_layers=1, embed_dim=16, num_heads=2, batch_size=1)
  armd_jax.fit(['alpha beta gamma'] * 2 + ['delta epsilon'], tmp_path / 'run', **small)
  with pytest.raises(UserError, match='of another text'):
    armd_jax.fit(['other words are here', 'and more of them'], tmp_path / 'run', **small)
  # The texts that were refused are gone, those of the run are there.
  assert armd_jax.fit(['alpha beta gamma'] * 2 + ['delta epsilon'], tmp_path / 'run', **small)
  assert len(list((tmp_path / 'run').glob('texts-*.jsonl'))) == 1


def test_a_run_that_ends_in_an_error_keeps_its_texts(tmp_path, monkeypatch):
  def end(*_, **__):
    raise UserError('the disk is full')

  small = dict(steps=1, length=8, num_layers=1, embed_dim=16, num_heads=2, batch_size=1)
  monkeypatch.setattr('armd_jax.training.checkpoint.Checkpoints.save', end)
  with pytest.raises(UserError, match='the disk is full'):
    armd_jax.fit(['alpha beta gamma', 'delta epsilon'], tmp_path / 'run', **small)
  assert (tmp_path / 'run' / 'config.json').exists()
  assert len(list((tmp_path / 'run').glob('texts-*.jsonl'))) == 1


def test_registered_names_are_checked(clean):
  for call, message in (
    (
      lambda: register.source('a b', list),
      "'a b' cannot be registered; write letters, digits and _",
    ),
    (
      lambda: register.family('f', families.FAMILIES['armd'], 'some'),
      "orders is 'some'; write 'any', 'left_to_right' or 'none'",
    ),
    (lambda: register.family('f', 'armd'), "family 'f' is 'armd'; write a families.family.Family"),
    (lambda: register.family('armd', families.FAMILIES['mdlm']), "'armd' is one of the package's"),
    (lambda: register.source('tfds', list), "'tfds' is one of the package's own; write another"),
    (lambda: register.source('lines', 'list'), "what 'lines' names is 'list'; write a function"),
    (lambda: register.tokenizer('bytes', list), "'bytes' is one of the package's own"),
    (lambda: register.tokenizer('words', None), "what 'words' names is None; write a function"),
  ):
    with pytest.raises(UserError, match=message):
      call()
  register.source('broken', lambda rest: [3])
  span = readers.RegisteredSpan('broken', 'x')
  with pytest.raises(UserError, match=r'broken:x cannot be read \(it yields 3'):
    list(span.documents())
  register.source('half', lambda rest: ['\ud800'])
  with pytest.raises(UserError, match=r"half:x cannot be read \('utf-8' codec can't encode"):
    list(readers.RegisteredSpan('half', 'x').documents())
  for make, message in (
    (lambda: 1 / 0, r"'words' cannot be made \(ZeroDivisionError: division by zero\); mend it"),
    (dict, "as tokenizer 'words' is another thing .*; give it bos_id, .*, vocab_size"),
    (tokenizers.ByteTokenizer, "as tokenizer 'words' is another thing .*; call it that"),
  ):
    register.tokenizer('words', make)
    with pytest.raises(UserError, match=message):
      tokenizers.get_tokenizer('words')


def test_a_folder_that_texts_cannot_be_written_to(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    UserError, match=r'cannot write .*texts-.*\.jsonl \(.*\); use another workdir'
  ):
    armd_jax.fit(['a b', 'c d'], tmp_path / 'file' / 'run')

"""Runs that start from other weights are runs like any other, at step 0."""

import dataclasses
import errno
import json

import jax
import numpy as np
import pytest
import tiny_gpt2
import tiny_llama
import tiny_run

from armd_jax import config as config_lib
from armd_jax import convert, models
from armd_jax.artifacts import starts, weights
from armd_jax.errors import UserError
from armd_jax.order import left_to_right
from armd_jax.training import checkpoint
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import train


@pytest.fixture(scope='module')
def ar_run(tmp_path_factory):
  """An AR run that has not begun."""
  folder = tmp_path_factory.mktemp('ar')
  raw = tiny_run.config(folder)
  raw.model.family = 'ar'
  config = config_lib.parse(raw)
  params = jax.jit(lambda: models.init(models.build(config.model, 257), jax.random.key(3)))()
  starts.write(starts.Start(config, params), folder / 'run')
  return folder / 'run', params


def test_an_ar_run_becomes_armds(ar_run, tmp_path):
  folder, params = ar_run
  starts.write(starts.from_ar(folder, -1), tmp_path / 'warm')
  config, _, warm, step = weights.load_ema(tmp_path / 'warm')
  assert (step, config.model.family, config.model.query_seed) == (0, 'armd', 'warm')
  assert config.model.num_two_stream_layers == 1
  np.testing.assert_array_equal(warm['vocabulary']['embedding'], params['vocabulary']['embedding'])
  with pytest.raises(UserError, match='two_stream_layers is 3; write at most the 2'):
    starts.from_ar(folder, 3)
  with pytest.raises(UserError, match="family 'armd'; a warm start needs"):
    starts.from_ar(tmp_path / 'warm', -1)


def test_nothing_is_overwritten(ar_run):
  folder, _ = ar_run
  with pytest.raises(UserError, match='is not empty; use another --workdir'):
    starts.write(starts.from_ar(folder, -1), folder)
  with pytest.raises(UserError, match=r'config\.json is a file; use another --workdir'):
    starts.write(starts.from_ar(folder, -1), folder / 'config.json')


def test_gpt2_becomes_a_run(tmp_path):
  arrays = tiny_gpt2.arrays()
  rows = np.random.RandomState(0).normal(size=(257, tiny_gpt2.E)).astype(np.float32)
  folder = tiny_gpt2.write(tmp_path, arrays | {'wte.weight': rows}, vocab_size=257)
  starts.write(starts.from_hugging_face(folder, 'stdlib', 'bytes', 0), tmp_path / 'run')
  config, tokenizer, params, step = weights.load_ema(tmp_path / 'run')
  assert (step, config.model.family, config.model.architecture) == (0, 'ar', 'gpt2')
  assert (config.data.source, tokenizer.name) == ('stdlib', 'bytes')
  np.testing.assert_array_equal(params['vocabulary']['embedding'][:257], rows)
  np.testing.assert_array_equal(params['vocabulary']['bos'], rows[256])
  tiny_gpt2.write(tmp_path, arrays)
  with pytest.raises(UserError, match='a vocabulary of 13 but --tokenizer=bytes one of 257'):
    starts.from_hugging_face(tmp_path, 'stdlib', 'bytes', 0)
  with pytest.raises(UserError, match='--length is 9, but a GPT-2 has learned 8 positions'):
    starts.from_hugging_face(tmp_path, 'stdlib', 'bytes', 9)


@pytest.mark.parametrize('pieces', [tiny_llama.V, tiny_llama.V - 4])
def test_a_llama_becomes_a_run(tmp_path, pieces):
  """With its own tokenizer, which may know fewer ids than the model has rows."""
  folder = tmp_path / 'hf'
  folder.mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder, 'llama2'), pieces)
  options = dict(hf=str(folder), workdir=str(tmp_path / 'run'), length=16)
  convert.main(convert.Options(**options))
  config, tokenizer, params, step = weights.load_ema(tmp_path / 'run')
  assert (step, config.model.family, config.model.length) == (0, 'ar', 16)
  assert (tokenizer.vocab_size, tokenizer.eos_id) == (pieces, 0)
  assert tokenizer.decode(tokenizer.encode('abba')) == 'abba'
  rows = tiny_llama.arrays('llama2')['model.embed_tokens.weight']
  np.testing.assert_array_equal(params['vocabulary']['embedding'][: tiny_llama.V], rows)
  np.testing.assert_array_equal(params['vocabulary']['bos'], rows[1])
  tokens = np.random.RandomState(0).randint(pieces, size=(1, 16))
  expected = tiny_llama.reference(
    'llama2', tiny_llama.arrays('llama2'), np.append(1, tokens[0, :-1])
  )[:, :pieces]
  starts.write(starts.from_ar(tmp_path / 'run', 1), tmp_path / 'warm')
  for run in ('run', 'warm'):
    config, tokenizer, params, _ = weights.load_ema(tmp_path / run)
    model = models.build(config.model, tokenizer.vocab_size)
    hidden = model.apply({'params': params}, tokens, left_to_right(16))
    logits = model.apply({'params': params}, hidden, method='logits')
    np.testing.assert_allclose(logits[0, :, :pieces], expected, atol=1e-4)
    assert np.isneginf(logits[0, :, pieces:]).all()


def test_weights_that_are_no_numbers_are_refused(tmp_path):
  folder = tmp_path / 'hf'
  folder.mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder, 'llama2'), tiny_llama.V)
  start = starts.from_hugging_face(str(folder), 'stdlib', '', 16)
  start.params['final_norm']['scale'] = np.full_like(start.params['final_norm']['scale'], np.nan)
  with pytest.raises(UserError, match=r'^final_norm/scale holds numbers that are not finite; get'):
    starts.write(start, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_run_stays_with_its_tokenizer(tmp_path):
  """Another vocabulary of as many ids would give every embedding to another piece."""
  folder, run = tmp_path / 'hf', tmp_path / 'run'
  folder.mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder, 'llama2'))
  convert.main(convert.Options(hf=str(folder), workdir=str(run), length=16))
  whole, other = json.loads((run / 'tokenizer.json').read_text()), tmp_path / 'other.json'
  whole['model']['vocab'] |= {'a': 3, 'b': 2}
  other.write_text(json.dumps(whole))
  raw = tiny_run.config(tmp_path)
  (tmp_path / 'text.txt').write_text('abba\n\ncab\n\n' * 40)
  found = config_lib.to_dict(workdir_lib.read_config(run))
  raw.model.update(found['model'])
  raw.order.update(max_shuffled=0)
  raw.init_from, raw.data.tokenizer = str(run), str(other)
  with pytest.raises(UserError, match=r'run was trained with another vocabulary .*; bring that'):
    train(config_lib.parse(raw), tmp_path / 'new')
  assert not (tmp_path / 'new' / 'config.json').exists()
  (run / 'tokenizer.json').write_text(other.read_text())
  with pytest.raises(UserError, match='was trained with another vocabulary'):
    weights.load_ema(run)


def test_nothing_is_written_of_a_llama_that_is_refused(tmp_path):
  folder, workdir = tmp_path / 'hf', tmp_path / 'run'
  folder.mkdir()
  tiny_llama.write(folder, 'llama2')
  options = convert.Options(hf=str(folder), workdir=str(workdir), length=16)
  for message, change in (
    ('holds no tokenizer.json; put that of the model', lambda: None),
    ('a vocabulary of 15 but tokenizer.json one of 16',
     lambda: tiny_llama.write_tokenizer(folder, 16)),
    ('no tokenizer.json', lambda: (folder / 'tokenizer.json').write_text('{}')),
    ('no tokenizer.json', lambda: (folder / 'tokenizer.json').write_bytes(b'\xff\xfe')),
    ("rope_scaling = 'dynamic'",
     lambda: tiny_llama.write(folder, 'llama2', rope_scaling={'type': 'dynamic', 'factor': 2.0})),
  ):  # fmt: skip
    change()
    with pytest.raises(UserError, match=message):
      convert.main(options)
    assert not workdir.exists()


def test_one_source_is_asked_for(tmp_path):
  workdir = tmp_path / 'run'
  for both in ({}, {'hf': 'x', 'warm_start': 'y'}):
    with pytest.raises(UserError, match='write either --hf=FOLDER or --warm_start=AR_RUN'):
      convert.main(convert.Options(workdir=str(workdir), **both))
  done = tiny_run.run([*tiny_run.PYTHON, '-m', 'armd_jax.convert', f'--workdir={workdir}'])
  assert done.returncode == 1 and not workdir.exists()
  assert done.stderr == 'error: write either --hf=FOLDER or --warm_start=AR_RUN\n'


def test_the_program_converts(ar_run, tmp_path, capsys):
  folder, _ = ar_run
  options = dict(warm_start=str(folder), two_stream_layers=2, workdir=str(tmp_path / 'warm'))
  convert.main(convert.Options(**options))
  assert weights.load_ema(tmp_path / 'warm')[0].model.num_two_stream_layers == 2
  assert capsys.readouterr().out.endswith("holds a run of family 'armd' at step 0\n")


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'warmup_stable_decay'])
def test_a_warm_start_is_a_run_of_its_own(tmp_path, schedule):
  """Whatever run the AR run went on from, and wherever in its schedule."""
  raw = tiny_run.config(tmp_path)
  raw.model.family, raw.init_from, raw.init_step = 'ar', 'other', 4
  raw.optimizer.update(schedule_restarts=True, schedule=schedule)
  if schedule != 'constant':
    raw.optimizer.update(schedule_steps=8, final_share=0.0)
  config = config_lib.parse(raw)
  params = jax.jit(lambda: models.init(models.build(config.model, 257), jax.random.key(3)))()
  starts.write(starts.Start(config, params), tmp_path / 'ar')
  convert.main(convert.Options(warm_start=str(tmp_path / 'ar'), workdir=str(tmp_path / 'warm')))
  found = workdir_lib.read_config(tmp_path / 'warm')
  assert (found.init_from, found.init_step, found.optimizer.schedule_restarts) == ('', -1, False)
  assert weights.load_ema(tmp_path / 'warm')[0].model.family == 'armd'


def test_nothing_stays_of_a_run_that_cannot_be_written(ar_run, tmp_path, monkeypatch):
  """A second try is made in the same place."""
  start = starts.from_ar(ar_run[0], -1)
  wrong = dataclasses.replace(start.config, init_step=3)
  with pytest.raises(UserError, match=r'^config.init_step is 3 but config.init_from is empty'):
    starts.write(dataclasses.replace(start, config=wrong), tmp_path / 'a/b')
  (tmp_path / 'empty').mkdir()
  for workdir in ('a/b', 'empty'):
    with monkeypatch.context() as patched:

      def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')

      patched.setattr(checkpoint.Checkpoints, '_written', full)
      with pytest.raises(UserError, match=r'^cannot save in .* \(No space left on device\)'):
        starts.write(start, tmp_path / workdir)
    assert [path.name for path in tmp_path.rglob('*')] == ['empty']
  starts.write(start, tmp_path / 'empty')
  assert weights.load_ema(tmp_path / 'empty')[3] == 0


def test_a_run_is_moved_with_its_vocabulary(tmp_path):
  """And so are those that began from it; none is deleted under the one that replaces it."""
  folder, run = tmp_path / 'hf', tmp_path / 'run'
  folder.mkdir()
  tiny_llama.write_tokenizer(tiny_llama.write(folder, 'llama2'))
  convert.main(convert.Options(hf=str(folder), workdir=str(run), length=16))
  raw = tiny_run.config(tmp_path)
  (tmp_path / 'text.txt').write_text('abba\n\ncab\n\n' * 40)
  raw.model.update(config_lib.to_dict(workdir_lib.read_config(run))['model'])
  raw.order.update(max_shuffled=0)
  raw.train.update(steps=1)
  raw.init_from, raw.data.tokenizer = str(run), str(run / 'tokenizer.json')
  before = {path: path.read_bytes() for path in run.rglob('*') if path.is_file()}
  with pytest.raises(UserError, match=r'which --overwrite would delete with the run in'):
    train(config_lib.parse(raw), run, overwrite=True)
  assert {path: path.read_bytes() for path in run.rglob('*') if path.is_file()} == before
  train(config_lib.parse(raw), tmp_path / 'next')
  starts.write(starts.from_ar(run, 1), tmp_path / 'warm')
  _, expected, _, _ = weights.load_ema(run)
  run.rename(tmp_path / 'moved')
  for name in ('next', 'warm'):
    (tmp_path / name).rename(tmp_path / f'{name}-moved')
  for name in ('moved', 'next-moved', 'warm-moved'):
    found = weights.load_ema(tmp_path / name)[1]
    assert found.name == str(tmp_path / name / 'tokenizer.json')
    assert found.fingerprint == expected.fingerprint
  assert starts.from_ar(tmp_path / 'moved', 1).tokenizer == expected.text

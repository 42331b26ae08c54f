"""Runs that start from other weights are runs like any other, at step 0."""

import jax
import numpy as np
import pytest
import tiny_gpt2
import tiny_run

from armd_jax import config as config_lib
from armd_jax import convert, models
from armd_jax.artifacts import weights
from armd_jax.errors import UserError


@pytest.fixture(scope='module')
def ar_run(tmp_path_factory):
  """An AR run that has not begun."""
  folder = tmp_path_factory.mktemp('ar')
  raw = tiny_run.config(folder)
  raw.model.family = 'ar'
  config = config_lib.parse(raw)
  params = jax.jit(lambda: models.init(models.build(config.model, 257), jax.random.key(3)))()
  convert.write(config, params, folder / 'run')
  return folder / 'run', params


def test_an_ar_run_becomes_armds(ar_run, tmp_path):
  folder, params = ar_run
  convert.write(*convert.from_ar(folder, -1), tmp_path / 'warm')
  config, _, warm, step = weights.load_ema(tmp_path / 'warm')
  assert (step, config.model.family, config.model.query_seed) == (0, 'armd', 'warm')
  assert config.model.num_two_stream_layers == 1
  np.testing.assert_array_equal(warm['vocabulary']['embedding'], params['vocabulary']['embedding'])
  with pytest.raises(UserError, match='two_stream_layers is 3; write at most the 2'):
    convert.from_ar(folder, 3)
  with pytest.raises(UserError, match="family 'armd'; a warm start needs"):
    convert.from_ar(tmp_path / 'warm', -1)


def test_nothing_is_overwritten(ar_run):
  folder, _ = ar_run
  with pytest.raises(UserError, match='is not empty; use another --workdir'):
    convert.write(*convert.from_ar(folder, -1), folder)


def test_gpt2_becomes_a_run(tmp_path):
  arrays = tiny_gpt2.arrays()
  rows = np.random.RandomState(0).normal(size=(257, tiny_gpt2.E)).astype(np.float32)
  folder = tiny_gpt2.write(tmp_path, arrays | {'wte.weight': rows}, vocab_size=257)
  convert.write(*convert.from_gpt2(folder, 'stdlib', 'bytes'), tmp_path / 'run')
  config, tokenizer, params, step = weights.load_ema(tmp_path / 'run')
  assert (step, config.model.family, config.model.architecture) == (0, 'ar', 'gpt2')
  assert (config.data.source, tokenizer.name) == ('stdlib', 'bytes')
  np.testing.assert_array_equal(params['vocabulary']['embedding'][:257], rows)
  np.testing.assert_array_equal(params['vocabulary']['bos'], rows[256])
  tiny_gpt2.write(tmp_path, arrays)
  with pytest.raises(UserError, match='a vocabulary of 13 but --tokenizer=bytes one of 257'):
    convert.from_gpt2(tmp_path, 'stdlib', 'bytes')


def test_one_source_is_asked_for(tmp_path):
  workdir = tmp_path / 'run'
  for both in ({}, {'gpt2': 'x', 'warm_start': 'y'}):
    with pytest.raises(UserError, match='write either --gpt2=FOLDER or --warm_start=AR_RUN'):
      convert.main(convert.Options(workdir=str(workdir), **both))
  done = tiny_run.run([*tiny_run.PYTHON, '-m', 'armd_jax.convert', f'--workdir={workdir}'])
  assert done.returncode == 1 and not workdir.exists()
  assert done.stderr == 'error: write either --gpt2=FOLDER or --warm_start=AR_RUN\n'


def test_the_program_converts(ar_run, tmp_path, capsys):
  folder, _ = ar_run
  options = dict(warm_start=str(folder), two_stream_layers=2, workdir=str(tmp_path / 'warm'))
  convert.main(convert.Options(**options))
  assert weights.load_ema(tmp_path / 'warm')[0].model.num_two_stream_layers == 2
  assert capsys.readouterr().out.endswith("holds a run of family 'armd' at step 0\n")

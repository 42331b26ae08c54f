"""Settings of jax that a process brings along change nothing, or end in one sentence."""

import contextlib
import json
import os
import subprocess
import sys

import ambient_run
import jax
import numpy as np
import pytest
import tiny
import tiny_run

from armd_jax import cli
from armd_jax.decode import generate
from armd_jax.decode.sampling import Sampling
from armd_jax.parallel import ambient

# Of every setting a value that would change what is drawn, or end in an error.
OTHERWISE = {
  'jax_default_prng_impl': 'rbg',
  'jax_threefry_partitionable': False,
  'jax_random_seed_offset': 3,
  'jax_high_dynamic_range_gumbel': True,
  'jax_enable_x64': True,
  'jax_numpy_rank_promotion': 'raise',
  'jax_numpy_dtype_promotion': 'strict',
  'jax_transfer_guard': 'disallow',
  'jax_debug_infs': True,
}
# Left as they are.
KEPT = {
  'JAX_DEBUG_NANS': '1',
  'JAX_DEBUG_KEY_REUSE': '1',
  'JAX_DEFAULT_MATMUL_PRECISION': 'float32',
  'JAX_DEFAULT_DTYPE_BITS': '32',
  'JAX_LEGACY_PRNG_KEY': 'error',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('ambient')


@pytest.fixture(scope='module')
def expected(folder):
  return ambient_run.all_of(folder)


def test_all_settings_are_tried():
  assert OTHERWISE.keys() == ambient.SETTINGS.keys()
  for name, value in OTHERWISE.items():
    assert value != ambient.SETTINGS[name] == getattr(jax.config, name) or 'guard' in name


@contextlib.contextmanager
def _otherwise(*names):
  before = {name: getattr(jax.config, name) for name in names}
  try:
    for name in names:
      jax.config.update(name, OTHERWISE[name])
    yield
    assert all(getattr(jax.config, name) == OTHERWISE[name] for name in names)  # as they were
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


@pytest.mark.parametrize('name', OTHERWISE)
def test_a_loaded_model_in_a_process_of_others(name, folder, expected):
  with _otherwise(name):
    assert ambient_run.text(folder, 'run') == expected['text']


def test_training_in_a_process_of_others(folder, expected):
  with _otherwise(*OTHERWISE):
    assert ambient_run.losses(folder, 'others') == expected['losses']


def test_in_programs(expected, tmp_path):
  """All at once, and what is left alone beside them."""
  given = {name.upper(): str(value) for name, value in OTHERWISE.items()}
  command = [sys.executable, ambient_run.__file__, f'--out={tmp_path}']
  variables = os.environ | tiny_run.VARIABLES | given | KEPT
  done = subprocess.run(command, capture_output=True, text=True, env=variables)
  assert done.returncode == 0, done.stderr
  assert json.loads((tmp_path / 'all.json').read_text()) == expected
  for name, value in OTHERWISE.items():
    note = f'note: {name} is {value} in this environment; armd_jax computes with '
    assert done.stderr.count(note) == 1
  assert done.stderr.count('note: ') == len(OTHERWISE)


def test_without_compilation():
  config = tiny.model_config(length=2, num_layers=1, family='ar')
  model, params = tiny.init(config)
  task = generate.task_of(np.zeros((1, 2), bool), np.full(1, 2), 1)
  arguments = model, params, task, np.zeros((1, 2), np.int32), Sampling()
  expected = generate.generate(*arguments)
  with jax.disable_jit():
    found = generate.generate(*arguments)
  np.testing.assert_array_equal(found.tokens_BxN, expected.tokens_BxN)


@pytest.mark.parametrize(
  ('platform', 'program'),
  [('cuda', 'train'), ('tpu', 'export'), ('nonesuch', 'bench.train_step')],
)
def test_devices_that_are_not_there(platform, program, tmp_path, folder, expected):
  flags = {
    'train': [f'--config={folder}/experiment.py', f'--workdir={tmp_path}/new'],
    'export': [f'--workdir={folder}/run', f'--out={tmp_path}/out'],
    'bench.train_step': [],
  }[program]
  command = [sys.executable, '-m', f'armd_jax.{program}', *flags]
  done = subprocess.run(
    command, capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': platform}
  )
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  last = done.stderr.splitlines()[-1]
  assert last.startswith('error: ') and f'the devices of JAX_PLATFORMS={platform}' in last
  assert 'set JAX_PLATFORMS=cpu' in last


def test_a_precision_that_the_device_lacks():
  """XLA names the algorithm of a product that it cannot do, deep inside of a program."""
  error = RuntimeError('Unsupported algorithm on the current device(s): ALG_DOT_BF16_BF16_F32_X3')
  with jax.default_matmul_precision('BF16_BF16_F32_X3'):
    sentence = cli._environment(error)
  assert sentence.startswith('JAX_DEFAULT_MATMUL_PRECISION=BF16_BF16_F32_X3 is not')
  assert cli._environment(error) is None  # of an error that no setting explains


def test_a_precision_that_jax_refuses_for_a_cpu():
  with jax.default_matmul_precision('TF32_TF32_F32'), pytest.raises(ValueError) as caught:
    jax.jit(lambda x: x @ x)(np.eye(2, dtype=np.float32))
  with jax.default_matmul_precision('TF32_TF32_F32'):
    sentence = cli._environment(caught.value)
    assert cli._environment(ValueError('of another kind')) is None
  assert sentence.startswith('JAX_DEFAULT_MATMUL_PRECISION=TF32_TF32_F32 is not')
  assert cli._environment(caught.value) is None

"""Compiling ahead of time: names, meshes, memory and what to change; one small real compilation."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from armd_jax import aot, config, training
from armd_jax.compiled import flops, programs, targets
from armd_jax.decode.state import CACHE_ROWS
from armd_jax.errors import UserError
from armd_jax.hardware import chips
from armd_jax.hardware.chips import GIB

TINY = dict(
  length=16, num_layers=2, embed_dim=32, num_heads=8, mlp_dim=64, dtype='float32', position_dim=8,
  query_seed_chunk=8, dropout=0.0,
)  # fmt: skip


def tiny(**train):
  return config.parse(
    {'model': TINY, 'order': {'max_shuffled': 1}, 'train': {'batch_size': 4} | train}
  )


def target(devices=None):
  chip = chips.Chip(1e12, 16 * GIB, GIB, 1e12, 1e11, 0)
  return targets.Target('test', chip, 'v5e', tuple(devices or jax.devices()[:1]))


@pytest.mark.parametrize('name', ['v9:2x2', 'v5p', 'v5p:', 'v5p:4x4x', 'h100:2x2', 'v5e:2y4'])
def test_unknown_topologies_are_told_in_a_sentence(name):
  with pytest.raises(UserError, match=r'is no TPU slice; write one of v4, v5e, v5p, .*v5p:8x8x16'):
    targets.tpu(name)


@pytest.mark.parametrize('name', ['h200', 'h100:9', 'a100'])
def test_unknown_gpus_are_told_in_a_sentence(name):
  with pytest.raises(UserError, match='is not known; write h100, or h100:8'):
    targets.gpu(name)


@pytest.mark.parametrize('asked', [{}, {'topology': 'v5p:8x8x16', 'target': 'h100'}])
def test_one_target_is_asked_for(asked):
  options = aot.Options(config=config.default_config(), **asked)
  with pytest.raises(
    UserError, match=r'write either --topology=v5p:8x8x16 \(.*\) or --target=h100'
  ):
    aot.main(options)


def test_the_program_refuses_in_one_sentence():
  command = [sys.executable, '-m', 'armd_jax.aot', '--config=experiments/owt_medium.py']
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  sentence = 'error: write either --topology=v5p:8x8x16 (a TPU slice) or --target=h100'
  assert done.stderr.splitlines() == [sentence]


def test_a_compiler_without_efforts_does_without(monkeypatch):
  """Newer ones of TPUs have none, and the CPU's own refuses what it does not know alike."""
  described = types.SimpleNamespace(devices=jax.devices())
  monkeypatch.setattr(targets.topologies, 'get_topology_desc', lambda *_: described)
  monkeypatch.setitem(sys.modules, 'libtpu', types.ModuleType('libtpu'))
  monkeypatch.setattr(targets, 'EFFORT', 'nonsense')
  assert targets.tpu('v5e:2x4', -1.0).options == ()
  monkeypatch.setattr(targets, 'EFFORT', option := 'xla_cpu_enable_fast_math')
  assert targets.tpu('v5e:2x4', True).options == ((option, True),)
  assert targets.tpu('v5e:2x4').options == ()
  with pytest.raises(jax.errors.JaxRuntimeError, match=option):  # of another kind
    targets.tpu('v5e:2x4', 'fast')


def test_a_missing_compiler_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(UserError, match=r"libtpu is not installed; pip install -e '\.\[aot\]'"):
    targets.tpu('v5e:2x4')

  def refuse(*args, **kwargs):
    raise RuntimeError('no such backend')

  monkeypatch.setattr(targets.topologies, 'get_topology_desc', refuse)
  with pytest.raises(UserError, match=f'pip install .*jax-cuda12-plugin=={jax.__version__}'):
    targets.gpu('h100')


def _mesh_that_suits():
  here, said = target(jax.devices()), []
  _, kept = programs.mesh_for(tiny(batch_size=16), here, 11, said.append)
  # 4 sequences cannot be shared by 8 devices: those of the one process share the heads.
  changed, taken = programs.mesh_for(tiny(), here, 11, said.append)
  with pytest.raises(UserError, match='is 4'):
    odd = dataclasses.replace(tiny(), model=dataclasses.replace(tiny().model, num_heads=4))
    programs.mesh_for(odd, here, 11, print)
  return dict(kept.shape), dict(taken.shape), dataclasses.astuple(changed.mesh), said


def test_a_mesh_that_does_not_suit_is_replaced(eight_devices):
  kept, taken, written, said = eight_devices(_mesh_that_suits)
  assert kept == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert taken == {'data': 1, 'fsdp': 1, 'tensor': 8} and written == (1, -1, 8)
  (told,) = said
  assert '--config.mesh.tensor=8' in told and 'batch_size / accumulation is 4' in told


def test_memory_counts_donated_arguments_once():
  said = types.SimpleNamespace(
    argument_size_in_bytes=5 * GIB,
    output_size_in_bytes=6 * GIB,
    alias_size_in_bytes=4 * GIB,
    generated_code_size_in_bytes=GIB,
    temp_size_in_bytes=7 * GIB,
  )
  compiled = types.SimpleNamespace(memory_analysis=lambda: said)
  found = programs.memory(compiled, target())
  assert found['total'] == 15 * GIB == found['usable'] and found['fits']
  said.temp_size_in_bytes += 1
  assert not programs.memory(compiled, target())['fits']


@pytest.mark.parametrize(
  'words',
  [
    'Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) exceeds '
    'available HBM (15.75G).',
    'Ran out of memory in memory space hbm. Used 19.50G of 15.75G hbm. Exceeded by 3.75G.',
  ],
)
def test_what_the_compiler_says_of_a_program_that_is_too_large(words):
  def refuse(options):
    raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {words}')

  found = programs.compile_program(types.SimpleNamespace(compile=refuse), target())
  assert found == programs.TooLarge(19.5 * GIB, 15.75 * GIB)
  assert not programs.memory(found, target())['fits']


def test_other_errors_of_the_compiler_are_not_swallowed():
  def refuse(options):
    raise jax.errors.JaxRuntimeError('INTERNAL: memory of (1K) and (2K) is odd')

  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    programs.compile_program(types.SimpleNamespace(compile=refuse), target())


def test_products_without_tiles_are_given_to_cublas():
  tried = []

  def compile_(options):
    tried.append(options or {})
    if 'xla_gpu_enable_triton_gemm' not in tried[-1]:
      raise jax.errors.JaxRuntimeError('INTERNAL: No supported config found for HLO: %gemm_fusion')
    return 'compiled'

  assert programs.compile_program(types.SimpleNamespace(compile=compile_), target()) == 'compiled'
  assert tried[1] == tried[0] | {'xla_gpu_enable_triton_gemm': False}


def _fix(monkeypatch, fits, **train):
  """What is recommended, and the settings that were tried."""
  tried = []

  def try_one(changed, *_):
    tried.append((changed.model.remat, changed.train.accumulation))
    return fits(*tried[-1])

  monkeypatch.setattr(programs, '_fits', try_one)
  given = tiny(batch_size=64, **train)
  _, mesh = programs.mesh_for(given, target(), 11, print)
  return programs.find_fix(given, 11, mesh, target(), print), tried


def test_the_fix_is_the_cheapest_that_fits(monkeypatch):
  found, _ = _fix(monkeypatch, lambda remat, count: count >= 8)
  assert found == 'it fits with --config.model.remat=none --config.train.accumulation=8'
  found, _ = _fix(monkeypatch, lambda remat, count: remat == 'dots' and count >= 2)
  assert found == 'it fits with --config.model.remat=dots --config.train.accumulation=2'
  found, tried = _fix(monkeypatch, lambda *_: False, accumulation=32)
  assert found.startswith('no remat policy or accumulation makes it fit')
  assert all(count >= 32 for _, count in tried)


def test_what_no_setting_can_mend_asks_for_chips(monkeypatch):
  given = tiny()
  small = dataclasses.replace(target(), chip=chips.Chip(1e12, 100_000, 0, 1e12, 1e11, 0))
  _, mesh = programs.mesh_for(given, small, 11, print)
  state = training.abstract_state(given, 11, mesh)
  needed = programs.held(state) + programs.held(state.params)
  assert 100_000 < needed < 800_000
  monkeypatch.setattr(programs, '_fits', None)  # nothing is compiled
  count = next(2**i for i in range(9) if 2**i * 100_000 >= needed)
  assert f'take {count} or more' in programs.find_fix(given, 11, mesh, small, print)


def test_train_flops_are_those_of_the_whole_batch():
  given = tiny(batch_size=6, accumulation=2)
  params = jax.eval_shape(lambda: training.init_state(given, 11).params)
  text_BxN = jax.ShapeDtypeStruct((6, given.model.length), jnp.int32)
  whole = flops.count(
    lambda *args: training.loss_and_gradients(given, 11, *args), params, jnp.int32(0), text_BxN
  )
  assert programs.train_flops(given, 11) == whole


def test_decode_flops_of_a_step():
  """By hand: rows of a step through matrices, attention and the output layer."""
  given = tiny()
  m, tokens, sequences = given.model, programs.DECODE_STREAMS, 3
  width, ffn, keys = m.embed_dim, m.mlp_dim, m.length + CACHE_ROWS  # room for a step's rows
  matrices = 2 * width * width + 2 * width * ffn  # query, out, up, down
  key_value = 2 * width * width
  # One two-stream layer, the last: queries only, keys of the content; one causal layer.
  layers = 2 * (matrices + key_value) + 2 * 2 * keys * width
  padded = m.padded(11)
  # Seeds: the aggregated state, and rows of the same step.
  seeds = m.position_dim * width * 2 + tokens * (m.position_dim + width)
  by_hand = 2 * tokens * (layers + padded * width + seeds)
  found = programs.decode_flops(given, 11, sequences)
  assert found['decode'].dense == pytest.approx(sequences * by_hand, rel=0.02)
  assert found['decode'].visible < found['decode'].dense
  assert found['prefill'].visible > found['decode'].visible / tokens * (m.length // 2 - 1) * 0.5


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="libtpu, the TPU compiler, is not installed; pip install -e '.[aot]'",
)
def test_a_small_config_really_compiles_for_a_tpu(tmp_path):
  """Training, prefill and decoding, sharded, kernels included, for 8 v5e chips of 2 processes."""
  changes = dict(
    length=256, num_layers=2, embed_dim=256, num_heads=4, scan_layers=True, vocab_multiple=128
  )
  changes = {f'model.{k}': v for k, v in changes.items()}
  changes |= {'model.dtype': 'bfloat16', 'train.batch_size': 8, 'mesh.data': 1, 'mesh.fsdp': 4,
              'mesh.tensor': 2}  # fmt: skip
  path = tmp_path / 'aot.json'
  command = [
    sys.executable, '-m', 'armd_jax.aot', '--config=experiments/quickstart.py',
    '--topology=v5e:2x4', '--effort=-1', '--movers=3', f'--json={path}',
    *(f'--config.{name}={value}' for name, value in changes.items()),
  ]  # fmt: skip
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  last = next(i for i, line in enumerate(lines) if line.endswith('others'))
  assert all(re.match(r' +[\d.]+ GB +[\d.]+ ms +\d+ ', line) for line in lines[last - 3 : last + 1])
  found = json.loads(path.read_text())
  train = found['train']
  assert found['processes'] == 2 and train['mesh'] == {'data': 1, 'fsdp': 4, 'tensor': 2}
  assert train['memory']['fits'] and train['memory']['temporary'] > 0
  assert train['memory']['parameters'] < train['num_parameters'] * 4 / 7  # eight parts, nearly
  sent = {(row['kind'], row['axis']) for row in train['collectives']}
  assert ('all-reduce', 'tensor') in sent and {axis for _, axis in sent} >= {'fsdp', 'tensor'}
  assert 0 < train['mfu']['serial'] <= train['mfu']['overlapped'] <= 1
  for part in ('prefill', 'decode'):
    assert found['generate'][part]['sent_bytes'] > 0

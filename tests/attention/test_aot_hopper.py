"""What was compiled for an H100 that is not here: complete, of these sources, no spills."""

import json
import pathlib

import pytest

from armd_jax.attention import aot, aot_hopper, shapes

RESULTS = pathlib.Path(__file__).parents[2] / aot_hopper.PATH


@pytest.fixture(scope='module')
def programs():
  results = json.loads(RESULTS.read_text())
  assert results['stamp'] == aot_hopper.stamp(), (
    f'{RESULTS.name} was made from other sources; run `python -m armd_jax.attention.aot_hopper`'
  )
  return results['programs']


def test_every_named_shape_is_compiled(programs):
  names = [f'{name} x{streams}' for name in aot.distinct(shapes.NAMED) for streams in (1, 2)]
  assert {f'bfloat16 {name}' for name in names} <= set(programs)
  # float16 differs in the type that instructions name.
  assert {f'float16 {name}' for name in names if 'train_1024' in name} <= set(programs)


def test_kernels_use_the_matrix_unit_and_bulk_copies_and_spill_nothing(programs):
  for name, kernels in programs.items():
    assert set(kernels) == {'forward', 'dq', 'dkv'}, name
    for kernel, said in kernels.items():
      assert said['wgmma'] > 0 and said['bulk_tensor_copies'] > 0, (name, kernel)
      assert said['spill_stores'] == said['spill_loads'] == 0, (name, kernel)


def test_ptxas_is_understood_where_it_warns_of_spills():
  text = """.version 9.0
.entry prefix_attention_dkv_mosaic_gpu_kernel(
wgmma.mma_async.sync wgmma.mma_async.sync cp.async.bulk.tensor.4d
ptxas warning : Registers are spilled in a function, 9 bytes spill stores
ptxas info    : Compiling entry function 'prefix_attention_dkv_mosaic_gpu_kernel' for 'sm_90a'
    16 bytes stack frame, 9 bytes spill stores, 17 bytes spill loads
ptxas info    : Used 168 registers, used 16 barriers
.version 9.0
.entry other(
wgmma.mma_async.sync
"""
  assert aot_hopper.kernels(text) == {
    'dkv': {
      'wgmma': 2,
      'bulk_tensor_copies': 1,
      'registers': 168,
      'spill_stores': 9,
      'spill_loads': 17,
    }
  }

"""What is compiled for an H100 that is not here: complete, of these sources, no spills; meshes."""

import pathlib

import jax
import jax.numpy as jnp
import known_stale
import pytest
from jax.sharding import PartitionSpec

from armd_jax import attention, records
from armd_jax.attention import shapes
from armd_jax.bench.attention import compile_hopper, compile_tpu
from armd_jax.hardware import device

RESULTS = records.Records(pathlib.Path(__file__).parents[3] / compile_hopper.PATH)
COMMAND = 'python -m armd_jax.bench.attention.compile_hopper'


@pytest.fixture(scope='module')
def programs():
  found = RESULTS.read()
  stale = RESULTS.missing(dict.fromkeys(found, compile_hopper.stamp()))
  known_stale.check(RESULTS, set(stale), f'`{COMMAND}`')
  return found


def test_every_named_shape_is_compiled(programs):
  distinct = compile_tpu.distinct(shapes.NAMED)
  names = [f'{name} x{streams}' for name in distinct for streams in (1, 2)]
  assert {f'bfloat16 {name}' for name in names} <= set(programs)
  # float16 differs in the type that instructions name.
  assert {f'float16 {name}' for name in names if 'train_1024' in name} <= set(programs)


def test_kernels_use_the_matrix_unit_and_bulk_copies_and_spill_nothing(programs):
  for name, kernels in programs.items():
    for kernel in compile_hopper.KERNELS:
      said = kernels[kernel]
      assert said['wgmma'] > 0 and said['bulk_tensor_copies'] > 0, (name, kernel)
      assert said['spill_stores'] == said['spill_loads'] == 0, (name, kernel)


@pytest.mark.parametrize(('chip', 'backend'), [('v5e', 'pallas_tpu'), ('H100', 'pallas_hopper')])
def test_gradient_traces_under_remat_and_shard_map_with_batch_and_heads_sharded(chip, backend):
  """Results are known to vary over the mesh as the inputs do."""
  automatic = (jax.sharding.AxisType.Auto,) * 2  # jax 0.12 makes others
  mesh = jax.sharding.AbstractMesh((2, 2), ('data', 'heads'), axis_types=automatic)
  rows, keys = PartitionSpec('data', None, None, 'heads'), PartitionSpec('data', None, 'heads')
  q = jax.ShapeDtypeStruct((4, 2, 256, 4, 64), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((4, 256, 2, 64), jnp.bfloat16)

  def loss(q, k, v):
    lengths = jnp.ones((1, 2, 256), jnp.int32)
    attend = jax.shard_map(
      lambda *a: attention.prefix_attention(*a, backend=backend),
      mesh=mesh,
      in_specs=(rows, keys, keys, PartitionSpec()),
      out_specs=rows,
    )
    layer = jax.checkpoint(lambda q, _: (attend(q, k, v, lengths), None))
    return jax.lax.scan(layer, q, length=2)[0].astype(jnp.float32).sum()

  with device.compiling_for(chip):
    gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), q, k, k)
  assert [x.shape for x in gradients] == [q.shape, k.shape, k.shape]


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
  assert compile_hopper.kernels(text) == {
    'dkv': {
      'wgmma': 2,
      'bulk_tensor_copies': 1,
      'registers': 168,
      'spill_stores': 9,
      'spill_loads': 17,
    }
  }

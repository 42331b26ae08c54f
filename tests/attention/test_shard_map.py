"""Both kernels under every transformation at once, in their interpreters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention import test_hopper
from attention import test_prefix_attention as suite
from jax.sharding import PartitionSpec

from armd_jax import attention

KERNELS = {
  'pallas_tpu': suite.BACKENDS['pallas_tpu'][1],
  'pallas_hopper': test_hopper.BACKEND[1],
}


@pytest.mark.parametrize('kernels', KERNELS)
def test_gradient_of_a_scan_over_layers_under_shard_map(kernels):
  """jit, grad, scan and shard_map at once, equal to the reference.

  remat cannot be among them: it takes no effects, and interpreters are full of them. That it traces
  is shown in test_aot_hopper.py, what it saves in test_tpu.py.
  """
  case = suite.Case(suite.causal(136, 2), 136, batch=1, heads=2, groups=2, dtype='bfloat16')
  q, k, v, _ = case.arrays()
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'heads'))
  rows, keys = PartitionSpec('data', None, None, 'heads'), PartitionSpec('data', None, 'heads')

  def gradients(backend):
    # The interpreter, not the kernel, cannot track which axes a value varies over.
    attend = jax.shard_map(
      lambda *a: attention.prefix_attention(*a, backend=backend),
      mesh=mesh,
      in_specs=(rows, keys, keys, PartitionSpec()),
      out_specs=rows,
      check_vma=False,
    )

    def loss(q, k, v):
      layers, _ = jax.lax.scan(lambda q, _: (attend(q, k, v, case.lengths) + q, None), q, length=2)
      return (layers.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

  with KERNELS[kernels]():
    found = jax.block_until_ready(gradients(kernels))
  expected = gradients('reference')
  for a, b in zip(found, expected, strict=True):
    a, b = (np.asarray(x.astype(jnp.float32)) for x in (a, b))
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())

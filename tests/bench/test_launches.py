"""What a decoding step launches on an H100: eight kernels a layer, few beside them."""

import pytest

from armd_jax.bench import launches
from armd_jax.compiled import targets
from armd_jax.errors import UserError

MODEL = dict(
  length=64,
  num_layers=12,
  embed_dim=256,
  num_heads=4,
  mlp_dim=512,
  dtype='bfloat16',
  position_dim=64,
)


@pytest.mark.parametrize(('family', 'streams', 'batch'), [('ar', 1, 1), ('armd', 4, 1)])
def test_a_layer_takes_eight_launches(optimized, family, streams, batch):
  try:
    target = targets.gpu('h100')
  except UserError as error:
    pytest.skip(str(error))
  row = launches.measure(MODEL | {'family': family}, 512, streams, batch, target)
  assert row['a layer'] <= 8
  assert row['beside them'] <= 30
  assert row['a step'] == 12 * row['a layer'] + row['beside them']

"""A mesh of sizes that do not make up the devices is refused."""

import types

import pytest

from armd_jax.config import MeshConfig
from armd_jax.errors import UserError
from armd_jax.parallel import sharding

DEVICES = [types.SimpleNamespace(process_index=0, id=number) for number in range(8)]


@pytest.mark.parametrize('sizes', [{'data': 3}, {'data': -1, 'fsdp': 3}, {'tensor': 2, 'data': 8}])
def test_sizes_that_do_not_make_up_the_devices(sizes):
  message = (
    r'config.mesh is \{.*\}, which does not make up 8 devices; write axis sizes whose product'
  )
  with pytest.raises(UserError, match=message):
    sharding.make_mesh(MeshConfig(**sizes), DEVICES)
  assert sharding.axis_sizes(MeshConfig(data=-1, fsdp=2), 8)['data'] == 4

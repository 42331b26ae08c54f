"""Times follow from published figures, and from which links of the torus an axis lies along."""

import types

import numpy as np
import pytest

from armd_jax.compiled import roofline
from armd_jax.compiled.hlo import Cost
from armd_jax.hardware.chips import CHIPS


def torus(*sizes):
  """Stand-ins for described devices, in the order of their coordinates, the last one fastest."""
  places = np.stack(np.meshgrid(*map(np.arange, sizes), indexing='ij'), -1).reshape(-1, len(sizes))
  return [types.SimpleNamespace(coords=tuple(map(int, place))) for place in places]


def mesh(devices, **sizes):
  array = np.empty(len(devices), object)
  array[:] = devices
  # A real Mesh wants real devices; what is read of it is these four.
  return types.SimpleNamespace(
    devices=array.reshape(tuple(sizes.values())),
    axis_names=tuple(sizes),
    shape=sizes,
    size=len(devices),
  )


V5P, V5E = CHIPS['v5p'], CHIPS['v5e']


@pytest.mark.parametrize(
  'chip, devices, sizes, axes, share',
  [
    # Six links per v5p chip: a closed ring uses two, an open line of two one.
    (V5P, torus(4, 4, 4), dict(data=16, tensor=4), 'tensor', 2 / 6),
    (V5P, torus(4, 4, 4), dict(data=16, tensor=4), 'data', 4 / 6),
    (V5P, torus(4, 4, 4), dict(data=16, tensor=4), 'data+tensor', 1),
    (V5P, torus(2, 2, 1), dict(data=2, tensor=2), 'tensor', 1 / 6),
    # Every second chip of a ring of four: neighbours are two links apart, shared with the others.
    (V5P, torus(1, 1, 4), dict(data=2, tensor=2), 'data', 2 / 6 / 2),
    # Four links per v5e chip, whose rings close at 16 only.
    (V5E, torus(16, 16), dict(data=16, tensor=16), 'tensor', 2 / 4),
    (V5E, torus(4, 4), dict(data=4, tensor=4), 'tensor', 1 / 4),
  ],
)
def test_bandwidth_is_that_of_the_links_along_the_axis(chip, devices, sizes, axes, share):
  assert roofline.bandwidth(chip, mesh(devices, **sizes), axes) == pytest.approx(chip.links * share)


def test_times_and_utilisation():
  cost = Cost()
  cost.moved['entry', 'copy'] = V5P.hbm_bandwidth * 0.2
  cost.sent['all-gather', 'tensor'] = V5P.links / 3 * 0.5
  cost.sent['all-reduce', 'data+tensor'] = V5P.links * 0.25
  found = roofline.estimate(
    V5P, mesh(torus(4, 4, 4), data=16, tensor=4), V5P.flops, 0.6 * V5P.flops, cost
  )
  assert (found.compute, found.memory, found.network) == pytest.approx((1, 0.2, 0.75))
  assert (found.overlapped, found.serial) == pytest.approx((1, 1.95))
  assert (found.mfu_overlapped, found.mfu_serial) == pytest.approx((0.6, 0.6 / 1.95))

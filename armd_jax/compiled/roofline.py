"""How long a program takes at least, by what chips can do at most (chips.py).

Three times: matrix products at the peak rate, memory traffic at the peak bandwidth, and collectives
at the bandwidth of the links of their mesh axes. If all of it overlapped, a step would take the
longest of the three; if nothing did, their sum. A program that otherwise runs at its peaks takes a
time between these two; real programs do not, so read it as a bound.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from armd_jax.compiled.hlo import Cost
from armd_jax.hardware.chips import Chip


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds per step on every chip, all at once.

  Attributes:
    compute, memory, network: matrix products, memory traffic, collectives, each alone.
    mfu_overlapped, mfu_serial: visible FLOPs over what the peak rate does in the longest of the
      three, and in their sum.
  """

  compute: float
  memory: float
  network: float
  mfu_overlapped: float
  mfu_serial: float

  @property
  def overlapped(self) -> float:
    return max(self.compute, self.memory, self.network)

  @property
  def serial(self) -> float:
    return self.compute + self.memory + self.network


def estimate(chip: Chip, mesh: Mesh, dense_flops: float, visible_flops: float, cost: Cost):
  """Times of a program.

  Args:
    chip: of the mesh.
    mesh: real, or of described devices.
    dense_flops: of matrix products of one device, as they are computed.
    visible_flops: the same without hidden keys, which MFU counts.
    cost: of one device.
  Returns:
    The Estimate.
  """
  compute = dense_flops / chip.flops
  memory = cost.hbm_bytes / chip.hbm_bandwidth
  network = sum(
    count / bandwidth(chip, mesh, axes) for (_, axes), count in cost.sent.items() if count
  )
  useful = visible_flops / chip.flops
  longest, everything = max(compute, memory, network), compute + memory + network
  share = lambda seconds: useful / seconds if seconds else 0.0
  return Estimate(compute, memory, network, share(longest), share(everything))


def bandwidth(chip: Chip, mesh: Mesh, axes: str) -> float:
  """Bytes per second that a chip sends in a collective along mesh axes ('fsdp+tensor').

  On a torus, the chips of a group differ in some of its dimensions; along each of them a chip has
  two links, or one where the dimension is not closed to a ring or the group covers a part of it.
  Groups whose members are d chips apart share every link with d - 1 other groups.
  """
  if chip.torus == 0 or mesh.size == 1:
    return chip.links
  places = np.array([device.coords for device in mesh.devices.flat])
  sizes = places.max(0) + 1
  index = tuple(slice(None) if name in axes.split('+') else 0 for name in mesh.axis_names)
  group = places.reshape(*mesh.devices.shape, -1)[index].reshape(-1, places.shape[1])
  dimensions = 2 if chip.torus == 16 else 3
  per_link = chip.links / (2 * dimensions)
  total = 0.0
  for size, values in zip(sizes, group.T, strict=True):
    values = np.unique(values)
    if len(values) == 1:
      continue
    apart = int(np.diff(values).min())
    ring = size % chip.torus == 0 and len(values) * apart == size
    total += per_link * (2 if ring else 1) / apart
  return total or math.inf  # a group of one chip sends nothing

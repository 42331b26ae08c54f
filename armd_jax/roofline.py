"""What chips can do at most, and how long a program takes at least by that.

Three times: matrix products at the peak rate, memory traffic at the peak bandwidth, and collectives
at the bandwidth of the links that their mesh axes lie along. If all of it overlapped, a step would
take the longest of the three; if nothing did, their sum. The truth lies between for a program that
otherwise runs at its peaks, and no program does: read it as a bound.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jax.sharding import Mesh

from armd_jax.attention.device import HOPPER
from armd_jax.chips import PEAK_FLOPS
from armd_jax.hlo import Cost

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A vendor's figures of one chip.

  Attributes:
    flops: per second, bfloat16, dense.
    hbm: bytes of memory.
    reserved: bytes of it that a program cannot have.
    hbm_bandwidth: bytes per second.
    links: bytes per second that a chip can send over all its links together (half of what is called
      bidirectional bandwidth).
    torus: size at which a dimension of the interconnect closes to a ring: multiples of it do, and
      smaller ones are lines; 0 where a switch joins all chips at full speed.
  """

  flops: float
  hbm: float
  reserved: float
  hbm_bandwidth: float
  links: float
  torus: int


# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x (specifications, slice shapes
# with wrap-around links), https://www.nvidia.com/en-us/data-center/h100 (SXM). Reserved: the TPU
# compiler grants 15.75 of v5e's 16 GiB; on a GPU a CUDA context, libraries and NCCL take their
# part, and jax gets a share of the rest (XLA_PYTHON_CLIENT_MEM_FRACTION, .75 unless told
# otherwise; .92 is meant here). Of whole chips, of which a 7x shows jax two devices.
CHIPS = {
  'v4': Chip(PEAK_FLOPS['v4'], 32 * GIB, GIB / 4, 1228e9, 300e9, 4),
  'v5e': Chip(PEAK_FLOPS['v5e'], 16 * GIB, GIB / 4, 819e9, 200e9, 16),
  'v5p': Chip(PEAK_FLOPS['v5p'], 95 * GIB, GIB / 4, 2765e9, 600e9, 4),
  'v6e': Chip(PEAK_FLOPS['v6e'], 32 * GIB, GIB / 4, 1638e9, 400e9, 16),
  '7x': Chip(2 * PEAK_FLOPS['7x'], 192 * GIB, GIB / 4, 7380e9, 600e9, 4),
  'h100': Chip(PEAK_FLOPS[HOPPER], 84978434048, 0.08 * 84978434048, 3352e9, 450e9, 0),
}


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

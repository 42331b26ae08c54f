"""What chips can do, as their makers publish it."""

from __future__ import annotations

import dataclasses

GIB = 2**30
HOPPER = 'H100'  # and every other chip of its generation: H200, GH200


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
    devices: as how many devices jax shows it.
  """

  flops: float
  hbm: float
  reserved: float
  hbm_bandwidth: float
  links: float
  torus: int
  devices: int = 1


# By the names of `hardware.device`.
# https://docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x (specifications, slice shapes
# with wrap-around links), https://www.nvidia.com/en-us/data-center/h100 (SXM). Reserved: the TPU
# compiler grants 15.75 of v5e's 16 GiB; on a GPU a CUDA context, libraries and NCCL take their
# part, and jax gets a share of the rest (XLA_PYTHON_CLIENT_MEM_FRACTION, .75 unless set
# otherwise; .92 is meant here).
CHIPS = {
  'v4': Chip(275e12, 32 * GIB, GIB / 4, 1228e9, 300e9, 4),
  'v5e': Chip(197e12, 16 * GIB, GIB / 4, 819e9, 200e9, 16),
  'v5p': Chip(459e12, 95 * GIB, GIB / 4, 2765e9, 600e9, 4),
  'v6e': Chip(918e12, 32 * GIB, GIB / 4, 1638e9, 400e9, 16),
  '7x': Chip(2310e12, 192 * GIB, GIB / 4, 7380e9, 600e9, 4, devices=2),
  HOPPER: Chip(989e12, 84978434048, 0.08 * 84978434048, 3352e9, 450e9, 0),
}

# The same figures of an H100 SXM5 as XLA asks for them, to compile for one that is not here.
H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  clock_rate_ghz: 1.98 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  device_memory_size: 84978434048 cuda_compute_capability { major: 9 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def peak_flops(name: str) -> float | None:
  """Peak bfloat16 FLOP/s of one jax device of a chip; None of a chip that is not known here."""
  chip = CHIPS.get(name)
  return chip and chip.flops / chip.devices  # type: ignore[return-value]

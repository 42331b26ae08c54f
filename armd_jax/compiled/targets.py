"""Hardware that is compiled for without being here: TPU slices, and H100s of one machine."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.errors import UserError
from armd_jax.hardware import device
from armd_jax.hardware.chips import CHIPS, H100_TARGET, Chip

EFFORT = 'exec_time_optimization_effort'  # a compiler option


@dataclasses.dataclass(frozen=True)
class Target:
  """What is compiled for.

  Attributes:
    name: as the user wrote it.
    chip: the figures of one device of it.
    kernels: the chip, as `hardware.device` calls it.
    devices: all of them, described.
    options: of the compiler.
  """

  name: str
  chip: Chip
  kernels: str
  devices: tuple[Any, ...]
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def processes(self) -> int:
    return len({d.process_index for d in self.devices})


def tpu(name: str, effort: float = 0.0) -> Target:
  """A TPU slice, such as 'v5p:8x8x16'.

  Args:
    name: generation and slice shape.
    effort: of the compiler, from -1 to 1; below 0 it takes a quarter of the time, and programs
      need somewhat more memory than at 0, which training runs with. Newer compilers have no such
      option: then `options` of the target lack EFFORT.
  Raises:
    UserError: the name is not known, or libtpu is not installed.
  """
  kind, _, shape = name.partition(':')
  kind = kind.removeprefix('tpu')
  generations = [name for name in CHIPS if name != device.HOPPER]
  if kind not in generations or not re.fullmatch(r'\d+(x\d+)+', shape):
    raise UserError(
      f'--topology={name} is no TPU slice; write one of {", ".join(generations)}, a colon and its '
      'shape, like v5p:8x8x16'
    )
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  jax.config.update('jax_platforms', 'cpu')
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise UserError("libtpu is not installed; pip install -e '.[aot]'") from error
  try:
    known_as = f'{"tpu" if kind == "7x" else ""}{kind}:{shape}'
    described = topologies.get_topology_desc(known_as, 'tpu')
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    reason = ' '.join(str(error).splitlines()[0].split())[:160]
    raise UserError(
      f'--topology={name} is refused by libtpu ({reason}); write a slice shape that exists, like '
      'v5p:4x4x4 or v5e:4x8'
    ) from error
  # Some generations show two devices per chip, which share what it can do.
  chips = math.prod(map(int, shape.split('x')))
  part = chips / len(described.devices)
  figures = CHIPS[kind]
  names = ('flops', 'hbm', 'reserved', 'hbm_bandwidth', 'links')
  figures = dataclasses.replace(figures, **{n: getattr(figures, n) * part for n in names})
  devices = tuple(described.devices)
  options = ((EFFORT, effort),) if effort and _knows(EFFORT, effort, devices) else ()
  return Target(name, figures, kind, devices, options)


def _knows(option: str, value: Any, devices: tuple[Any, ...]) -> bool:
  """Whether the compiler for these devices has an option; `value` is one that suits it."""
  everywhere = NamedSharding(Mesh(np.array(devices), ('all',)), PartitionSpec())
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
  try:
    jax.jit(lambda x: x + 1).lower(number).compile({option: value})
  except jax.errors.JaxRuntimeError as error:
    if f"No such compile option: '{option}'" not in str(error):
      raise
    return False
  return True


def gpu(name: str) -> Target:
  """One H100, or 'h100:8' for the eight of a machine.

  Raises:
    UserError: the name is not known, or jax has no CUDA plugin here.
  """
  found = re.fullmatch(r'h100(?::([1-8]))?', name.lower())
  if not found:
    raise UserError(f'--target={name} is not known; write h100, or h100:8 for a machine of eight')
  jax.config.update('jax_platforms', 'cpu')
  jax.devices()  # registers the plugins
  try:
    described = topologies.get_topology_desc(
      '', 'cuda', topology=f'1x1x{found[1] or 1}', target_config=H100_TARGET
    )
  except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
    version = jax.__version__
    raise UserError(
      'jax cannot compile for CUDA here; '
      f'pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} '
      'nvidia-cuda-nvcc-cu12'
    ) from error
  # Nothing can be timed here.
  options = (('xla_gpu_autotune_level', 0),)
  return Target(name, CHIPS[device.HOPPER], device.HOPPER, tuple(described.devices), options)

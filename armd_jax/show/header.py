"""What a program prints first of where and how it computes."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from armd_jax import attention
from armd_jax.config import ModelConfig
from armd_jax.hardware import device


def lines(model: ModelConfig, mesh: Mesh) -> list[str]:
  """Devices, attention and precision, a line each.

  Args:
    model: whose network runs.
    mesh: where.
  """
  shape = lambda *dims: jax.ShapeDtypeStruct((1, *dims, model.head_dim), model.dtype)
  heads = model.num_heads, model.num_kv_heads
  streams = 2 if model.orders == 'any' else 1
  q, k = shape(streams, model.length, heads[0]), shape(model.length, heads[1])
  backend, why = attention.choose_and_why(
    model.attention,
    q,  # type: ignore[arg-type]
    k,  # type: ignore[arg-type]
    k,  # type: ignore[arg-type]
  )
  name = 'XLA' if backend == 'reference' else backend
  axes = ', '.join(f'{axis} = {size}' for axis, size in mesh.shape.items() if size > 1)
  here = device.current()
  on_cpu = here.platform == 'cpu'
  return [
    f'devices   {mesh.size} x {mesh.devices.flat[0].device_kind}' + (f' ({axes})' if axes else ''),
    f'attention {name}' + (f', because {why}' if why and not on_cpu else ''),
    f'precision {model.dtype}, parameters float32',
  ]

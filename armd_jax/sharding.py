"""The device mesh, how parameters and batches lie on it, and what it cannot share."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax import axes
from armd_jax.config import MeshConfig
from armd_jax.errors import UserError

# What a parameter's axes are, by the end of its path. A scanned layer has one more axis in front.
PARAMETER_AXES = {
  'vocabulary/embedding': ('vocab', 'embed'),
  'vocabulary/bos': (None,),
  'mask': (None,),
  'pe': (None, None),
  'query/kernel': ('embed', 'heads', None),
  'key_value/kernel': ('embed', None, 'kv_heads', None),
  'out/kernel': ('heads', None, 'embed'),
  'up/kernel': ('embed', 'mlp'),
  'down/kernel': ('mlp', 'embed'),
  'scale': (None,),
}


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
  """A (data, fsdp, tensor) mesh over the devices; one device is a mesh too.

  Raises:
    UserError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  # A process's devices side by side, so that it holds one run of a batch's sequences.
  devices = sorted(devices, key=lambda device: (device.process_index, device.id))
  sizes = {'data': config.data, 'fsdp': config.fsdp, 'tensor': config.tensor}
  known = math.prod(size for size in sizes.values() if size != -1)
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) == 1 and known > 0 and len(devices) % known == 0:
    sizes[free[0]] = len(devices) // known
  elif free or known != len(devices):
    raise UserError(
      f'config.mesh is {sizes}, which does not make up {len(devices)} devices; write axis sizes '
      f'whose product is {len(devices)}, at most one of them -1'
    )
  # Mesh(), not jax.make_mesh: the latter's axes are of the explicit-sharding kind.
  return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), tuple(sizes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Sequences over all data-parallel devices."""
  return NamedSharding(mesh, axes.spec('batch'))


def process_part(mesh: Mesh) -> tuple[int, int]:
  """Which part of a batch this process's devices hold: part p of P equal runs of sequences.

  Processes that share sequences through the tensor axis hold the same part.

  Returns:
    p and P.
  Raises:
    UserError: the tensor axis cuts through a process's devices.
  """
  tensor, local = mesh.shape['tensor'], len(mesh.local_devices)
  if tensor % local and local % tensor:
    raise UserError(
      f'config.mesh.tensor is {tensor}, but a process has {local} devices; write a divisor or a '
      f'multiple of {local}'
    )
  first = int(np.flatnonzero(np.ravel(mesh.devices) == mesh.local_devices[0])[0])
  return first // max(tensor, local), mesh.size // max(tensor, local)


def global_batch(mesh: Mesh, local_BxN: np.ndarray) -> jax.Array:
  """The batch of all processes from each one's part, `[B/P, N]` to `[B, N]`."""
  return jax.make_array_from_process_local_data(batch_sharding(mesh), local_BxN)


def put(x: np.ndarray, where: NamedSharding) -> jax.Array:
  """An array that every process holds whole, laid out over the devices of all of them."""
  return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def tree_sharding(mesh: Mesh, tree: Any) -> Any:
  """Shardings of a tree of arrays that holds parameters, or things shaped like them.

  Args:
    tree: arrays or ShapeDtypeStructs: parameters, a training state.
  Returns:
    The same tree of NamedShardings; scalars are replicated.
  Raises:
    ValueError: naming the array that no row of PARAMETER_AXES matches.
  """

  def sharding(path, x):
    if x.ndim == 0:
      return replicated(mesh)
    name = path_name(path)
    matches = [row for row in PARAMETER_AXES.items() if f'/{name}'.endswith(f'/{row[0]}')]
    if len(matches) != 1:
      raise ValueError(f'no row of PARAMETER_AXES matches {name!r} {x.shape}; add one')
    ((_, names),) = matches
    stacked = (None,) * (x.ndim - len(names))
    # Key heads that the tensor axis outnumbers are whole on every device; `check` allows no others.
    names = (
      None if name == 'kv_heads' and count % mesh.shape['tensor'] else name
      for name, count in zip(names, x.shape[len(stacked) :], strict=True)
    )
    return NamedSharding(mesh, axes.spec(*stacked, *names))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def path_name(path: Any) -> str:
  """A tree path as 'a/b/c'."""
  return '/'.join(
    str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path
  )

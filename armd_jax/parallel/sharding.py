"""The device mesh, how parameters and batches are spread over it, and what it cannot share."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.config import MeshConfig, ModelConfig
from armd_jax.errors import UserError
from armd_jax.parallel import axes


def axis_sizes(config: MeshConfig, num_devices: int) -> dict[str, int] | None:
  """Axis sizes whose product is the number of devices, or None if the config names no such."""
  sizes = {'data': config.data, 'fsdp': config.fsdp, 'tensor': config.tensor}
  known = math.prod(size for size in sizes.values() if size != -1)
  free = [name for name, size in sizes.items() if size == -1]
  if len(free) == 1 and known > 0 and num_devices % known == 0:
    return sizes | {free[0]: num_devices // known}
  return None if free or known != num_devices else sizes


def make_mesh(config: MeshConfig, devices: Any = None) -> Mesh:
  """A (data, fsdp, tensor) mesh over the devices; one device is a mesh too.

  Raises:
    UserError: if the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  # A process's devices side by side, so that it holds one run of a batch's sequences.
  devices = sorted(devices, key=lambda device: (device.process_index, device.id))
  found = axis_sizes(config, len(devices))
  if found is None:
    given = dataclasses.asdict(config)
    raise UserError(
      f'config.mesh is {given}, which does not make up {len(devices)} devices; write axis sizes '
      f'whose product is {len(devices)}, at most one of them -1'
    )
  # Mesh(), not jax.make_mesh: the latter's axes are of the explicit-sharding kind.
  return Mesh(np.asarray(devices).reshape(tuple(found.values())), tuple(found))


def check_model(model: ModelConfig, vocab_size: int, mesh: Mesh) -> None:
  """Refuses a model that the mesh cannot share evenly.

  Raises:
    UserError: naming the field, its value and the fix.
  """
  tensor, fsdp = mesh.shape['tensor'], mesh.shape['fsdp']
  for name, value, axis, parts in (
    ('embed_dim', model.embed_dim, 'fsdp', fsdp),
    ('num_heads', model.num_heads, 'tensor', tensor),
    ('mlp_dim', model.mlp_dim, 'tensor', tensor),
  ):
    if value % parts:
      raise UserError(
        f'config.model.{name} is {value}, which config.mesh.{axis} = {parts} does not divide; '
        f'write a multiple of {parts}, or another mesh'
      )
  # Fewer key heads than devices are repeated (`axes.kv_heads`), which must come out even, too.
  if model.num_kv_heads % tensor and tensor % model.num_kv_heads:
    raise UserError(
      f'config.model.num_kv_heads is {model.num_kv_heads}, neither a divisor nor a multiple of '
      f'config.mesh.tensor = {tensor}; write one, or another mesh'
    )
  padded = model.padded(vocab_size)
  if padded % tensor:
    raise UserError(
      f'the vocabulary of {padded} entries cannot be cut into config.mesh.tensor = {tensor} parts; '
      f'write a multiple of {tensor} for config.model.vocab_multiple, now {model.vocab_multiple}'
    )


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
  # `make_mesh` has put a process's devices side by side, so the first one's place shows which part
  # all of them hold.
  first = int(np.flatnonzero(np.ravel(mesh.devices) == mesh.local_devices[0])[0])
  return first // max(tensor, local), mesh.size // max(tensor, local)


def batch_parts(mesh: Mesh) -> int:
  """How many parts of a batch there are; the number of sequences is a multiple of it."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def filled_up(rows: np.ndarray, mesh: Mesh) -> np.ndarray:
  """As many rows as the devices can share: more of the last one, which nobody looks at."""
  # A real row and not zeros: every row must be one that the programs can compute with.
  return np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % batch_parts(mesh), axis=0)])


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
    ValueError: naming the array that no row of `axes.PARAMETER_AXES` matches.
  """

  with axes.on(mesh):
    specs = jax.tree_util.tree_map_with_path(lambda *x: axes.spec(*axes.of_parameter(*x)), tree)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)

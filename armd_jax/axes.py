"""Logical axes: what the axes of arrays are called, and where each of them lies on the mesh.

Code names the axes of its arrays and never a mesh axis. Inside `on(mesh)` the names tell jax how
arrays are cut; without a mesh, or on one device, the same code runs as it stands.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

Array = jax.Array
Axes = tuple[str | None, ...]  # one name per axis of an array; None: whole on every device

# The only place that says so. 'embed' is the width of parameters, and so of the optimizer and of
# the average; activations are whole along it.
MESH_AXES = {
  'batch': ('data', 'fsdp'),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
}


def spec(*names: str | None) -> PartitionSpec:
  """The partition of an array with these axes.

  Raises:
    ValueError: for a name that MESH_AXES lacks.
  """
  unknown = [name for name in names if name is not None and name not in MESH_AXES]
  if unknown:
    raise ValueError(f'no row of MESH_AXES is called {unknown[0]!r}; write one of {[*MESH_AXES]}')
  return PartitionSpec(*(None if name is None else MESH_AXES[name] for name in names))


def on(mesh: Mesh) -> contextlib.AbstractContextManager:
  """What is traced inside runs on this mesh; to be entered inside the function that is traced."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def size(name: str) -> int:
  """How many parts an axis is cut into; 1 without a mesh."""
  mesh = _mesh()
  return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in MESH_AXES[name])


def batch(x: Array) -> str | None:
  """Name of the first axis of an array that the sequences of a batch may share: `[B or 1, ...]`."""
  return 'batch' if x.shape[0] > 1 else None


def constrain(x: Array, *names: str | None) -> Array:
  """`x`, laid out as the names of its axes say."""
  partition = spec(*names)
  if len(names) != x.ndim:
    raise ValueError(f'{len(names)} names {names} for an array of shape {x.shape}')
  return x if _mesh() is None else jax.lax.with_sharding_constraint(x, partition)


def split(
  function: Callable[..., Any], in_axes: tuple[Axes, ...], out_axes: Any, *, check: bool = True
) -> Callable[..., Any]:
  """`function` on every device's part of the arrays; the whole arrays where there is no mesh.

  Args:
    function: of arrays; it may add up over devices with `total`.
    in_axes: names of the axes of each argument.
    out_axes: of the result, a tuple of such names if it is a tuple of arrays.
    check: whether jax follows which values differ between devices, which proves that results are
      what `out_axes` says.
  """
  is_axes = lambda x: isinstance(x, tuple) and not any(isinstance(name, tuple) for name in x)
  specs = lambda tree: jax.tree.map(lambda names: spec(*names), tree, is_leaf=is_axes)
  in_specs, out_specs = specs(in_axes), specs(out_axes)
  if _mesh() is None:
    return function
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=check)


def total(x: Any, name: str) -> Any:
  """Inside `split`: the sum over the parts of an axis."""
  inside = jax.sharding.get_abstract_mesh().manual_axes
  return jax.lax.psum(x, MESH_AXES[name]) if inside else x


def _mesh() -> AbstractMesh | None:
  """The mesh that is traced for, if it has more than one device, and outside `split`."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh

"""Logical axes: what the axes of arrays are called, and which axis of the mesh cuts each.

Code names the axes of its arrays and never a mesh axis. Inside `on(mesh)` the names show jax how
arrays are cut; without a mesh, or on one device, the same code runs unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

Array = jax.Array
Axes = tuple[str | None, ...]  # one name per axis of an array; None: whole on every device

# The only place where logical axes meet those of the mesh. 'embed' is the width of parameters, and
# so of the optimizer and of the average; activations are whole along it.
MESH_AXES = {
  'batch': ('data', 'fsdp'),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
}

# What the axes of a parameter are called, by the end of its path. A scanned layer has one more
# axis in front.
PARAMETER_AXES = {
  'vocabulary/embedding': ('vocab', 'embed'),
  'vocabulary/head': ('vocab', 'embed'),
  'vocabulary/bos': (None,),
  'mask': (None,),
  'pe': (None, None),
  'neighbours': (None, None),
  'unknown': (None, None),
  'vocabulary/positions': (None, None),
  'query/kernel': ('embed', 'heads', None),
  'key_value/kernel': ('embed', None, 'kv_heads', None),
  'out/kernel': ('heads', None, 'embed'),
  'up/kernel': ('embed', 'mlp'),
  'gate_up/kernel': ('embed', None, 'mlp'),
  'down/kernel': ('mlp', 'embed'),
  'scale': (None,),
  'norms': (None,),  # of the optimizer
  'ns_coeffs': (None,),  # of Muon
  # Of GPT-2's style, and of some Llamas.
  'query/bias': ('heads', None),
  'key_value/bias': (None, 'kv_heads', None),
  'out/bias': (None,),
  'up/bias': ('mlp',),
  'gate_up/bias': (None, 'mlp'),
  'down/bias': (None,),
  'attention_norm/bias': (None,),
  'mlp_norm/bias': (None,),
  'final_norm/bias': (None,),
  'modulation/kernel': (None, None, None, 'embed'),
  'modulation/bias': (None, None, 'embed'),
  'noise_in/kernel': (None, None),
  'noise_in/bias': (None,),
  'noise_out/kernel': (None, None),
  'noise_out/bias': (None,),
}
# Matrices whose product with a row sums over more of their axes than the first.
_INPUTS = {'out/kernel': 2}


def spec(*names: str | None) -> PartitionSpec:
  """The partition of an array with these axes.

  Raises:
    ValueError: for a name that MESH_AXES lacks.
  """
  unknown = [name for name in names if name is not None and name not in MESH_AXES]
  if unknown:
    raise ValueError(f'no row of MESH_AXES is called {unknown[0]!r}; write one of {[*MESH_AXES]}')
  return PartitionSpec(*(None if name is None else MESH_AXES[name] for name in names))


def of_parameter(path: Any, x: Any) -> Axes:
  """Names of the axes of a parameter, or of something shaped like one; scalars have none.

  Args:
    path: its place in its tree, as jax gives it.
    x: anything with a shape.
  Raises:
    ValueError: no row of PARAMETER_AXES matches.
  """
  if not x.shape:
    return ()
  name = path_name(path)
  # Adafactor's means over an axis, and the placeholder of a mean that it does not keep.
  parts = set(name.split('/'))
  if parts & {'v_row', 'v_col'} or ('v' in parts and x.shape == (1,)):
    return (None,) * len(x.shape)
  names = row_of(name)
  names = (None,) * (len(x.shape) - len(names)) + names
  pairs = zip(names, x.shape, strict=True)
  return tuple(kv_heads(count) if name == 'kv_heads' else name for name, count in pairs)


def row_of(name: str) -> Axes:
  """Names of the axes of a parameter of one layer, by the end of the parameter's name: the
  optimizer's moments and the average repeat the parameters' paths below names of their own.

  Of the two adapters of a matrix, 'NAME_in' has its inputs and then the rank, 'NAME_out' the rank
  and then its outputs; a rank is whole on every device.

  Raises:
    ValueError: no row of PARAMETER_AXES matches.
  """
  matches = [row for end, row in PARAMETER_AXES.items() if f'/{name}'.endswith(f'/{end}')]
  if len(matches) == 1:
    return matches[0]
  stem, _, end = name.rpartition('_')
  if not stem or end not in ('in', 'out'):
    raise ValueError(f'no row of PARAMETER_AXES matches {name!r}; add one')
  names, inputs = row_of(stem), num_inputs(stem)
  return (*names[:inputs], None) if end == 'in' else (None, *names[inputs:])


def num_inputs(name: str) -> int:
  """How many axes of a matrix its product with a row sums over, the first ones of a layer's."""
  return next((count for end, count in _INPUTS.items() if f'/{name}'.endswith(f'/{end}')), 1)


def kv_heads(count: int) -> str | None:
  """Name of an axis of key heads; those that the tensor axis outnumbers are whole everywhere."""
  return 'kv_heads' if count % size('kv_heads') == 0 else None


def path_name(path: Any) -> str:
  """A tree path as 'a/b/c'."""
  return '/'.join(
    str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', key)))) for key in path
  )


def on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
  """What is traced inside runs on this mesh; to be entered inside the function that is traced."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext()


def size(name: str) -> int:
  """How many parts an axis is cut into; 1 without a mesh."""
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape.get(axis, 1) for axis in MESH_AXES[name])


def batch(x: Array) -> str | None:
  """Name of the first axis of an array that the sequences of a batch may share: `[B or 1, ...]`."""
  return 'batch' if x.shape[0] > 1 else None


def constrain(x: Array, *names: str | None) -> Array:
  """`x`, laid out by the names of its axes."""
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
  specs = lambda tree: jax.tree.map(lambda names: _cut_spec(*names), tree, is_leaf=is_axes)
  in_specs, out_specs = specs(in_axes), specs(out_axes)
  if _mesh() is None:
    return function
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=check)


# ----- inside `split`; an axis that nothing cuts is one part, and these change nothing


def total(x: Array, name: str) -> Array:
  """The sum over the parts of an axis."""
  cut = _cut(name)
  return jax.lax.psum(x, cut) if cut else x


def total_part(x: Array, name: str, over: str, axis: int) -> Array:
  """The sum over the parts of `over`, of which each device keeps its part of array axis `axis`,
  called `name`, whose mesh axes are among those of `over`."""
  cut = _cut(name)
  others = tuple(a for a in _cut(over) if a not in cut)
  # Sends each device the part of the sum that it keeps, a fraction of what psum sends.
  if cut:
    x = jax.lax.psum_scatter(x, cut, scatter_dimension=axis, tiled=True)
  return jax.lax.psum(x, others) if others else x


def largest(x: Array, name: str) -> Array:
  """The largest value over the parts of an axis."""
  cut = _cut(name)
  return jax.lax.pmax(x, cut) if cut else x


def first_index(name: str, count: int) -> Array | int:
  """Where this device's part of an axis begins, of parts of `count` entries."""
  cut = _cut(name)
  return count * jax.lax.axis_index(cut) if cut else 0


def gather(x: Array, name: str, axis: int) -> Array:
  """All parts of an axis, one after the other along array axis `axis`."""
  cut = _cut(name)
  return jax.lax.all_gather(x, cut, axis=axis, tiled=True) if cut else x


def exchange(x: Array, name: str, give: int, take: int) -> Array:
  """Array axis `give` is cut into one piece per part of `name`; what comes back for them is laid
  along array axis `take`."""
  cut = _cut(name)
  return jax.lax.all_to_all(x, cut, give, take, tiled=True) if cut else x


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
  """Zeros marked as differing between devices, so that a loop inside `split` can add to them what
  does differ: in jax the carry of a loop must begin with the type that it has later."""
  x = jnp.zeros(shape, dtype)
  mesh = jax.sharding.get_abstract_mesh()
  cut = tuple(a for a in mesh.manual_axes if mesh.shape[a] > 1)
  return jax.lax.pcast(x, cut, to='varying') if cut else x


def _cut_spec(*names: str | None) -> PartitionSpec:
  """`spec` without mesh axes of one device, along which jax would have sums that change nothing."""
  spec(*names)  # refuses names that are not known
  return PartitionSpec(*(name and _cut(name) for name in names))


def _cut(name: str) -> tuple[str, ...]:
  """The mesh axes that cut an axis into more than one part."""
  mesh = jax.sharding.get_abstract_mesh()
  return () if mesh.empty else tuple(a for a in MESH_AXES[name] if mesh.shape.get(a, 1) > 1)


def _mesh() -> AbstractMesh | None:
  """The mesh that is traced for, if it has more than one device, and outside `split`."""
  mesh = jax.sharding.get_abstract_mesh()
  return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh

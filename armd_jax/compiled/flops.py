"""FLOPs of the matrix products of any function, counted from its jaxpr.

`cost_analysis` of a compiled program counts the body of a loop once; a jaxpr has the length of its
loops are. Two counts come out:

  dense     what the code multiplies, hidden keys included
  visible   the same, but an attention call counts only the keys that each row sees

Attention calls are found by their name: the jits of `armd_jax.attention` are in the jaxpr as
`_prefix_attention_...`, in backward passes and under `checkpoint` too. A call's share of visible
keys is `mean(lengths) / K` of that very call. Its `lengths` follow from constants, such as a
generation order, and from the concrete arguments: equations whose inputs are all known are
evaluated when an attention call asks for them. A backward call has no lengths among its inputs, and
inside a loop over layers even a forward call may get finished masks instead; such a call takes the
lengths of the call that made the arrays it reads.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

ATTENTION = 'prefix_attention'

# Primitives that run the jaxpr in this parameter once, on their own inputs.
_CALLS = {
  'jit': 'jaxpr',
  'pjit': 'jaxpr',
  'closed_call': 'call_jaxpr',
  'core_call': 'call_jaxpr',
  'remat': 'jaxpr',
  'remat2': 'jaxpr',
  'checkpoint': 'jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
  'custom_vmap_call': 'call',
}
# Products that no program had so far; better refused than left out.
_UNCOUNTED = ('conv_general_dilated', 'ragged_dot', 'ragged_dot_general', 'scaled_dot')


@dataclasses.dataclass(frozen=True)
class MatmulFlops:
  """Matrix-product FLOPs, two per multiply-add.

  Attributes:
    dense: as the code multiplies; of a Pallas kernel, its own estimate.
    visible: with attention counted by the keys that each row sees.
  """

  dense: float = 0
  visible: float = 0

  def __add__(self, other: MatmulFlops) -> MatmulFlops:
    return MatmulFlops(self.dense + other.dense, self.visible + other.visible)

  def times(self, count: int) -> MatmulFlops:
    """As often as a loop runs or devices share the work."""
    return MatmulFlops(self.dense * count, self.visible * count)


def count(function: Callable[..., Any], *args: Any) -> MatmulFlops:
  """Counts the matrix products of `function(*args)`; nothing of it is compiled or run.

  Args:
    function: anything that can be traced: a model, a gradient, a jitted training step.
    *args: pytrees of arrays or `jax.ShapeDtypeStruct`s. Arrays' values are known, so that attention
      lengths may depend on them; of a ShapeDtypeStruct, only shape and dtype are.
  Returns:
    The FLOPs of all devices together.
  Raises:
    ValueError: the lengths of an attention call cannot be known, a loop with matrix products runs
      an unknown number of times, a kernel has no cost estimate, or a primitive is not understood.

  Examples:
    >>> matrix = jax.ShapeDtypeStruct((8, 8), 'float32')
    >>> count(lambda x: jax.lax.fori_loop(0, 10, lambda i, y: x @ y, x), matrix)
    MatmulFlops(dense=10240, visible=10240)
  """
  closed = jax.make_jaxpr(function)(*args)
  values = []
  for leaf in jax.tree.leaves(args):
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    values.append(_UNKNOWN if is_shape else _known(lambda leaf=leaf: leaf))  # type: ignore[misc]
  return _count(closed.jaxpr, closed.consts, values)[0]


# ----- what is known about a value


@dataclasses.dataclass(frozen=True)
class _Attention:
  """What an attention call sees; `lengths` is None if they cannot be known."""

  lengths: _Lazy | None
  keys: int | None = None

  def share(self, name: str) -> float:
    """Visible keys of all keys, averaged over rows."""
    if self.lengths is None or self.keys is None:
      raise ValueError(
        f'the lengths of {name} are not known before the function runs, so visible keys cannot be '
        'counted; pass the generation order (or what it is drawn from) as an array, not as a shape'
      )
    lengths = np.asarray(self.lengths.value)
    if lengths.min() < 0 or lengths.max() > self.keys:
      raise ValueError(f'lengths of {name} are not in 0..{self.keys}, its number of keys')
    return float(lengths.mean()) / self.keys


class _Lazy:
  """A value that follows from known ones, computed once, when somebody asks."""

  def __init__(self, compute: Callable[[], Any]):
    self._compute = compute

  @functools.cached_property
  def value(self) -> Any:
    return self._compute()


@dataclasses.dataclass(frozen=True)
class _Value:
  """A value of the jaxpr: what it is, if known, and the attention call that made it, if one did."""

  known: _Lazy | None = None
  made_by: _Attention | None = None


_UNKNOWN = _Value()


def _known(compute: Callable[[], Any]) -> _Value:
  return _Value(_Lazy(compute))


# ----- the walk


def _count(
  jaxpr: Any, consts: Sequence[Any], inputs: Sequence[_Value], attention: _Attention | None = None
) -> tuple[MatmulFlops, list[_Value]]:
  """FLOPs and outputs of a jaxpr; `attention` is the call that it is a part of."""
  values = dict(zip(jaxpr.invars, inputs, strict=True))
  values |= {
    var: _known(lambda x=x: x)  # type: ignore[misc]
    for var, x in zip(jaxpr.constvars, consts, strict=True)
  }

  def read(atom):
    return _known(lambda: atom.val) if isinstance(atom, core.Literal) else values[atom]

  total = MatmulFlops()
  for eqn in jaxpr.eqns:
    flops, outputs = _count_equation(eqn, [read(x) for x in eqn.invars], attention)
    total += flops
    values.update(zip(eqn.outvars, outputs, strict=True))
  return total, [read(x) for x in jaxpr.outvars]


def _count_equation(eqn, inputs, attention):
  name = eqn.primitive.name
  if name in _CALLS:
    return _call(eqn, inputs, attention)
  if name in _SPECIAL:
    return _SPECIAL[name](eqn, inputs, attention)
  if name in _UNCOUNTED or (name != 'dot_general' and any(map(_has_products, _inner(eqn)))):
    raise ValueError(f'flops.py does not know how to count {name!r}; teach it, beside _SPECIAL')
  flops = _dot(eqn, attention) if name == 'dot_general' else MatmulFlops()
  return flops, _plain_outputs(eqn, inputs)


def _dot(eqn, attention):
  (contracted, _), _ = eqn.params['dimension_numbers']
  left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  dense = 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
  return MatmulFlops(dense, dense if attention is None else dense * attention.share(ATTENTION))


def _plain_outputs(eqn, inputs):
  # A copy, a cast or a transpose of what an attention call made is still that call's.
  made_by = inputs[0].made_by if len(inputs) == 1 else None
  if any(x.known is None for x in inputs):
    return [_Value(made_by=made_by)] * len(eqn.outvars)

  def compute():
    results = eqn.primitive.bind(*(x.known.value for x in inputs), **eqn.params)
    return results if eqn.primitive.multiple_results else [results]

  results = _Lazy(compute)
  return [_Value(_Lazy(lambda i=i: results.value[i]), made_by) for i in range(len(eqn.outvars))]


def _call(eqn, inputs, attention):
  closed = eqn.params[_CALLS[eqn.primitive.name]]
  name = eqn.params.get('name', '')
  is_attention = attention is None and ATTENTION in name
  if is_attention:
    attention = _attention_of(eqn, inputs, name)
  flops, outputs = _count(*_opened(closed), inputs, attention)
  if is_attention:
    outputs = [dataclasses.replace(x, made_by=attention) for x in outputs]
  return flops, outputs


def _attention_of(eqn, inputs, name):
  """Lengths and number of keys of an attention call, from its inputs or from their makers."""
  makers = [x.made_by for x in inputs if x.made_by is not None]
  pairs = zip(eqn.invars, inputs, strict=True)
  given = [x.known for var, x in pairs if x.made_by is None and _may_be_lengths(var.aval)]
  lengths = list({id(x): x for x in given or [maker.lengths for maker in makers]}.values()) or [
    None
  ]
  if None in lengths:
    lengths = [None]
  keys = {maker.keys for maker in makers if maker.keys is not None}
  ranks = [var.aval.ndim for var in eqn.invars]
  if 5 in ranks and 4 in ranks and not keys:  # q_BxRxNxHxD, then k_BxKxGxD, before all else
    keys = {eqn.invars[ranks.index(4)].aval.shape[1]}
  same = all(np.array_equal(a.value, b.value) for a, b in itertools.pairwise(lengths))
  if not same or len(keys) > 1:
    raise ValueError(f'{name} reads arrays that attention calls of different lengths have made')
  return _Attention(lengths[0], next(iter(keys), None))


def _may_be_lengths(aval):
  return aval.ndim == 3 and jax.numpy.issubdtype(aval.dtype, np.integer)


def _scan(eqn, inputs, attention):
  params = eqn.params
  if 'num_consts' in params:  # jax < 0.11
    num_consts, num_carry = params['num_consts'], params['num_carry']
  else:
    num_consts, num_carry, _ = map(len, params['ft_in'].unpack())
  # What is carried, or differs from round to round, is not known inside.
  inside = inputs[:num_consts] + [_Value(made_by=x.made_by) for x in inputs[num_consts:]]
  flops, made = _count(*_opened(params['jaxpr']), inside, attention)
  outputs = _plain_outputs(eqn, inputs)
  stacked = [dataclasses.replace(x, made_by=y.made_by) for x, y in zip(outputs, made, strict=True)]
  return flops.times(params['length']), outputs[:num_carry] + stacked[num_carry:]


def _while(eqn, inputs, attention):
  del attention
  if any(map(_has_products, _inner(eqn))):
    raise ValueError(
      'a while loop with matrix products runs an unknown number of times; count one round, or '
      'write it as a scan'
    )
  return MatmulFlops(), _plain_outputs(eqn, inputs)


def _cond(eqn, inputs, attention):
  """The branch that is taken, or, where that is not known, the dearest one."""
  counted = [_count(*_opened(branch), inputs[1:], attention) for branch in eqn.params['branches']]
  if inputs[0].known is not None and len({flops for flops, _ in counted}) > 1:
    return counted[int(inputs[0].known.value)]
  return max((flops for flops, _ in counted), key=lambda x: x.dense), _plain_outputs(eqn, inputs)


def _shard_map(eqn, inputs, attention):
  params = eqn.params
  axes = params['newly_manual_axes' if 'newly_manual_axes' in params else 'manual_axes']
  devices = math.prod(params['mesh'].shape[axis] for axis in axes)
  # A device's part of a known array differs from device to device; an unsplit one does not.
  inside = [
    x if not any(spec) else _Value(made_by=x.made_by)
    for x, spec in zip(inputs, params['in_specs'], strict=True)
  ]
  flops, outputs = _count(*_opened(params['jaxpr']), inside, attention)
  return flops.times(devices), [_Value(made_by=x.made_by) for x in outputs]


def _pallas_call(eqn, inputs, attention):
  estimate = eqn.params.get('cost_estimate')
  if estimate is None:
    kernel = eqn.params.get('name') or eqn.params.get('name_and_src_info')
    raise ValueError(f'Pallas kernel {kernel} has no cost_estimate; give it one')
  dense = visible = estimate.flops
  if attention is not None:
    # Kernels skip what is hidden, and their estimates take half of all pairs as visible.
    multiplied, needed = _KERNEL_PRODUCTS.get(eqn.params.get('name'), (1, 1))
    visible = 2 * dense * attention.share(ATTENTION) * needed / multiplied
  return MatmulFlops(dense, visible), _plain_outputs(eqn, inputs)


# Products that an attention kernel multiplies, and those of them that are needed: the others repeat
# scores and their gradients, which a kernel does not keep.
_KERNEL_PRODUCTS = {
  'prefix_attention_forward': (2, 2),
  'prefix_attention_backward': (5, 4),
  'prefix_attention_dq': (3, 1),
  'prefix_attention_dkv': (4, 3),
  'append_to_cache': (0, 0),
}


def _mosaic_gpu_kernel(eqn, inputs, attention):
  """A Hopper kernel, whose call carries no estimate: from its q_BxNxHxD and k_BxKxGxD."""
  name = eqn.params.get('name')
  if name not in _KERNEL_PRODUCTS:
    raise ValueError(f'flops.py does not know the kernel {name}; teach it, in _KERNEL_PRODUCTS')
  multiplied, needed = _KERNEL_PRODUCTS[name]
  if not multiplied:
    return MatmulFlops(), _plain_outputs(eqn, inputs)
  # Half-precision arrays come in this order, with the gradient of the output after q.
  avals = [var.aval for var in eqn.invars]
  q, *_, k = [x for x in avals if x.ndim == 4 and x.dtype.itemsize == 2]
  product = 2 * math.prod(q.shape) * k.shape[1]
  visible = needed * product * (1 if attention is None else attention.share(ATTENTION))
  return MatmulFlops(multiplied * product, visible), _plain_outputs(eqn, inputs)


_SPECIAL = {
  'mpmd_map': _mosaic_gpu_kernel,
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'pallas_call': _pallas_call,
}


# ----- jaxprs inside jaxprs


def _opened(jaxpr):
  """(jaxpr, constants) of either kind of jaxpr."""
  return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def _inner(eqn):
  """All jaxprs among the parameters of an equation."""
  leaves = jax.tree.leaves(
    list(eqn.params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
  )
  return [_opened(x)[0] for x in leaves if isinstance(x, core.Jaxpr | core.ClosedJaxpr)]


def _has_products(jaxpr) -> bool:
  return any(
    eqn.primitive.name in ('dot_general', 'pallas_call', 'mpmd_map', *_UNCOUNTED)
    or any(map(_has_products, _inner(eqn)))
    for eqn in jaxpr.eqns
  )

"""Reads a compiled program: what its collectives send, what it moves through memory, how often.

XLA's own counts take the body of a loop once. Here everything is multiplied by the trip counts of
the loops it is in. A loop whose length depends on data, as decoding's does, is counted for one
round and marked.

Works on the text of an optimised, partitioned HLO module (`compiled.as_text()`): shapes are those
of one device, so all counts are per device.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

# Bits per element; tokens and opaque types weigh nothing.
_BITS = {'pred': 8, 'bf16': 16, 'token': 0, 'opaque': 0, 'c64': 64, 'c128': 128}
COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
# What moves no bytes: names for what is there already, and what is counted by what it calls.
_FREE = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id',
  'replica-id', 'while', 'call', 'conditional', 'opt-barrier', 'async-start', 'async-update',
  'async-done', 'iota', 'add-dependency',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ArrayType:
  """One array: its element type, its sizes, and whether it is in the main memory (HBM)."""

  dtype: str
  dims: tuple[int, ...]
  in_hbm: bool = True

  @property
  def bytes(self) -> int:
    digits = re.search(r'\d+', self.dtype)
    bits = _BITS[self.dtype] if self.dtype in _BITS else int(digits[0])
    return math.prod(self.dims) * bits // 8

  @property
  def hbm_bytes(self) -> int:
    return self.bytes if self.in_hbm else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO."""

  name: str
  opcode: str
  shapes: tuple[ArrayType, ...]  # of the result; several for a tuple
  operands: tuple[str, ...]
  arguments: str  # the text between the parentheses
  attributes: str  # the text behind them
  is_root: bool

  def calls(self, attribute: str) -> str | None:
    """The computation that an attribute names."""
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return found[1] if found else None


Computation = dict[str, Instruction]


@dataclasses.dataclass
class Cost:
  """What one device does, in bytes and floating-point operations.

  Attributes:
    sent: bytes that the device sends, by kind of collective and by the mesh axes that take part
      ('fsdp', or 'fsdp+tensor').
    launches: collectives started, likewise.
    moved: bytes read from and written to the main memory, by what the instructions name; by names
      of computation and instruction.
    product_flops: of matrix products that XLA does itself; custom kernels are not among them.
    kernels: what is launched: fused kernels, custom kernels, library calls and copies.
  """

  sent: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  launches: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  moved: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  product_flops: float = 0
  kernels: int = 0

  @property
  def hbm_bytes(self) -> float:
    """All that is moved."""
    return sum(self.moved.values())

  def add(self, other: Cost, times: int = 1) -> None:
    for name in ('sent', 'launches', 'moved'):
      mine = getattr(self, name)
      for key, value in getattr(other, name).items():
        mine[key] += value * times
    self.product_flops += other.product_flops * times
    self.kernels += other.kernels * times


def parse(text: str) -> tuple[dict[str, Computation], str]:
  """All computations of a module by name, and the name of the entry.

  Raises:
    ValueError: the text is no HLO module.
  """
  computations, entry, current = {}, '', None  # type: dict[str, Any], str, Any
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if head:
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and ' = ' in line:
      instruction = _instruction(line)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError('the text is no HLO module: it has no ENTRY computation')
  return computations, entry


def _instruction(line: str) -> Instruction:
  left, right = line.split(' = ', 1)
  end = _closing(right, 0) + 1 if right[0] == '(' else right.index(' ')
  shapes = tuple(
    ArrayType(dtype, tuple(map(int, filter(None, dims.split(',')))), _in_hbm(layout))
    for dtype, dims, layout in re.findall(r'([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?', right[:end])
  )
  call = right[end:].strip()
  begin = call.index('(')
  close = _closing(call, begin)
  arguments = call[begin + 1 : close]
  return Instruction(
    name=left.split()[-1].lstrip('%'),
    opcode=call[:begin],
    shapes=shapes,
    operands=tuple(re.findall(r'%([\w.\-]+)', arguments)),
    arguments=arguments,
    attributes=call[close + 1 :],
    is_root='ROOT ' in left,
  )


def _in_hbm(layout: str) -> bool:
  space = re.search(r'S\((\d+)\)', layout)
  return space is None or space[1] == '0'


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if depth == 0:
      return place
  raise ValueError(f'no closing parenthesis in {text[:80]!r}')


def groups_of(attributes: str, num_devices: int) -> list[list[int]]:
  """The groups of devices of a collective, or its (source, target) pairs.

  Examples:
    >>> groups_of(', replica_groups={{0,1},{2,3}}', 4)
    [[0, 1], [2, 3]]
    >>> groups_of(', replica_groups=[2,2]<=[2,2]T(1,0)', 4)
    [[0, 2], [1, 3]]
    >>> groups_of(", replica_groups=mesh['a'=2,'b'=2] {'a'}", 4)
    [[0, 2], [1, 3]]

  Raises:
    ValueError: they are written in a way that is not known here.
  """
  listed = re.search(r'(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})?\}', attributes)
  if listed:
    groups = re.findall(r'\{([\d, ]+)\}', listed[1] or '')
    return [[int(x) for x in group.split(',')] for group in groups] or [[*range(num_devices)]]
  spread = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
  mesh = re.search(
    rf'replica_groups=mesh\[([^\]]+)\](?:, device_ids=\({spread}\))? ?\{{([^}}]*)\}}', attributes
  )
  if mesh:
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    devices = _iota(mesh[2] or str(num_devices), mesh[3]).reshape(tuple(sizes.values()))
    # Only whole axes are known here; parts of them are written 'axis':(first)size.
    if re.fullmatch(r"('\w+',?)+", mesh[4]):
      part = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
      devices = np.moveaxis(devices, part, range(-len(part), 0))
      return devices.reshape(-1, math.prod(devices.shape[-len(part) :])).tolist()
  iota = re.search(rf'replica_groups=\[([\d,]+)\]<={spread}', attributes)
  if iota is None:
    raise ValueError(f'cannot read the devices of a collective: {attributes[:200]}')
  return _iota(iota[2], iota[3]).reshape([int(x) for x in iota[1].split(',')]).tolist()


def _iota(sizes: str, order: str | None) -> np.ndarray:
  """0, 1, ... in the shape `sizes`, transposed by `order`, and flat."""
  numbers = lambda text: [int(x) for x in text.split(',')]
  devices = np.arange(math.prod(numbers(sizes))).reshape(numbers(sizes))
  return devices.transpose(numbers(order) if order else None).ravel()


def axes_of(groups: Sequence[Sequence[int]], mesh_shape: dict[str, int]) -> str:
  """Names of the mesh axes along which the devices of groups differ.

  Args:
    groups: positions in the flattened mesh.
    mesh_shape: size of each axis, outermost first.

  Examples:
    >>> axes_of([[0, 1], [2, 3]], {'fsdp': 2, 'tensor': 2})
    'tensor'
  """
  strides, stride = {}, 1
  for name, size in reversed(mesh_shape.items()):
    strides[name] = stride
    stride *= size
  place = lambda device, name: device // strides[name] % mesh_shape[name]
  differ = [
    name
    for name in mesh_shape
    if any(place(device, name) != place(group[0], name) for group in groups for device in group)
  ]
  return '+'.join(differ)


class Program:
  """A compiled program on a mesh.

  Attributes:
    computations: all that the program consists of, by name.
    cost: of one device for one run, loops of unknown length left out.
    rounds: cost of one round of each loop of unknown length, in the order they run, by name.
  """

  def __init__(self, text: str, mesh_shape: dict[str, int]):
    self.computations, entry = parse(text)
    self._mesh_shape = mesh_shape
    self.rounds: dict[str, Cost] = {}
    self.cost = self._cost(entry)

  @functools.cache  # noqa: B019  a program lives as long as its cache
  def _cost(self, name: str) -> Cost:
    """Of one run of a computation whose instructions really run one by one (no fusion)."""
    computation, total = self.computations[name], Cost()
    for x in computation.values():
      total.add(self._instruction_cost(computation, x))
      if x.opcode not in _FREE and not x.opcode.endswith('-done'):
        total.moved[name, x.name] += self._hbm_bytes(computation, x)
        total.kernels += 1
    return total

  def _instruction_cost(self, computation: Computation, x: Instruction) -> Cost:
    cost = Cost()
    if x.opcode == 'while':
      one_round, trips = Cost(), self._trips(computation, x)
      one_round.add(self._cost(x.calls('body')))
      one_round.kernels += self._cost(x.calls('condition')).kernels
      if trips is None:
        self.rounds[x.name] = one_round
      else:
        cost.add(one_round, trips)
      return cost
    if x.opcode == 'conditional':
      named = re.search(r'branch_computations=\{([^}]*)\}', x.attributes)
      branches = re.findall(r'%?([\w.\-]+)', named[1]) if named else []
      branches = branches or [x.calls('true_computation'), x.calls('false_computation')]
      cost.add(max(map(self._cost, branches), key=lambda branch: branch.hbm_bytes))
      return cost
    if x.opcode in ('call', 'async-start'):
      cost.add(self._cost(x.calls('to_apply') or x.calls('calls')))
      return cost
    self._add_work(cost, computation, x)
    return cost

  # ----- products and collectives

  def _add_work(self, cost, computation, x):
    """Of an instruction, or of what was fused into it."""
    kind = x.opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      self._collective(cost, computation, x, kind)
    elif kind == 'fusion':
      inner = self.computations[x.calls('calls')]
      for y in inner.values():
        self._add_work(cost, inner, y)
    else:
      cost.product_flops += product_flops(computation, x)

  def _collective(self, cost, computation, x, kind):
    groups = groups_of(x.attributes, math.prod(self._mesh_shape.values()))
    size = len(groups[0])
    if size == 1:  # no other to send to
      return
    key = kind, axes_of(groups, self._mesh_shape)
    operand = sum(s.bytes for name in x.operands for s in self._shapes(computation, name))
    cost.sent[key] += sent_bytes(kind, operand, size)
    cost.launches[key] += 1

  @staticmethod
  def _shapes(computation, name) -> tuple[ArrayType, ...]:
    return computation[name].shapes if name in computation else ()

  # ----- loops

  def _trips(self, computation: Computation, x: Instruction) -> int | None:
    """How often a loop runs; None if that depends on data."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', x.attributes)
    if known:
      return int(known[1])
    condition = self.computations[x.calls('condition')]
    root = next(y for y in condition.values() if y.is_root)
    if root.opcode == 'fusion':  # the comparison alone, its operands in the fusion's order
      inner = self.computations[root.calls('calls')]
      compare = next(y for y in inner.values() if y.is_root)
      parameters = {y.name: int(y.arguments) for y in inner.values() if y.opcode == 'parameter'}
      places = [parameters.get(name) for name in compare.operands]
      if None in places:
        return None
      operands = [root.operands[place] for place in places]
    else:
      compare, operands = root, root.operands  # type: ignore[assignment]
    if compare.opcode != 'compare' or 'direction=LT' not in compare.attributes:
      return None
    counter, bound = (condition[name] for name in operands)
    if counter.opcode != 'get-tuple-element' or bound.opcode != 'constant':
      return None
    index = int(re.search(r'index=(\d+)', counter.attributes)[1])
    start = self._constant(computation, computation[x.operands[0]].operands[index])
    return None if start is None else int(bound.arguments) - start

  @staticmethod
  def _constant(computation, name):
    x = computation[name]
    while x.opcode in ('copy', 'bitcast', 'convert', 'copy-done', 'copy-start'):
      x = computation[x.operands[0]]
    return int(x.arguments) if x.opcode == 'constant' else None

  # ----- memory

  def _hbm_bytes(self, computation, x) -> int:
    """Bytes that an instruction reads and writes; slices of larger arrays count as slices."""
    operands = [self._shapes(computation, name) for name in x.operands]
    sizes = [sum(s.hbm_bytes for s in shapes) for shapes in operands]
    results = x.shapes
    if x.opcode == 'fusion-start':  # a tuple of the operands, the results and a flag
      results = x.shapes[sum(map(len, operands)) : -1]
    result = sum(s.hbm_bytes for s in results)
    if x.opcode == 'custom-call' and '"AllocateBuffer"' in x.attributes:
      return 0
    if x.opcode == 'copy-start':  # a tuple of target, source and a flag
      return x.shapes[0].hbm_bytes + sum(sizes)
    if x.opcode in ('fusion', 'fusion-start'):
      inner = self.computations[x.calls('calls')]
      return self._read_by_fusion(inner, sizes) + min(result, self._written_by_fusion(inner))
    if x.opcode in ('dynamic-slice', 'gather', 'slice'):
      return 2 * result + sum(sizes[1:])
    if x.opcode == 'dynamic-update-slice':
      return 2 * sizes[1]
    if x.opcode == 'scatter':
      return 2 * sum(sizes[len(sizes) // 2 + 1 :])
    return result + sum(sizes)

  def _read_by_fusion(self, inner: Computation, sizes: list[int]) -> int:
    users = collections.defaultdict(list)
    for y in inner.values():
      for place, name in enumerate(y.operands):
        users[name].append((y, place))
    total = 0
    for y in inner.values():
      if y.opcode == 'parameter':
        parts: list[Any] = [self._part_read(users, user, place) for user, place in users[y.name]]
        size = sizes[int(y.arguments)]
        total += size if None in parts else min(size, sum(parts))
    return total

  def _part_read(self, users, user, place) -> int | None:
    """Bytes that one user takes of an array, None for all of it."""
    if user.opcode == 'bitcast':
      parts: list[Any] = [self._part_read(users, *following) for following in users[user.name]]
      return None if None in parts else sum(parts)
    if place == 0 and user.opcode in ('dynamic-slice', 'gather', 'slice'):
      return sum(s.bytes for s in user.shapes)
    if place == 0 and user.opcode == 'dynamic-update-slice':
      return 0
    return None

  def _written_by_fusion(self, inner: Computation) -> int:
    root = next(y for y in inner.values() if y.is_root)
    ends = [inner[name] for name in root.operands] if root.opcode == 'tuple' else [root]
    total = 0
    for end in ends:
      while end.opcode == 'bitcast':
        end = inner[end.operands[0]]
      shapes = end.shapes
      if end.opcode == 'dynamic-update-slice':
        shapes = inner[end.operands[1]].shapes
      total += sum(s.bytes for s in shapes)
    return total


def sent_bytes(kind: str, operand_bytes: float, group: int) -> float:
  """Bytes that a device sends in a collective of `group` devices, by the ring algorithms.

  Args:
    kind: one of COLLECTIVES.
    operand_bytes: what the device puts in.
  """
  if kind == 'collective-permute':
    return operand_bytes
  passed_on = {
    'all-gather': group - 1,  # each part travels through all other devices
    'reduce-scatter': (group - 1) / group,
    'all-reduce': 2 * (group - 1) / group,
    'all-to-all': (group - 1) / group,
  }
  return operand_bytes * passed_on[kind]


def product_flops(computation: Computation, x: Instruction) -> int:
  """Two per multiply-add of a matrix product; 0 for anything else."""
  if x.opcode == 'dot':
    left = computation[x.operands[0]].shapes[0]
    found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', x.attributes)
    contracted = [left.dims[int(i)] for i in found[1].split(',') if i]
    return 2 * math.prod(x.shapes[0].dims) * math.prod(contracted)
  if x.opcode == 'custom-call' and '__cublas$' in x.attributes:
    config = json.loads(re.search(r'backend_config=(\{.*\})', x.attributes)[1])
    numbers = config['gemm_backend_config']['dot_dimension_numbers']
    left = computation[x.operands[0]].shapes[0]
    contracted = [left.dims[int(i)] for i in numbers['lhs_contracting_dimensions']]
    return 2 * math.prod(x.shapes[0].dims) * math.prod(contracted)
  if x.opcode == 'convolution':
    return _convolution_flops(computation, x)
  return 0


def _convolution_flops(computation, x) -> int:
  """TPU programs write products as convolutions, batches as dilated windows, mostly of zeros."""
  left, right = (computation[name].shapes[0] for name in x.operands)
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', x.attributes)
  of = lambda label, names, shape: shape.dims[names.index(label)]
  total = 2 * of('b', labels[3], x.shapes[0]) * of('f', labels[3], x.shapes[0])
  total *= of('i', labels[2], right)
  window = re.search(r'window=\{([^}]*)\}', x.attributes)
  fields = dict(field.split('=') for field in window[1].split()) if window else {}
  for axis, size in enumerate(map(int, filter(None, fields.get('size', '').split('x')))):
    value = lambda name, default, axis=axis: fields.get(name, default).split('x')[axis]
    ones = 'x'.join(['1'] * len(fields['size'].split('x')))
    stride, lhs, rhs = (int(value(n, ones)) for n in ('stride', 'lhs_dilate', 'rhs_dilate'))
    low = int(value('pad', ones.replace('1', '0_0')).split('_')[0])
    total *= _window_hits(
      size, of(str(axis), labels[1], left), of(str(axis), labels[3], x.shapes[0]),
      stride, lhs, rhs, low,
    )  # fmt: skip
  return total


@functools.cache
def _window_hits(size, inputs, outputs, stride, lhs, rhs, low) -> int:
  """How often, along one axis, a window's element is on an input and not on a hole or padding."""
  places = (o * stride + k * rhs - low for o in range(outputs) for k in range(size))
  return sum(place % lhs == 0 and 0 <= place // lhs < inputs for place in places)

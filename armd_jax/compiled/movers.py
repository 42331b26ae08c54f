"""What moves most bytes in a compiled program, and which lines of the sources it comes from.

Printed by `python -m armd_jax.aot ... --movers=20`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

from armd_jax.compiled import hlo

# Parts of a scope that name what jax does rather than what we do.
_NOISE = re.compile(r'jit\(.*\)|while|body|closed_call|eval_jaxpr|checkpoint|rematted_computation|')
_WRAPPED = re.compile(r'(?:jvp|vmap|transpose)\((.*)\)')


@dataclasses.dataclass(frozen=True)
class Mover:
  """Instructions of the same kind, line and scope; layers of a stack are one.

  Attributes:
    moved: bytes that all of them read and write in one run, loops included.
    instructions: how many there are in the program's text.
    opcode: as in HLO, with the kind of a fusion or the target of a custom call.
    line: 'file.py:123' of the innermost frame in the compiler's metadata, or ''.
    scope: the pass (forward, backward, or what the backward pass does again), then names of
      functions and modules, outermost first.
    shapes: of the result, of the instruction that moves most.
  """

  moved: float
  instructions: int
  opcode: str
  line: str
  scope: str
  shapes: str


def movers(text: str, mesh_shape: dict[str, int]) -> list[Mover]:
  """All movers of a compiled program, the largest first.

  Args:
    text: its HLO.
    mesh_shape: sizes of the mesh axes, as `hlo.Program` takes them.
  """
  program, frames, found = hlo.Program(text, mesh_shape), _frames(text), {}  # type: ignore[var-annotated]
  for (computation, name), moved in program.cost.moved.items():
    x = program.computations[computation][name]
    found.setdefault((_opcode(x), _line(x, frames), _scope(x)), []).append((moved, x))
  every = []
  for place, parts in found.items():
    _, largest = max(parts, key=lambda part: part[0])
    shapes = ' '.join(f'{s.dtype}{list(s.dims)}'.replace(' ', '') for s in largest.shapes)
    every.append(
      Mover(  # type: ignore[call-arg]  # a place is an opcode, a line and a scope
        sum(moved for moved, _ in parts), len(parts), *place, shapes
      )
    )
  return sorted(every, key=lambda mover: -mover.moved)


def table(text: str, mesh_shape: dict[str, int], bandwidth: float, count: int) -> str:
  """The largest movers of a program as text; all others are one more line.

  Args:
    text, mesh_shape: see `movers`.
    bandwidth: of the memory, bytes per second.
    count: lines.
  """
  found = movers(text, mesh_shape)
  shown, others = found[:count], found[count:]
  line = lambda moved, what: f'{moved / 1e9:10.3f} GB{moved / bandwidth * 1e3:9.3f} ms  {what}'
  lines = [
    line(m.moved, f'{m.instructions:>3} {m.opcode}  {m.line}  {m.scope}  {m.shapes[:60]}')
    for m in shown
  ]
  return '\n'.join([*lines, line(sum(m.moved for m in others), f'{len(others):>3} others')])


def _opcode(x):
  detail = re.search(r'custom_call_target="([^"]*)"|\bkind=(\w+)', x.attributes)
  return f'{x.opcode}/{detail[1] or detail[2]}' if detail else x.opcode


def _scope(x):
  found = re.search(r'op_name="([^"]*)"', x.attributes)
  name = found[1] if found else ''
  passes = {'rematted_computation': 'again', 'transpose(jvp(': 'backward', 'jvp(': 'forward'}
  which = next((word for sign, word in passes.items() if sign in name), '')
  parts = name.split('/')
  while any(map(_WRAPPED.fullmatch, parts)):
    parts = [_WRAPPED.sub(r'\1', part) for part in parts]
  parts = [re.sub(r'_\d+$', '_*', part) for part in parts if not _NOISE.fullmatch(part)]
  # The backward pass repeats the names of the forward pass that it belongs to.
  return f'{which} {"/".join(dict.fromkeys(parts))}'.strip()


def _line(x, frames):
  listed = re.search(r'stack_frame_id=(\d+)', x.attributes)
  if listed:
    return frames.get(int(listed[1]), '')
  written = re.search(r'source_file="([^"]*)" source_line=(\d+)', x.attributes)
  return f'{pathlib.PurePath(written[1]).name}:{written[2]}' if written else ''


def _frames(text):
  """'file.py:123' of every frame, from the tables before the first computation."""
  head = text[: text.find('{\n')]
  section = lambda name: (re.search(rf'^{name}\n((?:\d+ .*\n)*)', head, re.M) or ['', ''])[1]
  files = dict(re.findall(r'^(\d+) "(.*)"', section('FileNames'), re.M))
  fields = r'^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)'
  lines = {
    location: f'{pathlib.PurePath(files[file]).name}:{line}'
    for location, file, line in re.findall(fields, section('FileLocations'), re.M)
  }
  frames = re.findall(r'^(\d+) \{file_location_id=(\d+)', section('StackFrames'), re.M)
  return {int(frame): lines[location] for frame, location in frames}

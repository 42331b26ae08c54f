"""Records of what was measured, and of the code that they were measured with.

Compiled programs, drills and reproduction pieces take hours, so their results are kept in JSON
files, each under a digest of the code that decides it. A result is measured again when that code
changes. Comments, docstrings, layout, imports and the types of functions do not change the digest,
and neither do the names and places of files: what counts are the top-level statements of the entry
files and of every project file that they import, directly or not.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

from armd_jax.errors import UserError
from armd_jax.files import whole

ROOT = pathlib.Path(__file__).parents[1]  # of the repository, or of site-packages

Record = dict[str, Any]

_DIGEST = 'sha256'  # of the rest of a record


# ----- the code


@functools.cache
def closure(
  entries: Sequence[str], without: Sequence[str] = (), root: pathlib.Path = ROOT
) -> frozenset[pathlib.Path]:
  """The entry files and the project files that they import, directly or through others.

  Args:
    entries: globs relative to `root`. A file that is no Python file counts by its bytes.
    without: globs of files that are neither taken nor followed: what they compute does not decide
      the results.
    root: imports are looked up here and, for a file outside of the package, in `tests` and beside
      that file.
  Raises:
    ValueError: a glob matches no file, so that it covers nothing.
  """
  # Folders hold what is no source, such as __pycache__.
  files = lambda glob: {path for path in root.glob(glob) if path.is_file()}
  matches = {glob: files(glob) for glob in (*entries, *without)}
  if empty := [glob for glob, paths in matches.items() if not paths]:
    raise ValueError(f'{", ".join(empty)} match no file below {root}; write globs that do')
  left_out = set().union(*(matches[glob] for glob in without))
  found, left = set(), set().union(*(matches[glob] for glob in entries)) - left_out
  while left:
    path = left.pop()
    found.add(path)
    if path.suffix == '.py':
      left |= {file for file, *_ in _imports(path, root)} - found - left_out
  return frozenset(found)


@functools.cache
def digest(
  entries: Sequence[str],
  without: Sequence[str] = (),
  settings: str = '',
  root: pathlib.Path = ROOT,
) -> str:
  """16 hex digits that change with the code of `closure(entries, without)`, or with `settings`.

  Args:
    entries, without, root: as for `closure`.
    settings: all else that decides the results, as text.
  Raises:
    ValueError: a glob matches no file.
  """
  hashes: set[str] = set()
  for path in closure(entries, without, root):
    if path.suffix == '.py':
      hashes |= _statements(path, root)
    else:
      hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
  return hashlib.sha256('\n'.join([*sorted(hashes), settings]).encode()).hexdigest()[:16]


@functools.cache
def _tree(path: pathlib.Path) -> ast.Module:
  return _Untyped().visit(ast.parse(path.read_text('utf-8')))


class _Untyped(ast.NodeTransformer):
  """Takes types off arguments, results and local variables. Those of a class's fields stay, since
  dataclasses and modules are made of them."""

  def __init__(self):
    self._in_function = False

  def visit_FunctionDef(self, node: Any) -> ast.AST:
    node.returns = None
    return self._inside(node, True)

  visit_AsyncFunctionDef = visit_FunctionDef

  def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
    return self._inside(node, False)

  def visit_arg(self, node: ast.arg) -> ast.AST:
    node.annotation = None
    return node

  def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
    if not self._in_function or node.value is None:
      return node
    return ast.copy_location(ast.Assign([node.target], node.value), node)

  def _inside(self, node: ast.AST, is_function: bool) -> ast.AST:
    before, self._in_function = self._in_function, is_function
    self.generic_visit(node)
    self._in_function = before
    return node


@functools.cache
def _imports(path: pathlib.Path, root: pathlib.Path) -> tuple[tuple[pathlib.Path, str, str], ...]:
  """Project files that a file imports, as (file, local name, symbol of it); '' for all of it."""
  found = []
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.Import):
      for alias in node.names:
        name = alias.asname or alias.name
        found += [(file, name, '') for file in _files(alias.name, path, root)]
    elif isinstance(node, ast.ImportFrom) and node.module:
      for alias in node.names:
        name = alias.asname or alias.name
        modules = _files(f'{node.module}.{alias.name}', path, root)
        found += [(file, name, '') for file in modules]
        if not modules:
          found += [(file, name, alias.name) for file in _files(node.module, path, root)]
  return tuple(found)


def _files(module: str, path: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
  """The file of a module, if it is one of the project."""
  place = module.replace('.', '/')
  is_inside = path.is_relative_to(root / 'armd_jax')  # whose modules have absolute names only
  folders = (root,) if is_inside else (root, root / 'tests', path.parent)
  candidates = (
    folder / file for folder in folders for file in (f'{place}.py', f'{place}/__init__.py')
  )
  return [file for file in candidates if file.is_file()][:1]


@functools.cache
def _statements(path: pathlib.Path, root: pathlib.Path) -> frozenset[str]:
  """Hashes of the top-level statements of a file. Names of the project are replaced by what they
  are defined as, here or in another file."""
  imports = {name: (file, symbol) for file, name, symbol in _imports(path, root)}
  names = imports | {name: (path, name) for name in _defined(path)}

  def refer(name: str, attribute: str) -> str:
    file, symbol = names[name]
    if symbol:
      return ' '.join([_definition(file, symbol, root), attribute]).rstrip()
    return _definition(file, attribute, root) if attribute else 'a module'

  texts = [_text(statement, names, refer) for statement in _tree(path).body if _counts(statement)]
  return frozenset(hashlib.sha256(text.encode()).hexdigest() for text in texts)


@functools.cache
def _defined(path: pathlib.Path) -> dict[str, ast.stmt]:
  """The statements that define the top-level names of a file."""
  found: dict[str, ast.stmt] = {}
  for node in _tree(path).body:
    targets = [node, *getattr(node, 'targets', ()), getattr(node, 'target', None)]
    names = [getattr(x, key, None) for x in targets for key in ('name', 'id')]
    found |= {name: node for name in names if name}
  return found


@functools.cache
def _definition(path: pathlib.Path, name: str, root: pathlib.Path) -> str:
  """What a name of a file is defined as, without a look at the names in it."""
  imports = _imports(path, root)
  if name in _defined(path):
    names = {name for _, name, _ in imports}
    text = _text(_defined(path)[name], names, lambda name, attribute: attribute or name)
    return hashlib.sha256(text.encode()).hexdigest()
  for file, local_name, symbol in imports:
    if local_name == name and symbol:  # handed on from a third file
      return _definition(file, symbol, root)
  return name


def _counts(node: ast.AST) -> bool:
  """No docstrings, no imports, and not what a test module declares its drills to cover."""
  if isinstance(node, ast.Assign):
    return not any(getattr(x, 'id', '').startswith('DRILL_') for x in node.targets)
  if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
    return not isinstance(node.value.value, str)
  return not isinstance(node, ast.Import | ast.ImportFrom)


def _text(node: Any, names: Container[str], refer: Callable[[str, str], str]) -> str:
  """A syntax tree as text that is the same in every version of Python.

  Args:
    node: of the tree.
    names: of the project's modules and of what is defined in them.
    refer: gives what replaces such a name and the attribute of it, if one follows.
  """
  inside = functools.partial(_text, names=names, refer=refer)
  if isinstance(node, list):
    return f'[{",".join(inside(x) for x in node if _counts(x))}]'
  if not isinstance(node, ast.AST):
    return repr(node)
  if isinstance(node, ast.JoinedStr):  # some versions cut its plain parts in two, or add empty ones
    parts = [inside(x) for x in node.values if not isinstance(x, ast.Constant)]
    plain = [str(x.value) if isinstance(x, ast.Constant) else '\0' for x in node.values]
    return f'JoinedStr({",".join([repr("".join(plain)), *parts])})'
  if isinstance(node, ast.Name):
    return f'Name({refer(node.id, "") if node.id in names else node.id})'
  if (
    isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names
  ):
    return f'Name({refer(node.value.id, node.attr)})'
  # Empty fields are those that only some versions have.
  fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
  fields = [(name, value) for name, value in fields if name not in ('ctx', 'kind')]
  return f'{type(node).__name__}({",".join(f"{name}={inside(value)}" for name, value in fields)})'


# ----- the files


class Records:
  """A JSON file with a record a line, by key, each with the digest it was measured under, `stamp`,
  and its own, which is compared when it is read.

  The file is whole at any time, and several processes may add to it.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)

  def read(self) -> dict[str, Record]:
    """All records by key; none if there is no file.

    Raises:
      UserError: it is damaged.
    """
    fix = 'bring it back, or delete it to measure all anew'
    try:
      found = whole.read_json(self.path, {str: {'stamp': str}}, fix)
    except FileNotFoundError:
      return {}
    for key, record in found.items():
      # Records that are older than this check have none.
      if record.pop(_DIGEST, None) not in (None, whole.sha256(record)):
        raise UserError(f'{self.path} is damaged (what it holds of {key} was changed); {fix}')
    return found

  def current(self, stamps: Mapping[str, str]) -> dict[str, Record]:
    """The records under the stamps of today.

    Args:
      stamps: the digest of today's code, by key.
    """
    return {
      key: record for key, record in self.read().items() if record['stamp'] == stamps.get(key)
    }

  def missing(self, stamps: Mapping[str, str]) -> list[str]:
    """Keys of `stamps` without a current record, in their order."""
    current = self.current(stamps)
    return [key for key in stamps if key not in current]

  def add(self, key: str, stamp: str, record: Mapping[str, Any]) -> None:
    """Puts a record in place of the one under its key; in the order of keys."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with self._locked():
      records = self.read() | {key: {'stamp': stamp, **record}}
      sealed = {k: records[k] | {_DIGEST: whole.sha256(records[k])} for k in sorted(records)}
      lines = [f'  {json.dumps(k)}: {json.dumps(record)}' for k, record in sealed.items()]
      new = self.path.with_name(f'{self.path.name}.{os.getpid()}')
      new.write_text('{\n' + ',\n'.join(lines) + '\n}\n', 'utf-8')
      new.replace(self.path)

  @contextlib.contextmanager
  def _locked(self) -> Iterator[None]:
    folder = os.open(self.path.parent, os.O_RDONLY)
    try:
      fcntl.flock(folder, fcntl.LOCK_EX)
      yield
    finally:
      os.close(folder)

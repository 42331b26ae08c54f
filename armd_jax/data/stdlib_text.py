"""Real English that needs no download: the prose CPython carries in itself, about 2 MB of it."""

from __future__ import annotations

import ast
import contextlib
import gc
import inspect
import os
import platform
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

from armd_jax.errors import UserError

_TEST_PACKAGES = frozenset({'test', 'tests', 'idle_test'})
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# The fields through which a statement holds further statements.
_BODIES = ('body', 'handlers', 'orelse', 'finalbody', 'cases')


def description() -> str:
  """Where the documents come from, in words; other versions of Python hold other text."""
  origin = f'English prose inside CPython {platform.python_version()}'
  return f'{origin}: language reference topics and docstrings of modules'


def documents() -> list[str]:
  """The topics of the language reference, then one document a module: its docstrings.

  Raises:
    UserError: this Python comes without pydoc_data.
  """
  with _paused_collector():
    return _unique([*_topics(), *_docstrings()])


def _unique(texts: Iterable[str]) -> list[str]:
  return list(dict.fromkeys(texts))


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
  """Syntax trees hold no cycles, yet their many nodes set the collector off: twice the time."""
  was_enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_enabled:
      gc.enable()


def _topics() -> list[str]:
  """The language reference as `help('TOPIC')` shows it, one document a topic."""
  try:
    from pydoc_data import topics
  except ImportError as error:
    raise UserError(
      'this Python comes without pydoc_data; install the full standard library, or name a text file'
    ) from error
  return [topics.topics[name].strip() for name in sorted(topics.topics)]


def _docstrings() -> Iterator[str]:
  """One document a module: its docstrings in source order, each docstring once in the corpus."""
  seen = set()
  for path in _module_paths(sysconfig.get_path('stdlib')):
    with open(path, 'rb') as file:
      code = file.read()
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of invalid escapes
      try:
        tree = ast.parse(code)
      except (SyntaxError, ValueError):
        continue
    fresh = [text for text in _unique(_docstrings_in(tree)) if text not in seen]
    seen.update(fresh)
    if fresh:
      yield '\n\n'.join(fresh)


def _module_paths(root: str) -> Iterator[str]:
  """Files of importable modules below a folder, tests left out, in an order of their own.

  A name that is no identifier cannot be imported: site-packages, lib-dynload and the build's
  config folder fall out by that.
  """
  for folder, folders, files in os.walk(root):
    folders[:] = sorted(name for name in folders if name.isidentifier())
    folders[:] = [name for name in folders if name not in _TEST_PACKAGES]
    for name in sorted(files):
      stem, extension = os.path.splitext(name)
      if extension == '.py' and stem.isidentifier():
        yield os.path.join(folder, name)


def _docstrings_in(node: ast.AST) -> Iterator[str]:
  """Docstrings of a node and of the definitions inside it, in source order."""
  if isinstance(node, (ast.Module, *_DEFINITIONS)):
    text = ast.get_docstring(node, clean=False)
    # A docstring may spell half a character ('\\ud800'), which UTF-8 cannot.
    text = inspect.cleandoc(text or '').encode('utf-8', 'replace').decode('utf-8').strip()
    if text:
      yield text
  for field in _BODIES:
    statements = getattr(node, field, ())
    if isinstance(statements, list):  # not the expression of a lambda or of `a if b else c`
      for statement in statements:
        yield from _docstrings_in(statement)

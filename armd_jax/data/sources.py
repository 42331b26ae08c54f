"""Where text comes from: a list of documents, and its split into a training and a held-out side.

'stdlib' is real English that needs no download: the prose CPython carries in itself. Anything else
is the path, or the glob, of the user's own text files.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import gc
import glob
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator

from armd_jax.errors import UserError

STDLIB = 'stdlib'

_BLANK_LINES = re.compile(r'\n\s*\n')
_TEST_PACKAGES = frozenset({'test', 'tests', 'idle_test'})
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# The fields through which a statement holds further statements.
_BODIES = ('body', 'handlers', 'orelse', 'finalbody', 'cases')


@dataclasses.dataclass(frozen=True)
class Documents:
  """A corpus.

  Attributes:
    texts: the documents, in source order, none of them blank.
    sha256: hex digest of all texts and of where one ends and the next begins.
    description: where they come from and how they were cut apart, for people.
  """

  texts: list[str]
  sha256: str
  description: str

  @property
  def num_bytes(self) -> int:
    """UTF-8 bytes of all texts."""
    return sum(len(text.encode('utf-8')) for text in self.texts)


def load_documents(source: str) -> Documents:
  """The documents of a source.

  Args:
    source: 'stdlib', the English prose inside CPython (about 2 MB, it varies with the version); or
      the path or glob of UTF-8 text files, `~` and `**` understood, read in sorted order.
      Documents of a file are separated by blank lines; a file without two of them has one document
      a line instead, and the description says so.
  Raises:
    UserError: no such file, not a readable UTF-8 text, nothing in it, or only one document.
  """
  if source == STDLIB:
    with _paused_collector():
      texts = _unique([*_topics(), *_docstrings()])
    origin = f'English prose inside CPython {platform.python_version()}'
    return _documents(texts, f'{origin}: language reference topics and docstrings of modules')
  paths = _match(source)
  texts, num_by_line = [], 0
  for path in paths:
    text = _read(path)
    parts = _nonblank(_BLANK_LINES.split(text))
    if len(parts) < 2:
      parts = _nonblank(text.split('\n'))
      num_by_line += 1
    texts.extend(parts)
  if not texts:
    raise UserError(f'the text {source!r} is empty; give a file with at least two documents')
  if len(texts) == 1:
    raise UserError(
      f'the text {source!r} holds only one document, which leaves none to hold out; '
      'separate documents by blank lines, or write one a line'
    )
  if num_by_line == 0:
    rule = 'documents separated by blank lines'
  elif num_by_line == len(paths):
    rule = 'one document a line (no blank lines between documents)'
  else:
    rule = f'documents separated by blank lines, in {num_by_line} files without them one a line'
  files = f'{len(paths)} files of {source}' if len(paths) > 1 else paths[0]
  return _documents(texts, f'{files}: {rule}')


def split_documents(documents: Documents, held_out_fraction: float) -> tuple[list[str], list[str]]:
  """Splits a corpus by document, the same way however its documents are ordered.

  Documents are taken in order of their sha256 until they hold the wanted share of bytes. Equal
  documents have equal hashes and stay together, so that no held-out text was trained on.

  Args:
    documents: the corpus.
    held_out_fraction: share of UTF-8 bytes to hold out, above 0 and below 1.
  Returns:
    train_texts, held_out_texts: each at least one document, in source order.
  Raises:
    UserError: the fraction is not between 0 and 1, or all documents are equal.
  """
  if not 0 < held_out_fraction < 1:
    raise UserError(
      f'held_out_fraction is {held_out_fraction}; write a share between 0 and 1, such as 0.05'
    )
  encoded = [text.encode('utf-8') for text in documents.texts]
  hashes = [hashlib.sha256(data).digest() for data in encoded]
  num_bytes_of = dict.fromkeys(sorted(set(hashes)), 0)
  for digest, data in zip(hashes, encoded, strict=True):
    num_bytes_of[digest] += len(data)
  if len(num_bytes_of) < 2:
    raise UserError('all documents of the text are equal, so none can be held out; give more text')
  wanted = held_out_fraction * sum(num_bytes_of.values())
  held_out, num_held_out = set(), 0
  for digest in list(num_bytes_of)[:-1]:  # the last one is left to train on
    held_out.add(digest)
    num_held_out += num_bytes_of[digest]
    if num_held_out >= wanted:
      break
  pairs = list(zip(hashes, documents.texts, strict=True))
  train_texts = [text for digest, text in pairs if digest not in held_out]
  return train_texts, [text for digest, text in pairs if digest in held_out]


def _documents(texts: list[str], description: str) -> Documents:
  digest = hashlib.sha256()
  for text in texts:
    digest.update(hashlib.sha256(text.encode('utf-8')).digest())
  return Documents(texts, digest.hexdigest(), description)


def _unique(texts: Iterable[str]) -> list[str]:
  return list(dict.fromkeys(texts))


def _nonblank(parts: Iterable[str]) -> list[str]:
  return [part.strip('\n') for part in parts if part.strip()]


def _match(source: str) -> list[str]:
  """The files a path or a glob names, sorted."""
  pattern = os.path.expanduser(source)
  if os.path.isdir(pattern):
    example = os.path.join(source, '*.txt')
    raise UserError(f'the text {source!r} is a directory; name its files, such as {example!r}')
  if os.path.exists(pattern):  # before globbing: a file's name may hold a bracket
    return [pattern]
  paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
  if not paths:
    raise UserError(
      f'no file matches the text {source!r}; give the path or glob of text files, or {STDLIB!r}'
    )
  return paths


def _read(path: str) -> str:
  """A file's text, without a byte order mark, its lines ended by a newline alone."""
  try:
    with open(path, 'rb') as file:
      text = file.read().decode('utf-8-sig')
  except OSError as error:
    raise UserError(
      f'the text {path!r} cannot be read ({error.strerror}); check its permissions'
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      f'the text {path!r} is not UTF-8 (byte {error.start}); convert it with iconv first'
    ) from error
  return text.replace('\r\n', '\n').replace('\r', '\n')


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

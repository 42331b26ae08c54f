"""Where text comes from: a corpus as spans of documents, and its split for training and held out.

A source is written as one of

  stdlib                     real English that needs no download: the prose inside CPython
  tfds:NAME, tfds:NAME#SPLIT a tensorflow-datasets set: tfds:lm1b#test, tfds:c4/en, tfds:pg19
  hf:NAME[/CONFIG]#SPLIT     a set that Hugging Face's `datasets` reads, for `prepare` alone
  NAME:REST                  a source that was given to armd_jax.register
  PATH                       files of text, JSON, CSV or parquet: a path or glob, local or gs://
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

from armd_jax.data import hf_reader, readers, rows, stdlib_text, tfds_reader
from armd_jax.data.text_files import TextSpan
from armd_jax.errors import UserError
from armd_jax.files import paths

STDLIB = 'stdlib'
TFDS, HF = 'tfds:', 'hf:'


@dataclasses.dataclass(frozen=True)
class Source:
  """A corpus, unread.

  Attributes:
    spans: whole files and sets, in source order.
    description: where they come from and how documents are separated, for people.
  """

  spans: Sequence[readers.Span]
  description: str

  @property
  def num_bytes(self) -> int:
    """Size of the corpus, exact for files of text and approximate otherwise."""
    return sum(span.num_bytes for span in self.spans)


@dataclasses.dataclass(frozen=True)
class Documents:
  """A corpus in memory.

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


def open_source(source: str, column: str = '', prepare: bool = False, prompt: str = '') -> Source:
  """Finds the files or the set that a source names.

  Args:
    source: as at the top of this file; in a path `~` and `**` are understood and files are read in
      sorted order. Documents of a text file are separated by blank lines; in a file without blank
      lines between documents each line is one, which the description mentions.
    column: where files with columns and tensorflow-datasets hold the document; '': 'text' if there
      is one, else the only one that holds text.
    prepare: download and prepare a set that is not there.
    prompt: column of files that holds a prompt before each document; '': there are none.
  Raises:
    UserError: no such file, set, split or column.
  """
  kinds = ('tfds', 'hf', *readers.REGISTERED)
  if prompt and (source == STDLIB or source.partition(':')[0] in kinds):
    raise UserError(
      f'the text {source!r} has no column of prompts, which are read from files alone; leave out '
      f'the prompt {prompt!r}'
    )
  if source == STDLIB:
    return Source([readers.StdlibSpan(platform.python_version())], stdlib_text.description())
  if source.startswith(TFDS):
    name, _, split = source.removeprefix(TFDS).partition('#')
    span = tfds_reader.tfds_span(name, split or 'train', column, prepare)
    return Source([span], f'tensorflow-datasets {name}, {span.split_name}, column {span.column!r}')
  if source.startswith(HF):
    name, _, split = source.removeprefix(HF).partition('#')
    if not prepare:
      raise UserError(
        f'the text {source!r} is read by armd prepare alone; prepare it, and name the folder'
      )
    rows_of = hf_reader.hf_span(name, split or 'train', column)
    told = f'Hugging Face {name}, {rows_of.split_name}, column {rows_of.column!r}'
    return Source([rows_of], told)
  kind, colon, rest = source.partition(':')
  if colon and kind in readers.REGISTERED:
    return Source([readers.RegisteredSpan(kind, rest)], f'{source}: documents as they are read')
  names = _match(source)
  spans = [readers.file_span(name, column, prompt=prompt) for name in names]
  files = f'{len(names)} files of {source}' if len(names) > 1 else names[0]
  return Source(spans, f'{files}: {_rule(spans)}')


def load_documents(source: str, bad_rows: str = 'stop', prompt: str = '') -> Documents:
  """Reads a corpus into memory.

  Args:
    source: as in `open_source`; 'stdlib' is about 2 MB, it varies with the version of Python.
    bad_rows: 'stop' or 'skip', what becomes of rows without text: see `armd_jax.data.rows`.
    prompt: as in `open_source`.
  Raises:
    UserError: as `open_source`, and: not readable, nothing in it, or only one document.
  """
  opened = open_source(source, prompt=prompt)
  on_bad = rows.on_bad(bad_rows)
  texts = [text for span in opened.spans for text in span.documents(on_bad)]
  if not texts:
    raise UserError(f'the text {source!r} is empty; give a file with at least two documents')
  if len(texts) == 1:
    raise UserError(
      f'the text {source!r} holds only one document, which leaves none to hold out; '
      'separate documents by blank lines, or write one a line'
    )
  digest = hashlib.sha256()
  for text in texts:
    digest.update(hash_of(text))
  return Documents(texts, digest.hexdigest(), opened.description)


def hash_of(text: str) -> bytes:
  """sha256 of a document, which names it and decides whether it is held out."""
  return hashlib.sha256(text.encode('utf-8')).digest()


def key_of(text: str) -> bytes:
  """The hash of a document without the blanks around it, which depend on the kind of its file."""
  return hash_of(text.strip())[:16]


def split_documents(documents: Documents, held_out_fraction: float) -> tuple[list[str], list[str]]:
  """Splits a corpus by document, the same way however its documents are ordered.

  Documents are taken in order of their sha256 until they hold the wanted share of bytes, but for
  those that alone hold more than twice as much. Equal documents have equal hashes and stay
  together, so that no held-out text was trained on.

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
  hashes = [hash_of(text) for text in documents.texts]
  num_bytes_of = dict.fromkeys(sorted(set(hashes)), 0)
  for digest, text in zip(hashes, documents.texts, strict=True):
    num_bytes_of[digest] += len(text.encode('utf-8'))
  if len(num_bytes_of) < 2:
    raise UserError('all documents of the text are equal, so none can be held out; give more text')
  wanted = held_out_fraction * sum(num_bytes_of.values())
  # A document of more than twice what is wanted would leave little to train on.
  fitting = [digest for digest, count in num_bytes_of.items() if count <= 2 * wanted]
  if len(fitting) == len(num_bytes_of):
    fitting.pop()  # to be trained on
  held_out, num_held_out = set(), 0
  for digest in fitting or [min(num_bytes_of, key=lambda digest: num_bytes_of[digest])]:
    held_out.add(digest)
    num_held_out += num_bytes_of[digest]
    if num_held_out >= wanted:
      break
  pairs = list(zip(hashes, documents.texts, strict=True))
  train_texts = [text for digest, text in pairs if digest not in held_out]
  return train_texts, [text for digest, text in pairs if digest in held_out]


def is_held_out(digest: bytes, held_out_fraction: float) -> bool:
  """Whether a document is held out of a corpus that is too large to sort: by its hash alone.

  As in `split_documents` the smallest hashes are held out; the share is met on average.
  """
  return int.from_bytes(digest[:8], 'big') < held_out_fraction * 2**64


def _rule(spans: Iterable[readers.Span]) -> str:
  """How the documents of files are separated, in words."""
  of_text = [span.by_line for span in spans if isinstance(span, TextSpan)]
  tables: list[Any] = [span for span in spans if not isinstance(span, TextSpan)]
  columns = sorted({column for span in tables for column in span.columns})
  rules = [f'column {", ".join(map(repr, columns))}'] if columns else []
  if not all(span.columns for span in tables):
    rules.append('one document an item')
  if of_text and not any(of_text):
    rules.append('documents separated by blank lines')
  elif of_text and all(of_text):
    rules.append('one document a line (no blank lines between documents)')
  elif of_text:
    rules.append(
      f'documents separated by blank lines, in {sum(of_text)} files without them one a line'
    )
  return '; '.join(rules)


def _match(source: str) -> list[str]:
  """The files a path or a glob names, sorted."""
  path = paths.readable(source, 'the text')
  pattern = os.fspath(path)
  if path.is_dir():
    example = os.path.join(source, '*.txt')
    raise UserError(f'the text {source!r} is a directory; name its files, such as {example!r}')
  if path.exists():  # before globbing: a file's name may hold a bracket
    return [pattern]
  if '://' in pattern:
    fixed = path
    while glob.has_magic(os.fspath(fixed)):
      fixed = fixed.parent
    found = fixed.glob(os.fspath(path.relative_to(fixed))) if fixed != path else []
    names = sorted(os.fspath(match) for match in found if not match.is_dir())
  else:
    names = sorted(match for match in glob.glob(pattern, recursive=True) if os.path.isfile(match))
  if not names:
    raise UserError(
      f'no file matches the text {source!r}; give the path or glob of text files, or {STDLIB!r}'
    )
  return names

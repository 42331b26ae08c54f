"""A corpus that `armd_jax.data.prepare` has tokenised: the files in its folder, and their reader.

  manifest.json                       what was prepared and how, the SHA-256 of every file and its
                                      own; written last, so that a folder with it is complete
  train-00000.array_record ...        streams of tokens, EOS after each document, in records of
  held_out-00000.array_record ...     RECORD_TOKENS ids, the last record of a file the rest; or a
                                      record for each document (`documents.encode`)

Windows of any length and packing are cut from the streams when they are read, at random, and never
reach over the end of a file. Files are compared with their SHA-256 once: `.NAME.checked/` beside
the folder notes size and times of each, and only a file that has changed since is read again.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from etils import epath
from tqdm import tqdm

from armd_jax.data import documents, statistics, tokenizer_file
from armd_jax.data.packing import Packing, check_not_short, token_dtype
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError, sentence
from armd_jax.files import buckets, paths, whole

MANIFEST = 'manifest.json'
FOLDER_VARIABLE = 'ARMD_JAX_CORPORA'
UNFINISHED = 'unfinished'  # folder of what a preparation has done so far
RECORD_TOKENS = 1024
FORMAT = 1
SIDES = ('train', 'held_out')
SHARD = {
  'file': str, 'documents': int, 'text_bytes': int, 'tokens': int, 'text_sha256': str,
  'num_bytes': int, 'sha256': str,
}  # fmt: skip
_TOTAL = {'documents': int, 'text_bytes': int, 'tokens': int}
_FORM = {
  'plan': {'description': str, 'tokenizer': str, 'fingerprint': str},
  'text_sha256': str,
  'totals': {side: _TOTAL for side in SIDES},
  'left_out': {str: int},
  'shards': {side: [SHARD] for side in SIDES},
}
_FILE_NAME = '(train|held_out)-[0-9]{5,}.array_record'


@dataclasses.dataclass(frozen=True)
class Shard:
  """One ArrayRecord file of a prepared corpus.

  Attributes:
    file: its name in the folder.
    documents, text_bytes: how many documents it holds, and of how many UTF-8 bytes of text.
    tokens: ids in it, EOS included.
    text_sha256: hex, over the hashes of its documents.
    num_bytes, sha256: size and hex digest of the file.
  """

  file: str
  documents: int
  text_bytes: int
  tokens: int
  text_sha256: str
  num_bytes: int
  sha256: str

  @property
  def records(self) -> int:
    """Records of the file."""
    return -(-self.tokens // RECORD_TOKENS)


def read_shard(about: dict[str, Any]) -> Shard:
  """A shard out of a manifest or a note.

  Raises:
    ValueError: it is not of the form SHARD, or has a name or numbers that no shard has.
  """
  whole.check_form(about, SHARD)
  shard = Shard(**{name: about[name] for name in SHARD})
  if not re.fullmatch(_FILE_NAME, shard.file):
    raise ValueError(f'names {shard.file!r}, which is no file of a corpus')
  if min(shard.documents, shard.text_bytes, shard.num_bytes, shard.tokens - 1) < 0:
    raise ValueError(f'has impossible numbers of {shard.file}')
  return shard


def stamp(path: str) -> list[int]:
  """The system's record of the size and the last change of a file."""
  if '://' in path:
    about = epath.Path(path).stat()
    return [about.length, int(about.mtime)]
  about = os.stat(path)
  return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _note_path(folder: epath.Path, shard: Shard) -> epath.Path:
  return folder.with_name(f'.{folder.name}.checked') / f'{shard.file}.json'


def _is_checked(folder: epath.Path, shard: Shard) -> bool:
  expected = {'sha256': shard.sha256, 'stamp': stamp(os.fspath(folder / shard.file))}
  try:
    return whole.read_json(_note_path(folder, shard), {}, '') == expected
  except (OSError, UserError):  # it is one only if it can be read
    return False


def note_checked(folder: epath.Path, shard: Shard) -> None:
  """Notes that a file has its SHA-256, so that no start reads it again."""
  note = {'sha256': shard.sha256, 'stamp': stamp(os.fspath(folder / shard.file))}
  path = _note_path(folder, shard)
  try:
    if '://' in os.fspath(path):
      path.write_text(json.dumps(note), 'utf-8')
    else:
      whole.write_json(path, note)
  except OSError as error:  # a corpus may be on a disk that is only read
    print(
      f'warning: cannot write {path} ({error.strerror}); {shard.file} is compared again at '
      'the next start',
      file=sys.stderr,
    )


def is_prepared(folder: str) -> bool:
  """Whether a source is the folder of a prepared corpus, finished or not."""
  path = paths.readable(folder, 'the text')
  return (path / MANIFEST).exists() or (path / UNFINISHED).exists()


class Prepared:
  """An opened folder.

  Attributes:
    manifest: the parsed manifest.json.
  """

  def __init__(self, folder: str):
    """Reads the manifest.

    Raises:
      UserError: the corpus is not finished, is of another version, or a file of it is missing.
    """
    self._folder = paths.readable(folder, 'the text')
    self.manifest = self._read(folder)
    self._shards = {
      side: [read_shard(shard) for shard in self.manifest['shards'][side]] for side in SIDES
    }
    for shard in itertools.chain(*self._shards.values()):
      path = self._folder / shard.file
      if not path.exists() or path.stat().length != shard.num_bytes:
        raise UserError(f'{path} is missing or cut short; prepare the corpus anew')

  def _read(self, folder):
    path, fix = self._folder / MANIFEST, 'prepare the corpus anew'
    try:
      manifest = whole.read_json(path, {}, fix)
    except (FileNotFoundError, NotADirectoryError):
      raise UserError(
        f'the preparation of {folder} is not finished; run the same armd_jax.data.prepare command '
        'again, and it goes on'
      ) from None
    if manifest.get('format') != FORMAT:
      raise UserError(
        f'{folder} is in format {manifest.get("format")!r}, not {FORMAT}; prepare it anew'
      )
    unsealed = {name: value for name, value in manifest.items() if name != 'sha256'}
    try:
      whole.check_form(manifest, _FORM)
      if 'statistics' in manifest:  # of version 0.2 there are none
        whole.check_form(manifest['statistics'], statistics.TOTAL_FORM, 'statistics')
      # Manifests of version 0.1 have no digest.
      is_old = manifest.keys() == _FORM.keys() | {'format'}
      if not is_old and manifest.get('sha256') != whole.sha256(unsealed):
        raise ValueError('was changed after it was written')
      for shard in itertools.chain(*manifest['shards'].values()):
        read_shard(shard)
    except ValueError as error:
      raise UserError(f'{path} is damaged (it {error}); {fix}') from None
    return manifest

  @functools.cached_property
  def _on_disk(self) -> epath.Path:
    """Where the files are read: ArrayRecord reads none in a bucket, so those are copied, once."""
    if not buckets.is_bucket(self._folder):
      return self._folder
    cache = os.environ.get(FOLDER_VARIABLE) or '~/.cache/armd_jax/corpora'
    name = whole.sha256(self.manifest)[:16]
    folder = epath.Path(paths.given(cache, FOLDER_VARIABLE) / name)
    shards = [*itertools.chain(*self._shards.values())]
    size = sum(shard.num_bytes for shard in shards)
    with tqdm(total=size, unit='B', unit_scale=True, desc='copy the corpus', delay=5) as bar:
      for shard in shards:
        here = folder / shard.file
        if not here.exists() or here.stat().length != shard.num_bytes:
          try:
            with (
              whole.replacing(here) as part,
              (self._folder / shard.file).open('rb') as file,
              part.open('wb') as copy,
            ):
              shutil.copyfileobj(file, copy, 2**22)
          except OSError as error:
            raise UserError(
              f'cannot copy {self._folder / shard.file} to {folder} ({error.strerror or error}); '
              f'free space, or set {FOLDER_VARIABLE} to another folder'
            ) from error
        bar.update(shard.num_bytes)
    return folder

  def check_files(self, index: int = 0, count: int = 1) -> None:
    """Compares files with the manifest's SHA-256, unless they are known to be what they were.

    Args:
      index, count: of the processes that share the work; each looks at its part of the files.
    Raises:
      UserError: a file is damaged or another one, or this user may not read it.
    """
    folder = self._on_disk
    shards = [*itertools.chain(*self._shards.values())][index::count]
    for shard in shards:  # what is known of one lets nobody read it
      with paths.permitted():
        (folder / shard.file).open('rb').close()
    shards = [shard for shard in shards if not _is_checked(folder, shard)]
    size = sum(shard.num_bytes for shard in shards)
    # Without a bar where it takes no time.
    with tqdm(total=size, unit='B', unit_scale=True, desc='check the corpus', delay=5) as bar:
      for shard in shards:
        path, digest = folder / shard.file, hashlib.sha256()
        with path.open('rb') as file:
          while chunk := file.read(2**22):
            digest.update(chunk)
            bar.update(len(chunk))
        if digest.hexdigest() != shard.sha256:
          raise UserError(
            f'{path} is damaged (it has other bytes than were written); prepare the corpus anew'
          )
        note_checked(folder, shard)

  @property
  def description(self) -> str:
    """Where the text comes from, in words."""
    return self.manifest['plan']['description']

  @property
  def sha256(self) -> str:
    """Of the text, hex."""
    return self.manifest['text_sha256']

  @property
  def held_out_rule(self) -> tuple[Any, Any]:
    """The share and the source that are held out: corpora with the same ones hold out the same
    documents of those that they share."""
    plan = self.manifest['plan']
    return plan.get('held_out'), plan.get('held_out_source')

  def check_tokenizer(self, tokenizer: Tokenizer) -> None:
    """Refuses any vocabulary but the one the corpus was prepared with.

    Raises:
      UserError: naming both.
    """
    plan = self.manifest['plan']
    is_same = plan['fingerprint'] == tokenizer.fingerprint
    names = plan['tokenizer'], tokenizer.name
    if is_same and all(map(tokenizer_file.is_named, names)):  # whatever the file is called
      return
    if names[0] != names[1]:
      raise UserError(
        f'{self._folder} was prepared with tokenizer {plan["tokenizer"]!r}, not '
        f'{tokenizer.name!r}; write --config.data.tokenizer={plan["tokenizer"]}'
      )
    if not is_same:
      raise UserError(
        f'{self._folder} was prepared with another version of tokenizer {tokenizer.name!r}; '
        'prepare it anew'
      )

  def check_prompt(self, prompt: str) -> None:
    """Refuses a column of prompts that is not the one the corpus was prepared with; '' is any.

    Raises:
      UserError: naming both.
    """
    there = self.manifest['plan'].get('prompt', '')
    if prompt not in ('', there):
      raise UserError(
        f'{self._folder} was prepared with prompt {there!r}, not {prompt!r}; leave out '
        'config.data.prompt, or prepare it in another folder'
      )

  def documents(self, side: str, tokenizer: Tokenizer, length: int) -> DocumentWindows:
    """The windows of one side, a document each.

    Args:
      side: 'train' or 'held_out'.
      tokenizer: of the corpus.
      length: N.
    Raises:
      UserError: another tokenizer, no document, or the corpus is a stream.
    """
    self.check_tokenizer(tokenizer)
    if 'documents' not in self.manifest['plan']:
      raise UserError(
        f'{self._folder} was prepared as a stream, in which documents are joined; prepare it in '
        'another folder with --documents'
      )
    if not self._shards[side]:
      raise UserError(f'{self._folder} holds no {side} documents; prepare more text')
    return DocumentWindows(self._on_disk, self._shards[side], length, tokenizer)

  def windows(self, side: str, tokenizer: Tokenizer, packing: Packing) -> Windows:
    """The windows of one side.

    Args:
      side: 'train' or 'held_out'.
      tokenizer: of the corpus.
      packing: how its streams are cut.
    Raises:
      UserError: another tokenizer, less than one window, or the corpus is no stream.
    """
    self.check_tokenizer(tokenizer)
    if 'documents' in self.manifest['plan']:
      raise UserError(
        f'{self._folder} was prepared with --documents; write --config.data.packing=documents'
      )
    shards = self._shards[side]
    most = max((shard.tokens for shard in shards), default=0)
    check_not_short(most, packing, f'the longest {side} file of {self._folder}')
    return Windows(self._on_disk, shards, packing, tokenizer)


class Windows(Sequence):
  """Windows of a prepared corpus, read from its files when they are needed.

  An index gives one, unsigned [N]; a slice gives an array of them, [W, N]. Worker processes may
  have copies.
  """

  def __init__(
    self, folder: epath.Path, shards: Sequence[Shard], packing: Packing, tokenizer: Tokenizer
  ):
    self._packing, self._length, self._dtype = packing, packing.length, token_dtype(tokenizer)
    windows = (packing.count(shard.tokens) for shard in shards)
    self._first_window = [0, *itertools.accumulate(windows)]
    self._open(folder, shards, [shard.records for shard in shards], tokenizer)

  def _open(
    self,
    folder: epath.Path,
    shards: Sequence[Shard],
    records: Sequence[int],
    tokenizer: Tokenizer,
  ) -> None:
    files = [_File(os.fspath(folder / s.file), n) for s, n in zip(shards, records, strict=True)]
    self._records = array_record_data_source.ArrayRecordDataSource(files)
    self._first_record = [0, *itertools.accumulate(records)]
    self._vocab_size, self._name = tokenizer.vocab_size, os.fspath(folder)

  def __len__(self) -> int:
    return self._first_window[-1]

  # Windows of a slice are one array, not a sequence of arrays.
  def __getitem__(self, index: Any) -> np.ndarray:  # type: ignore[override]
    if isinstance(index, slice):
      windows = [self[i] for i in range(*index.indices(len(self)))]
      return np.stack(windows) if windows else np.empty((0, self._length), self._dtype)
    if not -len(self) <= index < len(self):
      raise IndexError(f'window {index} of {len(self)}')
    return self._window(int(index) % len(self))

  def _window(self, index: int) -> np.ndarray:
    shard = bisect.bisect_right(self._first_window, index) - 1
    begin = (index - self._first_window[shard]) * self._packing.body
    end = begin + self._packing.body
    first, last = begin // RECORD_TOKENS, -(-end // RECORD_TOKENS)
    base = self._first_record[shard]
    data = self._read(range(base + first, base + last))
    offset = begin - first * RECORD_TOKENS
    body = np.frombuffer(data, self._dtype)[offset : offset + self._packing.body]
    self._check(index, len(body) == self._packing.body, body)
    return self._packing.windows(body)[0]

  def _read(self, records: range) -> bytes:
    try:
      return b''.join(self._records[i] for i in records)
    except Exception as error:  # whatever the C++ library raises for damaged files
      raise UserError(
        f'{self._name} is damaged ({sentence(error)}); prepare the corpus anew'
      ) from error

  def _check(self, index: int, is_whole: bool, ids: np.ndarray) -> None:
    # Where an embedding is looked up, jax would take the nearest row for it.
    if not is_whole or ids.max() >= self._vocab_size:
      raise UserError(
        f'{self._name} is damaged (window {index} is cut short, or holds ids that are no tokens of '
        f'{self._vocab_size}); prepare the corpus anew'
      )

  def __repr__(self) -> str:
    return f'{type(self).__name__}({self._name!r}, {len(self)} of {self._length})'


class DocumentWindows(Windows):
  """Windows of a document each, int32 with the marks of `documents`; otherwise as `Windows`."""

  def __init__(
    self, folder: epath.Path, shards: Sequence[Shard], length: int, tokenizer: Tokenizer
  ):
    self._length, self._dtype = length, np.dtype(np.int32)
    counts = [shard.documents for shard in shards]
    self._first_window = [0, *itertools.accumulate(counts)]
    self._open(folder, shards, counts, tokenizer)

  def _window(self, index: int) -> np.ndarray:
    data = self._read(range(index, index + 1))
    document_n = np.frombuffer(data[: len(data) // 4 * 4], np.int32)
    is_whole = 0 < len(data) == document_n.nbytes and document_n[-1] >= 0
    self._check(index, is_whole, documents.read(document_n).ids_BxN if is_whole else document_n)
    return documents.window(document_n, self._length)


@dataclasses.dataclass(frozen=True)
class _File:
  """A whole file, as ArrayRecordDataSource wants it, which else would open each to count."""

  filename: str
  examples_in_shard: int
  skip: int = 0

  @property
  def take(self) -> int:
    return self.examples_in_shard

"""A corpus that `armd_jax.data.prepare` has tokenised: what lies in its folder, and how it is read.

  manifest.json                       what was prepared and how; written last, so that a folder
                                      with it is complete
  train-00000.array_record ...        streams of tokens, EOS after each document, in records of
  held_out-00000.array_record ...     RECORD_TOKENS ids, the last record of a file the rest

Windows of any length and packing are cut from the streams when they are read, at random, and never
reach over the end of a file.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from etils import epath

from armd_jax.data.packing import Packing, check_not_short, token_dtype
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError, sentence

MANIFEST = 'manifest.json'
UNFINISHED = 'unfinished'  # folder of what a preparation has done so far
RECORD_TOKENS = 1024
FORMAT = 1
SIDES = ('train', 'held_out')


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


def is_prepared(folder: str) -> bool:
  """Whether a source is the folder of a prepared corpus, finished or not."""
  path = epath.Path(folder).expanduser()
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
    self._folder = epath.Path(folder).expanduser()
    try:
      self.manifest = json.loads((self._folder / MANIFEST).read_text('utf-8'))
    except FileNotFoundError:
      raise UserError(
        f'the preparation of {folder} is not finished; run the same armd_jax.data.prepare command '
        'again, and it goes on'
      ) from None
    except (OSError, ValueError) as error:
      raise UserError(
        f'{self._folder / MANIFEST} cannot be read ({error}); prepare the corpus anew'
      ) from error
    if self.manifest.get('format') != FORMAT:
      raise UserError(
        f'{folder} is in format {self.manifest.get("format")!r}, not {FORMAT}; prepare it anew'
      )
    self._shards = {
      side: [Shard(**shard) for shard in self.manifest['shards'][side]] for side in SIDES
    }
    for shard in itertools.chain(*self._shards.values()):
      path = self._folder / shard.file
      if not path.exists() or path.stat().length != shard.num_bytes:
        raise UserError(f'{path} is missing or cut short; prepare the corpus anew')

  @property
  def description(self) -> str:
    """Where the text comes from, in words."""
    return self.manifest['plan']['description']

  @property
  def sha256(self) -> str:
    """Of the text, hex."""
    return self.manifest['text_sha256']

  def check_tokenizer(self, tokenizer: Tokenizer) -> None:
    """Refuses any vocabulary but the one the corpus was prepared with.

    Raises:
      UserError: naming both.
    """
    plan = self.manifest['plan']
    if plan['tokenizer'] != tokenizer.name:
      raise UserError(
        f'{self._folder} was prepared with tokenizer {plan["tokenizer"]!r}, not '
        f'{tokenizer.name!r}; write --config.data.tokenizer={plan["tokenizer"]}'
      )
    if plan['fingerprint'] != tokenizer.fingerprint:
      raise UserError(
        f'{self._folder} was prepared with another version of tokenizer {tokenizer.name!r}; '
        'prepare it anew'
      )

  def windows(self, side: str, tokenizer: Tokenizer, packing: Packing) -> Windows:
    """The windows of one side.

    Args:
      side: 'train' or 'held_out'.
      tokenizer: of the corpus.
      packing: how its streams are cut.
    Raises:
      UserError: another tokenizer, or less than one window.
    """
    self.check_tokenizer(tokenizer)
    shards = self._shards[side]
    most = max((shard.tokens for shard in shards), default=0)
    check_not_short(most, packing, f'the longest {side} file of {self._folder}')
    return Windows(self._folder, shards, packing, token_dtype(tokenizer))


class Windows(Sequence):
  """Windows of a prepared corpus, read from its files as they are asked for.

  An index gives one, unsigned [N]; a slice gives an array of them, [W, N]. Worker processes may
  have copies.
  """

  def __init__(
    self, folder: epath.Path, shards: Sequence[Shard], packing: Packing, dtype: np.dtype
  ):
    instructions = [_File(os.fspath(folder / shard.file), shard.records) for shard in shards]
    self._records = array_record_data_source.ArrayRecordDataSource(instructions)
    self._packing = packing
    self._dtype = dtype
    self._first_record = [0, *itertools.accumulate(shard.records for shard in shards)]
    windows = (packing.count(shard.tokens) for shard in shards)
    self._first_window = [0, *itertools.accumulate(windows)]
    self._name = os.fspath(folder)

  def __len__(self) -> int:
    return self._first_window[-1]

  # Windows of a slice are one array, not a sequence of arrays.
  def __getitem__(self, index: Any) -> np.ndarray:  # type: ignore[override]
    if isinstance(index, slice):
      windows = [self[i] for i in range(*index.indices(len(self)))]
      return np.stack(windows) if windows else np.empty((0, self._packing.length), self._dtype)
    if not -len(self) <= index < len(self):
      raise IndexError(f'window {index} of {len(self)}')
    index = int(index) % len(self)
    shard = bisect.bisect_right(self._first_window, index) - 1
    begin = (index - self._first_window[shard]) * self._packing.body
    end = begin + self._packing.body
    first, last = begin // RECORD_TOKENS, -(-end // RECORD_TOKENS)
    base = self._first_record[shard]
    try:
      data = b''.join(self._records[i] for i in range(base + first, base + last))
    except Exception as error:  # whatever the C++ library raises for damaged files
      raise UserError(
        f'{self._name} is damaged ({sentence(error)}); prepare the corpus anew'
      ) from error
    offset = begin - first * RECORD_TOKENS
    body = np.frombuffer(data, self._dtype)[offset : offset + self._packing.body]
    return self._packing.windows(body)[0]

  def __repr__(self) -> str:
    return f'Windows({self._name!r}, {len(self)} of {self._packing.length})'


@dataclasses.dataclass(frozen=True)
class _File:
  """A whole file, as ArrayRecordDataSource wants it, which else would open each to count."""

  filename: str
  examples_in_shard: int
  skip: int = 0

  @property
  def take(self) -> int:
    return self.examples_in_shard

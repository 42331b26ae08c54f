"""A tokenizer.json of Hugging Face as a vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from armd_jax import errors
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths, whole

FILE = 'tokenizer.json'

# What ends and begins a document, by the names that published vocabularies have for it.
_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]', '<|im_end|>')
_BEGINS = ('<|begin_of_text|>', '<s>', '<bos>', '[CLS]')

_MOST_IDS = 2**24  # above those of any vocabulary; arrays have an entry for each
_NO_TOKEN = '<armd_jax: no token>'


class FileTokenizer:
  """Any tokenizer.json, by its path; see `tokenizers.Tokenizer` for the attributes, beside which
  `text` is what the file holds.

  EOS is the file's own if it has one of the common names, else one more id behind its last. Special
  tokens that are spelled in a text are text where the library allows it.

  Args:
    path: of the file, or of a folder that holds it.
  Raises:
    UserError: there is no such file, or it is no tokenizer.
  """

  def __init__(self, path: str):
    import tokenizers

    self.name = path
    file = _file(path)
    paths.check_file(file, 'the tokenizer')
    try:
      text = self.text = file.read_text('utf-8')
      with errors.no_panics():
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
    except OSError as error:
      raise UserError(
        f'the tokenizer {path!r} cannot be read ({error.strerror}); give a tokenizer.json'
      ) from error
    except Exception as error:  # the library raises Exception itself
      raise UserError(
        f'the tokenizer {path!r} is no tokenizer.json ({sentence(error)}); fetch it anew'
      ) from error
    make_whole(self._tokenizer)
    self._tokenizer.encode_special_tokens = True
    ids = self._tokenizer.get_vocab()
    if not ids:
      raise UserError(f'the tokenizer {path!r} has no tokens; give another file')
    last = max(ids.values())
    if last >= _MOST_IDS:
      raise UserError(
        f'the tokenizer {path!r} has the id {last}; give a file whose ids are below {_MOST_IDS}'
      )
    self.eos_id: int = next((ids[name] for name in _ENDS if name in ids), last + 1)
    self.bos_id: int = next((ids[name] for name in _BEGINS if name in ids), self.eos_id)
    self.vocab_size = max(last, self.eos_id) + 1
    described = json.loads(text)
    special = {token['id'] for token in described.get('added_tokens') or () if token['special']}
    by_byte = '"ByteLevel"' in json.dumps(
      [described.get('decoder'), described.get('pre_tokenizer')]
    )
    # Of WordPiece's tokens that continue a word; of no text.
    prefix = described['model'].get('continuing_subword_prefix') or ''
    self.token_bytes_V = np.zeros(self.vocab_size, np.int32)
    for token, number in ids.items():
      self.token_bytes_V[number] = 0 if number in special else _num_bytes(token, by_byte, prefix)
    self.token_bytes_V[[self.eos_id, self.bos_id]] = 0
    self.fingerprint = fingerprint_of(text)

  def encode(self, text: str) -> np.ndarray:
    return np.array(encode(self._tokenizer, text, self.name), np.int32)

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]: EOS becomes ''; raises ValueError for one outside."""
    ids = np.asarray(ids, np.int64)
    if ((ids < 0) | (ids >= self.vocab_size)).any():
      raise ValueError(f'{self.name!r} has ids from 0 to {self.vocab_size - 1} alone')
    documents = np.split(ids, np.flatnonzero(ids == self.eos_id))
    own = (document[document != self.eos_id].tolist() for document in documents)
    return ''.join(self._tokenizer.decode(one, skip_special_tokens=False) for one in own)


def _file(name: str) -> pathlib.Path:
  path = paths.given(name, 'the tokenizer')
  return path / FILE if path.is_dir() else path


def is_file(name: str) -> bool:
  """Whether a tokenizer's name is the path of one, or one that this user may not look into."""
  if name.endswith('.json'):
    return True
  try:
    return stat.S_ISREG(os.stat(os.path.join(os.path.expanduser(name), FILE)).st_mode)
  except (OSError, ValueError) as error:
    return isinstance(error, PermissionError) and os.sep in name


def fingerprint_of(text: str) -> str:
  """Of the tokenizer that a tokenizer.json makes."""
  return hashlib.sha256(text.encode('utf-8')).hexdigest()


def is_named(name: str) -> bool:
  """Whether a config's tokenizer is a file, there or not, and none that is known by its name."""
  from armd_jax.data import tokenizers  # which imports this file

  return name not in tokenizers.OWN and name not in tokenizers.REGISTERED


def text_of(name: str) -> str | None:
  """What the file holds that a config's tokenizer is; None of another one, and of one that cannot
  be read."""
  if not is_named(name) or not is_file(name):
    return None
  try:
    file = _file(name)
    whole.check_ends(file)
    return file.read_text('utf-8')
  except (OSError, ValueError):  # which a `UserError` is
    return None


def found(name: str, fingerprint: str, own: Callable[[], str | None]) -> str:
  """The name of the file with the vocabulary of a run or an export: the one in its config, or its
  own copy where that is gone or another one by now.

  Args:
    name: of the config's tokenizer.
    fingerprint: of the vocabulary.
    own: the name of the copy, None where there is none.
  """
  holds = lambda name: (text := text_of(name)) is not None and fingerprint_of(text) == fingerprint
  if not is_named(name) or holds(name):
    return name
  copy = own()
  return copy if copy is not None and holds(copy) else name


def kept(text: str) -> str:
  """The name of a file with a tokenizer.json that is in no file of its own: in the folder of
  temporary files, where it stays, the same for all processes of a job.

  Raises:
    UserError: it cannot be written.
  """
  name = fingerprint_of(text)[:16]
  file = pathlib.Path(tempfile.gettempdir(), f'armd_jax_{os.getuid()}', 'tokenizers', name, FILE)
  if text_of(str(file)) != text:
    try:
      whole.write_text(file, text)
    except OSError as error:
      raise UserError(
        f'cannot write {file} ({error.strerror}); set TMPDIR to a folder that takes files'
      ) from error
  return str(file)


def make_whole(tokenizer: Any) -> None:
  """A text is all of its pieces, the same each time; see `encode`."""
  tokenizer.no_truncation()
  tokenizer.no_padding()
  model: Any = tokenizer.model
  if getattr(model, 'dropout', None):
    model.dropout = None
  # BPE leaves out what it has no token for, unless it names one; of one that is none it raises.
  if getattr(model, 'unk_token', '') is None:
    model.unk_token = _NO_TOKEN
  tokenizer.model = model


def encode(tokenizer: Any, text: str, name: str) -> list[int]:
  """Ids of all of a text, without any that it does not spell.

  Args:
    tokenizer: after `make_whole`.
    text: to encode.
    name: of the tokenizer, for the error.
  Raises:
    UserError: the tokenizer has no token for a part of the text, or is damaged.
  """

  def ids(text: str) -> list[int]:
    with errors.no_panics():
      return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

  try:
    return ids(text)
  except errors.Panic as error:
    raise UserError(
      f'the tokenizer {name!r} fails at {text[:20]!r} ({error}); fetch it anew, or give another one'
    ) from error
  except Exception as error:  # the library raises Exception itself
    raise UserError(
      f'the tokenizer {name!r} has no token for {_unknown(ids, text)!r}, and none for what is '
      'unknown; give another one, or text without it'
    ) from error


def _unknown(ids: Callable[[str], list[int]], text: str) -> str:
  """The first word or, of one that is known in part, character that has no ids."""
  for pieces in (text.split(), text):
    for piece in pieces:
      try:
        ids(piece)
      except Exception:
        if len(piece) < 20:
          return piece
  return text[:20]


def _num_bytes(token: str, by_byte: bool, prefix: str) -> int:
  """UTF-8 bytes of the text of a token."""
  if by_byte:  # each of its characters spells a byte
    return len(token)
  if re.fullmatch('<0x[0-9A-Fa-f]{2}>', token):
    return 1
  return len(token.removeprefix(prefix).replace('\u2581', ' ').encode('utf-8'))

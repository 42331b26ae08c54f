"""A tokenizer.json of Hugging Face as a vocabulary."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from armd_jax import errors
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths

# What ends and begins a document, by the names that published vocabularies have for it.
_ENDS = ('<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]', '<|im_end|>')
_BEGINS = ('<|begin_of_text|>', '<s>', '<bos>', '[CLS]')

_MOST_IDS = 2**24  # above those of any vocabulary; arrays have an entry for each
_NO_TOKEN = '<armd_jax: no token>'


class FileTokenizer:
  """Any tokenizer.json, by its path; see `tokenizers.Tokenizer` for the attributes.

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
    file = paths.given(path, 'the tokenizer')
    file = file / 'tokenizer.json' if file.is_dir() else file
    paths.check_file(file, 'the tokenizer')
    try:
      text = file.read_text('utf-8')
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
    self.token_bytes_V = np.zeros(self.vocab_size, np.int32)
    for token, number in ids.items():
      self.token_bytes_V[number] = 0 if number in special else _num_bytes(token, by_byte)
    self.token_bytes_V[[self.eos_id, self.bos_id]] = 0
    self.fingerprint = hashlib.sha256(text.encode('utf-8')).hexdigest()

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


def is_file(name: str) -> bool:
  """Whether a tokenizer's name is the path of one."""
  return name.endswith('.json') or os.path.isfile(os.path.join(name, 'tokenizer.json'))


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


def _num_bytes(token: str, by_byte: bool) -> int:
  """UTF-8 bytes of the text of a token."""
  if by_byte:  # each of its characters spells a byte
    return len(token)
  if re.fullmatch('<0x[0-9A-Fa-f]{2}>', token):
    return 1
  return len(token.removeprefix('##').replace('\u2581', ' ').encode('utf-8'))

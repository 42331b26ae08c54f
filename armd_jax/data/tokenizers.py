"""Tokenizers: text to ids and back, behind one small interface.

Everything downstream (packing, the n-gram baseline, likelihood, sampling) uses only the
`Tokenizer` protocol, so that another vocabulary is one more class and one more line in
`_TOKENIZERS`. BPE is tiktoken's and WordPiece that of `tokenizers`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np

from armd_jax.data import tokenizer_file, vocabularies
from armd_jax.errors import UserError, sentence


class Tokenizer(Protocol):
  """A vocabulary, as the rest of the code uses it.

  Attributes:
    name: what `get_tokenizer` calls it.
    vocab_size: V; every id is in 0..V-1.
    eos_id: the id that ends a document; `encode` never returns it.
    bos_id: the id that begins a wrapped window; EOS where a vocabulary has no other.
    fingerprint: hex digits that change whenever some text would get other ids, stored beside
      checkpoints so that a model is never read with another vocabulary.
    token_bytes_V: int32 [V], UTF-8 bytes of the text of each id; 0 for EOS and BOS.
  """

  @property
  def name(self) -> str: ...

  @property
  def vocab_size(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  @property
  def bos_id(self) -> int: ...

  @property
  def fingerprint(self) -> str: ...

  @property
  def token_bytes_V(self) -> np.ndarray: ...

  def encode(self, text: str) -> np.ndarray:
    """Ids of a text, int32 [N], without EOS."""
    ...

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]; raises ValueError for an id outside the vocabulary."""
    ...


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255, and EOS as 256.

  Examples:
    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode('né').tolist()
    [110, 195, 169]
    >>> tokenizer.decode([110, 195, 169, 256, 195])
    'né\ufffd'
  """

  name = 'bytes'
  vocab_size = 257
  eos_id = bos_id = 256

  def __init__(self):
    # Computed from what encode returns, so that it cannot stay behind a change of the ids.
    alphabet = ''.join(map(chr, range(0x800)))
    ids = self.encode(alphabet).tobytes()
    self.fingerprint = hashlib.sha256(ids + f'{self.vocab_size} {self.eos_id}'.encode()).hexdigest()
    self.token_bytes_V = np.ones(self.vocab_size, np.int32)
    self.token_bytes_V[256:] = 0

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.int32)

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]: EOS becomes '', each malformed UTF-8 sequence U+FFFD.

    Documents are decoded apart: a character cut off by EOS does not continue after it.
    """
    documents = _documents(ids, self)
    texts = [ids.astype(np.uint8).tobytes() for ids in documents]
    return ''.join(text.decode('utf-8', 'replace') for text in texts)


# All that the \\s of GPT-2's pattern takes, in lengths that tiktoken's stack may not hold.
_SPACE = '[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]'
_LONG_SPACE = re.compile(_SPACE + '{1000,}')


class Gpt2Tokenizer:
  """The byte-pair encoding of GPT-2: 50,256 pieces and EOS, `<|endoftext|>`; lossless.

  Raises:
    UserError: its vocabulary cannot be had.
  """

  name = 'gpt2'
  vocab_size = 50257
  eos_id = bos_id = 50256

  def __init__(self):
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str

    # The file spells each byte as a printable character: itself, or one from 256 on.
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
    others = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    ids = json.loads(vocabularies.GPT2.read())
    end = ids.pop('<|endoftext|>')
    # tiktoken merges the pair with the smallest id first, which is the order of GPT-2's merges.
    pieces = {bytes(byte_of[c] for c in piece): number for piece, number in ids.items()}
    self._bpe = tiktoken.Encoding(
      self.name,
      pat_str=r50k_pat_str,
      mergeable_ranks=pieces,
      special_tokens={'<|endoftext|>': end},
      explicit_n_vocab=self.vocab_size,
    )
    self.token_bytes_V = np.zeros(self.vocab_size, np.int32)
    self.token_bytes_V[list(pieces.values())] = list(map(len, pieces))
    table = [piece.hex() for piece in sorted(pieces, key=pieces.get)]
    self.fingerprint = _fingerprint(r50k_pat_str, *table)

  def encode(self, text: str) -> np.ndarray:
    ids, begin = [], 0
    for space in _LONG_SPACE.finditer(text):
      # The pattern leaves the last one to what follows, if anything does; the others are a piece.
      end = space.end() - (space.end() < len(text))
      ids += self._bpe.encode_ordinary(text[begin : space.start()])
      ids += self._bpe.encode_ordinary(text[space.start() : end])
      begin = end
    return np.array(ids + self._bpe.encode_ordinary(text[begin:]), np.int32)

  def decode(self, ids: np.ndarray) -> str:
    """The text of ids, int [N]: EOS becomes '', each malformed UTF-8 sequence U+FFFD."""
    return ''.join(self._bpe.decode(ids.tolist()) for ids in _documents(ids, self))


class BertTokenizer:
  """WordPiece of bert-base-uncased: 30,522 ids, EOS is [SEP], BOS is [CLS].

  Lower case without accents and with one kind of space: `decode` gives back words, not the text;
  `token_bytes_V` counts the letters of a piece, so spaces are in no token's bytes. Text that spells
  '[SEP]' is text.

  Raises:
    UserError: its vocabulary cannot be had.
  """

  name = 'bert-base-uncased'
  vocab_size = 30522
  eos_id = 102
  bos_id = 101

  def __init__(self):
    import tokenizers

    pieces = vocabularies.BERT_BASE_UNCASED.read().decode('utf-8').splitlines()
    ids = {piece: number for number, piece in enumerate(pieces)}
    model = tokenizers.models.WordPiece(ids, unk_token='[UNK]', max_input_chars_per_word=100)
    self._wordpiece = tokenizers.Tokenizer(model)
    self._wordpiece.normalizer = tokenizers.normalizers.BertNormalizer()
    self._wordpiece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    self._wordpiece.decoder = tokenizers.decoders.WordPiece()
    self.token_bytes_V = np.array(
      [len(piece.removeprefix('##').encode('utf-8')) for piece in pieces], np.int32
    )
    self.token_bytes_V[[ids[name] for name in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')]] = 0
    self.fingerprint = _fingerprint('BertNormalizer BertPreTokenizer WordPiece', *pieces)

  def encode(self, text: str) -> np.ndarray:
    # The batch call, unlike the plain one, does not track where in the text each piece is.
    (encoding,) = self._wordpiece.encode_batch_fast([text], add_special_tokens=False)
    return np.array(encoding.ids, np.int32)

  def decode(self, ids: np.ndarray) -> str:
    """The words of ids, int [N]: EOS becomes a space."""
    return ' '.join(self._wordpiece.decode(ids.tolist()) for ids in _documents(ids, self)).strip()


def _documents(ids: np.ndarray, tokenizer: Tokenizer) -> list[np.ndarray]:
  """Ids cut at every EOS, which falls out; raises ValueError for one outside the vocabulary."""
  ids = np.asarray(ids, np.int64)
  outside = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
  if outside.size:
    raise ValueError(
      f'id {outside[0]} is not in {tokenizer.name!r}; ids run from 0 to {tokenizer.vocab_size - 1}'
    )
  documents = np.split(ids, np.flatnonzero(ids == tokenizer.eos_id))
  return [document[document != tokenizer.eos_id] for document in documents]


def _fingerprint(*parts: str) -> str:
  return hashlib.sha256('\n'.join(parts).encode('utf-8')).hexdigest()


_TOKENIZERS = {kind.name: kind for kind in (ByteTokenizer, Gpt2Tokenizer, BertTokenizer)}
# Of a `Tokenizer`.
_PARTS = (
  'name', 'vocab_size', 'eos_id', 'bos_id', 'fingerprint', 'token_bytes_V', 'encode', 'decode',
)  # fmt: skip
OWN = frozenset(_TOKENIZERS)
REGISTERED: dict[str, Callable[[], Tokenizer]] = {}  # see `armd_jax.register`


def get_tokenizer(name: str) -> Tokenizer:
  """The tokenizer of that name, which may be the path of a tokenizer.json.

  Raises:
    UserError: for an unknown name, or a vocabulary that is nowhere to be had.
  """
  if name in REGISTERED:
    return _registered(name)
  if name not in _TOKENIZERS and tokenizer_file.is_file(name):
    return tokenizer_file.FileTokenizer(name)
  return _kind(name)()


def vocab_size(name: str) -> int:
  """V of the tokenizer of that name; the vocabulary of the package's own need not be there.

  Raises:
    UserError: for an unknown name.
  """
  return (_kind(name) if name in _TOKENIZERS else get_tokenizer(name)).vocab_size


def _registered(name: str) -> Tokenizer:
  try:
    made = REGISTERED[name]()
  except Exception as error:  # whatever a user's function raises
    raise UserError(
      f'the tokenizer {name!r} cannot be made ({type(error).__name__}: {sentence(error)}); mend it'
    ) from error
  lacks = sorted(part for part in _PARTS if not hasattr(made, part))
  if lacks or made.name != name:
    fix = f'give it {", ".join(lacks)}' if lacks else 'call it that'
    raise UserError(f'what is registered as tokenizer {name!r} is another thing ({made!r}); {fix}')
  return made


def _kind(name: str) -> type[ByteTokenizer | Gpt2Tokenizer | BertTokenizer]:
  if name not in _TOKENIZERS:
    known = ', '.join(map(repr, sorted(_TOKENIZERS.keys() | REGISTERED.keys())))
    raise UserError(
      f'tokenizer {name!r} is unknown; write one of {known}, or the path of a tokenizer.json'
    )
  return _TOKENIZERS[name]

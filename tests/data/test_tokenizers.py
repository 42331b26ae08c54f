"""Tokenizers: what every vocabulary must obey, and the byte vocabulary itself."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from armd_jax.data import tokenizers
from armd_jax.errors import UserError

TEXTS = st.text(st.characters(codec='utf-8'), max_size=50)
NAMES = sorted(tokenizers._TOKENIZERS)


@pytest.mark.parametrize('name', NAMES)
@hypothesis.settings(derandomize=True, max_examples=200, deadline=None)
@hypothesis.given(text=TEXTS)
def test_round_trip(name, text):
  tokenizer = tokenizers.get_tokenizer(name)
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert np.all((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eos_id))
  assert tokenizer.token_bytes_V[ids].sum() == len(text.encode('utf-8'))


@pytest.mark.parametrize('name', NAMES)
def test_description_is_consistent(name):
  tokenizer = tokenizers.get_tokenizer(name)
  assert tokenizer.name == name
  assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
  assert tokenizer.token_bytes_V.shape == (tokenizer.vocab_size,)
  assert tokenizer.token_bytes_V.dtype == np.int32
  assert tokenizer.token_bytes_V[tokenizer.eos_id] == 0
  int(tokenizer.fingerprint, 16)


def test_bytes_are_their_own_ids():
  tokenizer = tokenizers.ByteTokenizer()
  assert tokenizer.vocab_size == 257 and tokenizer.eos_id == 256
  assert tokenizer.encode('a\x00é').tolist() == [97, 0, 0xC3, 0xA9]
  assert tokenizer.encode('').tolist() == []
  assert tokenizer.decode([]) == ''


def test_decode_drops_nothing_silently():
  tokenizer = tokenizers.ByteTokenizer()
  eos = tokenizer.eos_id
  assert tokenizer.decode([eos, 97, eos, eos, 98, eos]) == 'ab'
  # Every byte that is no text on its own shows as one replacement character.
  for byte in range(0x80, 0x100):
    assert tokenizer.decode([97, byte, 98]) == 'a\ufffdb'
  # The two halves of 'é' are a character, but not across the end of a document.
  assert tokenizer.decode([0xC3, 0xA9]) == 'é'
  assert tokenizer.decode([0xC3, eos, 0xA9]) == '\ufffd\ufffd'


@pytest.mark.parametrize('bad', [-1, 257, 353])
def test_an_id_outside_the_vocabulary_is_an_error(bad):
  with pytest.raises(ValueError, match=f'id {bad} '):
    tokenizers.ByteTokenizer().decode([97, bad])


def test_fingerprint_stays_and_follows_the_ids():
  class Reversed(tokenizers.ByteTokenizer):
    def encode(self, text):
      return 255 - super().encode(text)

  class OtherEos(tokenizers.ByteTokenizer):
    vocab_size, eos_id = 300, 299

  fingerprint = tokenizers.ByteTokenizer().fingerprint
  assert fingerprint == tokenizers.ByteTokenizer().fingerprint
  assert len({fingerprint, Reversed().fingerprint, OtherEos().fingerprint}) == 3
  # Checkpoints hold it: a change here orphans them.
  assert fingerprint.startswith('c4a0cac712ede041')


def test_unknown_name():
  with pytest.raises(UserError, match=r"'byte' is unknown; write one of 'bytes'"):
    tokenizers.get_tokenizer('byte')

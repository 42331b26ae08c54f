"""Tokenizers: what every vocabulary must obey, the byte vocabulary, and the official ids."""

import functools
import re
import sys
import unicodedata

import corpora
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from armd_jax.data import sources, tokenizers, vocabularies
from armd_jax.errors import UserError

TEXTS = st.text(st.characters(codec='utf-8'), max_size=50)
VOCABULARIES = corpora.SHARED / 'tokenizers'
NAMES = [
  name if name == 'bytes' else pytest.param(name, marks=corpora.needs_shared)
  for name in sorted(tokenizers._TOKENIZERS)
]
LOSSLESS = NAMES[1:]


@pytest.fixture(autouse=True)
def official_files(monkeypatch):
  monkeypatch.setenv(vocabularies.FOLDER_VARIABLE, str(VOCABULARIES))


@functools.cache
def tokenizer_of(name):
  return tokenizers.get_tokenizer(name)


@functools.cache
def real_texts():
  """The beginnings of documents of each file: prose, verse, encyclopaedia."""
  texts = []
  for path in sorted((corpora.SHARED / 'train').glob('*.txt')):
    texts += [text[:2000] for text in sources.load_documents(str(path)).texts[:40]]
  return texts


@pytest.mark.parametrize('name', LOSSLESS)
@hypothesis.settings(derandomize=True, max_examples=200, deadline=None)
@hypothesis.given(text=TEXTS)
def test_round_trip(name, text):
  tokenizer = tokenizer_of(name)
  ids = tokenizer.encode(text)
  assert ids.dtype == np.int32 and ids.ndim == 1
  assert tokenizer.decode(ids) == text
  assert np.all((ids >= 0) & (ids < tokenizer.vocab_size) & (ids != tokenizer.eos_id))
  assert tokenizer.token_bytes_V[ids].sum() == len(text.encode('utf-8'))


@pytest.mark.parametrize('name', NAMES)
def test_description_is_consistent(name):
  tokenizer = tokenizer_of(name)
  assert tokenizer.name == name
  assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
  assert tokenizer.token_bytes_V.shape == (tokenizer.vocab_size,)
  assert tokenizer.token_bytes_V.dtype == np.int32
  assert tokenizer.token_bytes_V[[tokenizer.eos_id, tokenizer.bos_id]].tolist() == [0, 0]
  assert 0 <= tokenizer.bos_id < tokenizer.vocab_size
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
  with pytest.raises(UserError, match=r"'byte' is unknown; write one of .*'bytes'"):
    tokenizers.get_tokenizer('byte')


@corpora.needs_shared
def test_gpt2_ids_are_the_official_ones():
  """Against another implementation, out of the vocabulary's other file of merges."""
  import tokenizers as official

  files = str(VOCABULARIES / 'gpt2/encoder.json'), str(VOCABULARIES / 'gpt2/vocab.bpe')
  reference = official.ByteLevelBPETokenizer(*files)
  gpt2 = tokenizer_of('gpt2')
  assert gpt2.encode('Hello world').tolist() == [15496, 995]
  assert gpt2.vocab_size == 50257 and gpt2.eos_id == 50256
  odd = [
    "  two  spaces \n\n\n and 'quotes' they're 1234 naïve\u3000東京 🙂\x00\r\n\t ",
    '',
    ' ',
    '\n ',
  ]
  for text in [*real_texts(), *odd]:
    assert gpt2.encode(text).tolist() == reference.encode(text).ids, text


SPACES = ''.join(c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace())
MIXED = st.text(st.sampled_from([*SPACES, *"  \n\n\nas'1!\u200b"]))


@corpora.needs_shared
@hypothesis.settings(derandomize=True, max_examples=500, deadline=None)
@hypothesis.given(text=MIXED)
def test_gpt2_cuts_long_space_where_its_pattern_does(text):
  """With every run of two and more cut apart, ids are those of the text in one piece."""
  gpt2 = tokenizer_of('gpt2')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tokenizers, '_LONG_SPACE', re.compile(tokenizers._SPACE + '{2,}'))
    assert gpt2.encode(text).tolist() == gpt2._bpe.encode_ordinary(text)


@corpora.needs_shared
@pytest.mark.parametrize('space', ['\n', ' ', '\r\n', '\u3000', '\t \xa0'])
def test_gpt2_takes_any_amount_of_space(space):
  gpt2 = tokenizer_of('gpt2')
  text = f'a{space * (1_000_000 // len(space))}b'
  assert gpt2.decode(gpt2.encode(text)) == text
  for count in (333, 500, 999, 1000, 1001, 5000):
    text = f'a {space * count}b {space * count}1'
    assert gpt2.encode(text).tolist() == gpt2._bpe.encode_ordinary(text)


@corpora.needs_shared
def test_gpt2_end_of_text_is_no_text():
  gpt2 = tokenizer_of('gpt2')
  ids = gpt2.encode('<|endoftext|>')
  assert gpt2.eos_id not in ids and gpt2.decode(ids) == '<|endoftext|>'
  assert gpt2.decode([15496, 50256, 995]) == 'Hello world'
  assert gpt2.decode(gpt2.encode('é')[:1].tolist()) in ('é', '\ufffd')
  with pytest.raises(ValueError, match="id 50257 is not in 'gpt2'"):
    gpt2.decode([50257])


@corpora.needs_shared
def test_gpt2_fingerprint_stays():
  # Prepared corpora hold it: a change here orphans them.
  assert tokenizer_of('gpt2').fingerprint.startswith('7e211b718c51cff3')
  assert tokenizer_of('bert-base-uncased').fingerprint.startswith('8b7330c2e0586519')


def wordpiece(text, ids):
  """BERT's uncased tokenisation, from its description: words and signs, then longest matches."""
  text = ''.join(
    c for c in unicodedata.normalize('NFD', text.lower()) if unicodedata.category(c) != 'Mn'
  )
  is_sign = lambda c: unicodedata.category(c)[0] == 'P' or (c.isascii() and not c.isalnum())
  words = ''.join(f' {c} ' if is_sign(c) else c for c in text.replace('\n', ' ')).split()
  found = []
  for word in words:
    pieces, begin = [], 0
    while begin < len(word):
      options = (
        end for end in range(len(word), begin, -1) if '##' * (begin > 0) + word[begin:end] in ids
      )
      end = next(options, None)
      if end is None:
        pieces = ['[UNK]']
        break
      pieces.append('##' * (begin > 0) + word[begin:end])
      begin = end
    found += [ids[piece] for piece in pieces]
  return found


@corpora.needs_shared
def test_bert_ids_are_the_official_ones():
  """Against the official class, and against the algorithm as its paper tells it."""
  import tokenizers as official

  file = VOCABULARIES / 'bert-base-uncased/vocab.txt'
  reference = official.BertWordPieceTokenizer(str(file))
  ids = {piece: number for number, piece in enumerate(file.read_text('utf-8').splitlines())}
  bert = tokenizer_of('bert-base-uncased')
  assert bert.encode('Hello world').tolist() == [7592, 2088]
  assert (bert.vocab_size, bert.bos_id, bert.eos_id) == (30522, ids['[CLS]'], ids['[SEP]'])
  for text in [*real_texts(), "Unaffable NAÏVE 東京 🙂, it's  $5!", '']:
    found = bert.encode(text).tolist()
    assert found == reference.encode(text, add_special_tokens=False).ids, text
    if text.isascii():
      assert found == wordpiece(text, ids), text


@corpora.needs_shared
def test_bert_marks_in_a_text_are_text():
  bert = tokenizer_of('bert-base-uncased')
  assert bert.encode('[SEP]').tolist() == bert.encode('[ sep ]').tolist()
  assert bert.decode([*bert.encode('one'), 102, *bert.encode('Two!')]) == 'one two!'
  # Letters, not spaces, are what its pieces stand for.
  assert bert.token_bytes_V[bert.encode('unaffable café')].sum() == len('unaffablecafe')

"""Packing: documents ended by EOS, cut as SEDD and as LM1B-wrap, and the bytes of the text."""

import corpora
import numpy as np
import pytest

from armd_jax.data import packing, sources, tokenizers
from armd_jax.data.packing import Packing
from armd_jax.errors import UserError

TOKENIZER = tokenizers.ByteTokenizer()


class Begins(tokenizers.ByteTokenizer):
  """Bytes with a BOS of its own."""

  vocab_size, bos_id = 258, 257


def test_windows_hold_the_text_and_an_eos_after_each_document():
  texts = ['abc', '', 'né', 'z' * 20]
  windows = packing.pack(texts, TOKENIZER, Packing(5))
  expected = [i for text in texts for i in [*text.encode(), 256]]
  assert windows.shape == (len(expected) // 5, 5)
  assert windows.ravel().tolist() == expected[: windows.size]
  assert len(expected) - windows.size < 5


@pytest.mark.parametrize(
  ('vocab_size', 'dtype'), [(256, 'uint8'), (257, 'uint16'), (65536, 'uint16'), (65537, 'uint32')]
)
def test_dtype_is_the_smallest_that_fits(vocab_size, dtype):
  class Wide(tokenizers.ByteTokenizer):
    eos_id = vocab_size - 1

  Wide.vocab_size = vocab_size
  windows = packing.pack(['abc'], Wide(), Packing(2))
  assert windows.dtype == dtype
  assert windows[1].tolist() == [ord('c'), vocab_size - 1]


def test_a_text_shorter_than_a_window_is_an_error():
  with pytest.raises(UserError, match='the held-out text has 4 tokens, fewer than one window of 5'):
    packing.pack(['abc'], TOKENIZER, Packing(5), 'the held-out text')
  with pytest.raises(UserError, match='has 0 tokens'):
    packing.pack([], TOKENIZER, Packing(5))
  with pytest.raises(UserError, match='window length is 0'):
    packing.get_packing('joined', 0, TOKENIZER)
  assert packing.pack(['abc'], TOKENIZER, Packing(4)).shape == (1, 4)


def test_bytes_of_the_scored_text():
  texts = ['naïve', 'x' * 9, '…' * 4]  # windows of 3 cut characters in two
  windows = packing.pack(texts, TOKENIZER, Packing(3))
  assert packing.text_bytes(windows, TOKENIZER) == windows.size - 3 == len(''.join(texts).encode())
  assert isinstance(packing.text_bytes(windows, TOKENIZER), int)

  class Doubled(tokenizers.ByteTokenizer):  # every id stands for two bytes
    def __init__(self):
      super().__init__()
      self.token_bytes_V = 2 * self.token_bytes_V

  assert packing.text_bytes(windows, Doubled()) == 2 * np.sum(windows != 256)


def test_wrapped_windows_begin_with_bos_and_end_with_eos():
  texts = ['abc', 'de', 'z' * 20]
  stream = [i for text in texts for i in [*text.encode(), 256]]
  wrapped = packing.get_packing('wrapped', 7, Begins())
  windows = packing.pack(texts, Begins(), wrapped)
  assert windows.shape == (len(stream) // 5, 7) and windows.dtype == np.uint16
  assert set(windows[:, 0]) == {257} and set(windows[:, -1]) == {256}
  assert windows[:, 1:-1].ravel().tolist() == stream[: 5 * len(windows)]
  # Neither of the two is text.
  assert packing.text_bytes(windows[:1], Begins()) == 4 and stream[3] == 256
  assert packing.get_packing('wrapped', 7, TOKENIZER) == Packing(7, (256,), (256,))


def test_wrapping_takes_room():
  with pytest.raises(UserError, match=r'has 4 tokens, fewer than one window of 7; .* at most 6'):
    packing.pack(['abc'], Begins(), packing.get_packing('wrapped', 7, Begins()))
  assert len(packing.pack(['abc'], Begins(), packing.get_packing('wrapped', 6, Begins()))) == 1
  with pytest.raises(UserError, match='window length is 2; write at least 3'):
    packing.get_packing('wrapped', 2, TOKENIZER)
  with pytest.raises(
    UserError, match="packing 'wrap' is unknown; write one of 'joined', 'wrapped'"
  ):
    packing.get_packing('wrap', 8, TOKENIZER)


@corpora.needs_shared
def test_real_text_survives_packing():
  documents = sources.load_documents(str(corpora.SHARED / 'train/moby_dick.txt'))
  windows = packing.pack(documents.texts, TOKENIZER, Packing(256))
  text = ''.join(documents.texts)
  decoded = TOKENIZER.decode(windows.ravel())
  assert text.startswith(decoded[:-1])  # the last character may be cut
  assert documents.num_bytes - 256 < packing.text_bytes(windows, TOKENIZER) <= documents.num_bytes

"""Zero-shot protocols: which rows end up in which windows, and what is dropped."""

import corpora
import numpy as np
import pytest

from armd_jax.data.tokenizers import ByteTokenizer, get_tokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation import protocols
from armd_jax.evaluation.protocols import PROTOCOLS
from armd_jax.evaluation.texts import TEXTS, read_rows

BYTES = ByteTokenizer()
EOS = BYTES.eos_id


def test_joined_windows_hold_rows_and_their_eos():
  windows = protocols.windows(PROTOCOLS['sedd'], TEXTS['ptb'], ['ab', 'c', 'defg'], BYTES, 4)
  a = ord('a')
  assert windows.tolist() == [[a, a + 1, EOS, a + 2], [EOS, a + 3, a + 4, a + 5]]


def test_wrapped_windows_begin_and_end_with_the_special_token():
  windows = protocols.windows(PROTOCOLS['mdlm'], TEXTS['ptb'], ['ab', 'c', 'defg'], BYTES, 5)
  assert windows[:, 0].tolist() == windows[:, -1].tolist() == [EOS] * 3
  whole = protocols.windows(PROTOCOLS['sedd'], TEXTS['ptb'], ['ab', 'c', 'defg'], BYTES, 9)
  assert windows[:, 1:-1].ravel().tolist() == whole[0].tolist()


def test_rows_are_grouped_and_leave_their_remainders():
  """2,001 rows of two ids each: two groups of 2,000 ids and one of 2, of which windows of 3 keep
  1,998, 1,998 and 0; joined without groups they would keep 4,002."""
  rows = ['x'] * 2001
  windows = protocols.windows(PROTOCOLS['radd'], TEXTS['ptb'], rows, BYTES, 3)
  assert windows.size == 2 * 1998
  assert windows[0].tolist() == [ord('x'), EOS, ord('x')]
  assert windows[666].tolist() == windows[0].tolist()  # the second group begins anew


def test_rows_are_detokenised():
  windows = protocols.windows(PROTOCOLS['sedd'], TEXTS['lm1b'], ['a , b'], BYTES, 5)
  assert BYTES.decode(windows[0]) == 'a, b'


def test_too_short():
  with pytest.raises(UserError, match='PTB has 1 rows, too few for one window of 64 tokens'):
    protocols.windows(PROTOCOLS['sedd'], TEXTS['ptb'], ['short'], BYTES, 64)


def test_splits():
  split = lambda protocol, text: PROTOCOLS[protocol].split_of(TEXTS[text])
  assert split('radd', 'wikitext2') == 'train'
  assert split('radd', 'wikitext103') == 'test'
  assert split('mdlm', 'wikitext2') == split('sedd', 'ptb') == 'validation'
  assert {split(name, 'lambada') for name in PROTOCOLS} == {'test'}


def test_sources():
  sources = protocols.sources_of(PROTOCOLS['mdlm'], {'lambada': '', 'ptb': 'ptb.txt'})
  assert sources == {'lambada': 'tfds:lambada#test', 'ptb': 'ptb.txt'}
  with pytest.raises(UserError, match='PTB is not among the sets of tensorflow-datasets'):
    protocols.sources_of(PROTOCOLS['mdlm'], {'ptb': ''})
  with pytest.raises(UserError, match="no text 'pdb'"):
    protocols.sources_of(PROTOCOLS['mdlm'], {'pdb': ''})


@corpora.needs_shared
@pytest.mark.parametrize('name', sorted(PROTOCOLS))
def test_real_wikitext(name, monkeypatch):
  """Every row's ids are there, in order, but for what the groups leave over."""
  monkeypatch.setenv('ARMD_JAX_VOCABULARIES', str(corpora.SHARED / 'tokenizers'))
  tokenizer = get_tokenizer('gpt2')
  rows = read_rows(TEXTS['wikitext2'], str(corpora.SHARED / 'eval/wikitext2_raw_test.txt'))
  windows = protocols.windows(PROTOCOLS[name], TEXTS['wikitext2'], rows, tokenizer, 1024)
  wrapped = PROTOCOLS[name].packing == 'wrapped'
  body = windows[:, 1:-1] if wrapped else windows
  assert body.shape[1] == (1022 if wrapped else 1024)
  # Three groups of rows lose less than a window each, and few rows with it.
  assert len(rows) - 100 < np.sum(body == tokenizer.eos_id) <= len(rows)
  assert tokenizer.decode(body[0]).startswith(' = Robert Boulter =\n Robert Boulter is an English')

"""GPT-2 as a judge says what GPT-2 says, whatever windows are read together."""

import json

import corpora
import numpy as np
import pytest
import tokenizers
from tiny_gpt2 import WORDS, N, V, arrays, reference, write, write_words

from armd_jax.errors import UserError
from armd_jax.evaluation import gpt2_judge, judging, quality

LENGTHS = (3, 8, 2, 5, 8)
WINDOWS = [np.random.RandomState(2).randint(V, size=length) for length in LENGTHS]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = write(tmp_path_factory.mktemp('gpt2'), arrays())
  write_words(folder)
  return folder


@pytest.fixture(scope='module')
def gpt2(folder):
  return judging.open_judge(str(folder))


def test_every_id_but_the_first_is_scored(gpt2, monkeypatch):
  """Padding behind a window and the others in its batch change nothing."""
  assert isinstance(gpt2, gpt2_judge.Gpt2Judge) and gpt2.context == N
  monkeypatch.setattr(gpt2_judge, '_TOKENS_AT_ONCE', 2 * N)  # three batches
  for ids_T, nats_T in zip(WINDOWS, gpt2.nats(WINDOWS), strict=True):
    logits_TxV = reference(arrays(), ids_T)[:-1]
    log_p_TxV = logits_TxV - np.log(np.exp(logits_TxV).sum(-1, keepdims=True))
    assert nats_T.dtype == np.float64
    np.testing.assert_allclose(nats_T, -log_p_TxV[np.arange(len(ids_T) - 1), ids_T[1:]], atol=1e-4)


def test_features_are_the_rows_that_read_the_last_id(gpt2):
  rows_BxE = gpt2.features(WINDOWS)
  for ids_T, row_E in zip(WINDOWS, rows_BxE, strict=True):
    logits_V = row_E @ arrays()['wte.weight'].T
    np.testing.assert_allclose(logits_V, reference(arrays(), ids_T)[-1], atol=1e-4)


def test_nothing_is_told_of_an_empty_window(gpt2):
  with pytest.raises(ValueError, match='a window has no ids'):
    gpt2.features([WINDOWS[0], WINDOWS[0][:0]])


def test_transformers_says_the_same_of_texts(gpt2, folder):
  """Corpus and text by text, tokenised by the same tokenizer.json."""
  reason = 'compares with transformers, which is not installed (the extra "judge" brings it)'
  pytest.importorskip('torch', reason=reason)
  pytest.importorskip('transformers', reason=reason)
  from armd_jax.evaluation.huggingface_judge import HuggingFaceJudge

  texts = [' '.join(WORDS[i] for i in ids_T) for ids_T in [*WINDOWS, np.concatenate(WINDOWS)]]
  theirs = HuggingFaceJudge(str(folder))
  ours_say, they_say = (quality.judge_texts(one, texts) for one in (gpt2, theirs))
  assert ours_say.tokens == they_say.tokens
  assert ours_say.corpus_perplexity == pytest.approx(they_say.corpus_perplexity, rel=1e-4)
  np.testing.assert_allclose(ours_say.perplexities, they_say.perplexities, rtol=1e-4)
  np.testing.assert_allclose(gpt2.features(WINDOWS), theirs.features(WINDOWS), atol=1e-4)


def test_all_of_a_text_is_scored_whatever_the_tokenizer_was_last_used_for(gpt2, folder, tmp_path):
  """Truncation, padding and dropout of pieces are kept in tokenizer.json."""
  write(tmp_path, arrays())
  words = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  words.enable_truncation(3)
  words.enable_padding(length=12)
  words.save(str(tmp_path / 'tokenizer.json'))
  other = judging.open_judge(str(tmp_path))
  for count in (1, 3, 5, 40):
    text = ' '.join((WORDS * 4)[:count])
    np.testing.assert_array_equal(other.encode(text), gpt2.encode(text))
    assert len(other.encode(text)) == count


def test_pieces_are_the_same_each_time(tmp_path):
  write(tmp_path, arrays())
  ids = {piece: number for number, piece in enumerate(['a', 'b', 'ab', 'abab'])}
  model = tokenizers.models.BPE(ids, [('a', 'b'), ('ab', 'ab')], dropout=0.5)
  tokenizers.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
  encode = judging.open_judge(str(tmp_path)).encode
  assert all(encode('abab' * 9).tolist() == [3] * 9 for _ in range(20))


def test_a_text_that_the_tokenizer_has_no_tokens_for_is_refused(tmp_path):
  write(tmp_path, arrays())
  for model in (tokenizers.models.BPE({'a': 0}, []), tokenizers.models.WordLevel({'a': 0})):
    tokenizers.Tokenizer(model).save(str(tmp_path / 'tokenizer.json'))
    encode = judging.open_judge(str(tmp_path)).encode
    assert encode('a').tolist() == [0]
    with pytest.raises(UserError, match=r"tokenizer.json' has no token for '\?'"):
      encode('?')


@corpora.needs_shared
@pytest.mark.parametrize('name', ['vocab.json', 'vocab.txt', 'added_tokens.json', 'merges.txt'])
def test_a_vocabulary_that_is_not_used_is_refused(tmp_path, monkeypatch, name):
  monkeypatch.setenv('ARMD_JAX_VOCABULARIES', str(corpora.SHARED / 'tokenizers'))
  official = json.loads((corpora.SHARED / 'tokenizers/gpt2/encoder.json').read_text('utf-8'))
  (tmp_path / 'vocab.json').write_text(json.dumps(official))
  assert gpt2_judge._encoder(tmp_path, 50257)('Hello world').tolist() == [15496, 995]
  swapped = official | {'Hello': official['world'], 'world': official['Hello']}
  (tmp_path / name).write_text(json.dumps(swapped | {'new': 3} if name[0] == 'a' else swapped))
  if name == 'merges.txt':  # the order of GPT-2's merges is that of its ids
    assert gpt2_judge._encoder(tmp_path, 50257)('Hello world').tolist() == [15496, 995]
    return
  with pytest.raises(UserError, match=f"{name} is not GPT-2's vocabulary; put the tokenizer.json"):
    gpt2_judge._encoder(tmp_path, 50257)


def test_a_vocabulary_of_another_model_is_refused(folder, tmp_path):
  write(tmp_path, arrays())
  with pytest.raises(UserError, match="of 13 tokens, not GPT-2's 50257, and no"):
    judging.open_judge(str(tmp_path))
  (tmp_path / 'tokenizer.json').write_text('{')
  with pytest.raises(UserError, match=r'cannot read .*tokenizer.json .*; fetch it anew'):
    judging.open_judge(str(tmp_path))
  words = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  words.add_tokens(['another'])
  words.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(UserError, match='has 14 tokens but the model 13; take both from one model'):
    judging.open_judge(str(tmp_path))

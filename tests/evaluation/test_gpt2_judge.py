"""GPT-2 as a judge says what GPT-2 says, whatever windows are read together."""

import json

import numpy as np
import pytest
import tokenizers
from tiny_gpt2 import N, V, arrays, reference, write

from armd_jax.errors import UserError
from armd_jax.evaluation import gpt2_judge, judging, quality

WORDS = [f'w{number}' for number in range(V)]
LENGTHS = (3, 8, 2, 5, 8)
WINDOWS = [np.random.RandomState(2).randint(V, size=length) for length in LENGTHS]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = write(tmp_path_factory.mktemp('gpt2'), arrays())
  ids = {word: number for number, word in enumerate(WORDS)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='w0'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  words.save(str(folder / 'tokenizer.json'))
  # Without it transformers makes a tokenizer of GPT-2's kind, whatever tokenizer.json holds.
  kind = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(kind))
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

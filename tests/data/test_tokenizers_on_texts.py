"""GPT-2's ids of whole evaluation texts are the official ones, by two other implementations."""

import corpora
import pytest

from armd_jax.data import tokenizers
from armd_jax.evaluation.detokenizers import detokenize
from armd_jax.evaluation.texts import TEXTS, read_rows

pytestmark = [pytest.mark.drill, corpora.needs_shared]
FILES = {
  'lambada': 'lambada_openai_test.jsonl',
  'wikitext2': 'wikitext2_raw_test.txt',
  'lm1b': 'lm1b_subset.txt',
}


@pytest.mark.parametrize('name', FILES)
def test_every_row(name, monkeypatch):
  """As it is, and put together again."""
  import tiktoken
  import tokenizers as hugging_face
  from tiktoken.load import load_tiktoken_bpe
  from tiktoken_ext.openai_public import r50k_pat_str

  folder = corpora.SHARED / 'tokenizers'
  monkeypatch.setenv('ARMD_JAX_VOCABULARIES', str(folder))
  ours = tokenizers.get_tokenizer('gpt2')
  files = [str(folder / 'gpt2' / file) for file in ('encoder.json', 'vocab.bpe')]
  by_merges = hugging_face.ByteLevelBPETokenizer(*files)
  ranks = load_tiktoken_bpe(str(folder / 'gpt2/r50k_base.tiktoken'))
  by_ranks = tiktoken.Encoding(
    'r50k_base', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}
  )
  rows = read_rows(TEXTS[name], str(corpora.SHARED / 'eval' / FILES[name]))
  assert len(rows) > 2000
  rows += [detokenize(TEXTS[name].detokenizer, row) for row in rows]
  expected = [encoding.ids for encoding in by_merges.encode_batch(rows)]
  for row, ids, same in zip(rows, expected, by_ranks.encode_ordinary_batch(rows), strict=True):
    assert ours.encode(row).tolist() == ids == same, row

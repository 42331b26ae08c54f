"""Models of any kind that transformers opens are judges, whatever their configs lack."""

import types

import numpy as np
import pytest
from tiny_gpt2 import WORDS, write_words

from armd_jax.evaluation import huggingface_judge, judging, quality

SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'vocab_size': 16}
HEADS = {'num_attention_heads': 2, 'num_key_value_heads': 2, 'intermediate_size': 32}
TEXT = SIZES | HEADS | {'head_dim': 8}
PICTURES = {
  'hidden_size': 16, 'intermediate_size': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
  'image_size': 28, 'patch_size': 14,
}  # fmt: skip
# By class of config: its fields, and how many tokens the judge reads at once.
MODELS = {
  'BloomConfig': ({'hidden_size': 16, 'n_layer': 2, 'n_head': 2, 'vocab_size': 16}, 1024),
  'MambaConfig': (SIZES | {'state_size': 4}, 1024),
  'MptConfig': (
    {'d_model': 16, 'n_layers': 2, 'n_heads': 2, 'vocab_size': 16, 'max_seq_len': 8},
    8,
  ),
  'LlamaConfig': (TEXT | {'max_position_embeddings': 4096}, 1024),
  'Gemma3Config': (
    {
      'text_config': TEXT | {'max_position_embeddings': 8},
      'vision_config': PICTURES, 'mm_tokens_per_image': 4, 'image_token_index': 15,
    },
    8,
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', MODELS)
def test_a_model_with_or_without_positions_is_a_judge(tmp_path, name):
  reason = 'opens models in transformers, which is not installed (the extra "judge" brings it)'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  described, context = MODELS[name]
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**described))
  model.save_pretrained(tmp_path)
  write_words(tmp_path)
  judge = judging.open_judge(str(tmp_path))
  assert judge.context == context
  verdict = quality.judge_texts(judge, [' '.join(WORDS * 2), 'w1 w2'])
  assert verdict.tokens == (25 if context == 1024 else 22) + 1  # 26 words are 8 + 8 + 8 + 2
  assert 1 < verdict.corpus_perplexity < 1e3
  assert judge.features([np.array([1, 2, 3]), np.array([4])]).shape == (2, 16)
  with pytest.raises(ValueError, match='a window has no ids'):
    judge.features([np.array([], int)])


@pytest.mark.parametrize(
  ('stated', 'context'),
  [
    ({}, 1024),
    ({'max_position_embeddings': None}, 1024),
    ({'max_position_embeddings': -1}, 1024),
    ({'max_position_embeddings': 512}, 512),
    ({'max_seq_len': 256}, 256),
    ({'max_position_embeddings': 32768}, 1024),
  ],
)
def test_the_context_is_what_the_config_of_its_text_states(stated, context):
  config = types.SimpleNamespace(
    max_position_embeddings=3, get_text_config=lambda: types.SimpleNamespace(**stated)
  )
  assert huggingface_judge._context(config) == context

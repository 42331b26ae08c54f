"""ARMD with GPT-2 small's shape on LM1B (paper section 6): packed to 128 tokens, 1M steps.

  python -m armd_jax.data.prepare --source=tfds:lm1b --tokenizer=bert-base-uncased --out=work/lm1b
  python -m armd_jax.train --config=experiments/lm1b_small.py --workdir=work/lm1b_small

Twins and variants as in owt_small.py: lm1b_small.py:family=mdlm, lm1b_small.py:strided_steps=50000,
lm1b_small.py:family=bd3lm,block=4, lm1b_small.py:family=setdlm,block=4, lm1b_small.py:runlocal.

Hardware and time: python -m armd_jax.aot --config=experiments/lm1b_small.py --topology=v5p:8x8x16,
or --target=h100, prints whether it fits and the least time a step takes; nothing of it was run.
Published perplexity: 23.64 after 300K steps, 22.36 after 1M; D3PM 82.34, SEDD 32.68,
MDLM 31.78, Transformer 22.83. BD3-LM, after 850K steps of MDLM and 150K of its own: 28.23 with
blocks of 4 tokens, 30.60 with blocks of 16.
Eso-LM (lm1b_small.py:family=esolm; alpha_0 of 0, 0.0625, 0.125,
0.25, 0.5 or 1, the published 1M steps): a bound of 24.53, in an index of results that does not name
of which alpha_0.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(length=128, num_two_stream_layers=6, remat='dots')
  config.order.update(ar_steps=100_000, perm_steps=300_000, max_shuffled=8)
  config.data.update(source='work/lm1b', tokenizer='bert-base-uncased', packing='wrapped')
  config.train.update(steps=1_000_000)
  recipes.finish(config, options, 'work/lm1b_small')
  return config

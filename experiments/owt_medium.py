"""ARMD with GPT-2 medium's size on OpenWebText (paper section 6): 512 x 1024 tokens, 300K steps.

  python -m armd_jax.data.prepare --source='openwebtext/*.parquet' --tokenizer=gpt2 --out=work/owt
  python -m armd_jax.train --config=experiments/owt_medium.py --workdir=work/owt_medium

Twins and variants as in owt_small.py: owt_medium.py:family=sedd, owt_medium.py:strided_steps=50000,
owt_medium.py:runlocal.

Hardware and time: python -m armd_jax.aot --config=experiments/owt_medium.py --topology=v5p:8x8x16,
or --target=h100, prints whether it fits and the least time a step takes; nothing of it was run.
Published zero-shot perplexity after 300K steps: LAMBADA 39.08, WikiText2 26.06, PTB 97.75,
WikiText103 25.55, 1BW 43.91; after 120K: 40.62, 27.57, 105.09, 27.09, 45.49. GPT-2: 35.66, 31.80,
123.14, 31.39, 55.72; SEDD 400K: 42.77, 31.04, 87.12, 29.98, 61.19; RADD 400K: 44.10, 30.60, 82.08,
29.29, 60.32.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(num_layers=24, embed_dim=1024, num_heads=16, remat='dots')
  config.data.update(source='work/owt', tokenizer='gpt2')
  config.train.update(steps=300_000)
  recipes.finish(config, options, 'work/owt_medium')
  return config

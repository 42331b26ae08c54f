"""ARMD at 7B parameters, 32 layers x 4096, 32 heads x 128: how the code scales.

  python -m armd_jax.train --config=experiments/owt_7b.py --workdir=work/owt_7b

Not a published run: the recipe is GPT-2 medium's. Hardware and time: a pod, such as 1024 v5p chips;
python -m armd_jax.aot --config=experiments/owt_7b.py --topology=v5p:8x8x16 prints memory and time.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(
    num_layers=32, embed_dim=4096, num_heads=32, dropout=0.0, remat='full',
  )  # fmt: skip
  config.data.update(source='work/owt', tokenizer='gpt2')
  config.train.update(steps=300_000)
  config.mesh.update(data=1, fsdp=-1)
  recipes.finish(config, options, 'work/owt_7b')
  return config

"""ARMD and its baselines on the 27 characters of text8: 512 x 256 characters, 1M steps.

  head -c 90000000 text8 > work/text8_train.txt; tail -c 5000000 text8 > work/text8_test.txt
  python -m armd_jax.data.prepare --source=work/text8_train.txt \\
    --held_out_source=work/text8_test.txt --tokenizer=bytes --out=work/text8
  python -m armd_jax.train --config=experiments/text8.py:family=sedd --workdir=work/text8_sedd

Twins and variants as in owt_small.py: text8.py:family=mdlm, text8.py:strided_steps=50000,
text8.py:runlocal. A character is a byte, and nats per byte over ln 2 its bits.

Hardware and time: python -m armd_jax.aot --config=experiments/text8.py --target=h100 prints whether
it fits and the least time a step takes; nothing of it was run. ARMD has no published number here
(the order schedule is LM1B's). Published bits per character (table 1 of SEDD, arXiv 2310.16834):
auto-regressive 1.23, D3PM-absorb at most 1.45, SEDD-absorb at most 1.39.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(length=256, remat='dots')
  config.order.update(ar_steps=100_000, perm_steps=300_000, max_shuffled=8)
  config.data.update(source='work/text8', tokenizer='bytes')
  config.train.update(steps=1_000_000)
  recipes.finish(config, options, 'work/text8')
  return config

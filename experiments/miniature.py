"""The comparison of systems, small enough for two CPU cores: bytes, 4 layers x 128, 720 steps.

  make reproduce-mini TEXT='books/*.txt'          # all systems, seeds, fine-tunes and ablations
  python -m armd_jax.train --config=experiments/miniature.py:family=mdlm --workdir=DIR

The order schedule is the paper's for OpenWebText in proportion: of the steps, i_AR and i_perm are
the shares 9K and 48K have of 400K; of the length, rho is the share 32 has of 1024. The learning
rate is chosen for every system by the reproduction's own sweep. What differs from the published
recipe is `recipes.ours`, and its ablations show what each change is worth. `armd_jax.reproduce`
derives all its other sizes from this file: checkpoints, fine-tunes, longer texts, ablations.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config(options: str = '') -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(
    length=128, num_layers=4, embed_dim=128, num_heads=4, dropout=0.0, dtype='float32',
    scan_layers=False, vocab_multiple=1,
  )  # fmt: skip
  config.order.update(ar_steps=16, perm_steps=86, max_shuffled=4)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=40, ema_decay=0.98)
  config.train.update(
    steps=720, batch_size=16, loss_chunk=128, log_every=20, eval_every=180, eval_windows=32,
    checkpoint_every=180,
  )  # fmt: skip
  recipes.finish(config, options, 'work/miniature')
  return config

"""A small byte-level ARMD that trains in minutes on two CPU cores.

  make quickstart                       # everything: train, fine-tune, measure, generate
  python -m armd_jax.train --config=experiments/quickstart.py --workdir=DIR

The first `order.sbp_start` steps are the base model with the progressive permutation schedule, the
others fine-tune it for strided block-parallel generation.
"""

import ml_collections

from armd_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(
    length=256, num_layers=4, embed_dim=192, num_heads=3, dropout=0.0, dtype='float32'
  )
  config.order.update(ar_steps=300, perm_steps=900, rho=8, sbp_start=1000)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=100, beta2=0.99)
  config.train.update(
    steps=1200, batch_size=16, loss_chunk=256, log_every=20, eval_every=300, eval_windows=64,
    checkpoint_every=300,
  )  # fmt: skip
  return config

"""A small byte-level ARMD that trains in minutes on two CPU cores.

  make quickstart                       # everything: train, fine-tune, measure, generate
  python -m armd_jax.train --config=experiments/quickstart.py --workdir=DIR

The first `order.strided_start` steps are the base model with the progressive permutation
schedule, the others fine-tune it for strided block-parallel generation. `recipes.ours` is what
differs from the published recipe; docs/reproduction.md has what its changes are worth.
"""

import ml_collections

from armd_jax import recipes
from armd_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
  config = default_config()
  config.model.update(
    length=256, num_layers=3, embed_dim=256, num_heads=4, dropout=0.0, dtype='float32',
    scan_layers=False, vocab_multiple=1,
  )  # fmt: skip
  config.order.update(ar_steps=200, perm_steps=700, max_shuffled=8, strided_start=900)
  config.optimizer.update(learning_rate=1.3e-3, warmup_steps=100, beta2=0.99)
  config.train.update(
    steps=1050, batch_size=4, loss_chunk=256, log_every=25, eval_every=150, eval_windows=32,
    checkpoint_every=150,
  )  # fmt: skip
  recipes.ours(config)
  return config

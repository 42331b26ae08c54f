"""The bidirectional transformer of the masked-diffusion baselines: MDLM, D3PM, SEDD, RADD.

Rows are tokens in text order, some of them masked; every row sees every row. It is the same stack
of blocks as the AR model's and ARMD's, so that families of one size differ by their masks, their
objective and, where a family's paper has it, the noise level as an input.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from armd_jax.config import ModelConfig
from armd_jax.models.layers import (
  Dropout,
  Stack,
  View,
  kernel_init,
  make_norm,
  rope_rotation,
  side_by_side,
)
from armd_jax.models.vocabulary import SPECIAL, Vocabulary

Array = jax.Array

MASK = SPECIAL  # is a masked token among ids; it is a learned vector and never predicted

# Where a method gives no noise level the network reads noise 0, as in MDLM's released code: what
# shifts, scales and gates its branches is then learned constants, the only biases there are.
# Without any, a small network stays for long at the frequencies of tokens. (For RADD this is our
# choice; its released layers have biases in the MLP.)
CONDITION_DIM = 128  # width of the noise embedding (SEDD, MDLM)
FREQUENCIES = 128  # of its sinusoids, between 1 and 1e-4 radians per unit of noise (DiT)


class NoiseEmbedding(nn.Module):
  """Sinusoids of the noise level through a two-layer MLP (DiT, as in SEDD)."""

  dtype: str

  @nn.compact
  def __call__(self, noise_B: Array) -> Array:
    """condition_BxC in the compute dtype, from float32 noise levels."""
    frequency = 1e4 ** (-jnp.arange(FREQUENCIES, dtype=jnp.float32) / FREQUENCIES)
    # In float32: D3PM reads steps up to T = 1000, of which bfloat16 knows every fourth.
    angle_BxK = noise_B.astype(jnp.float32)[:, None] * frequency
    x_BxC = jnp.concatenate([jnp.cos(angle_BxK), jnp.sin(angle_BxK)], axis=-1)
    for name in ('noise_in', 'noise_out'):
      dense = nn.Dense(CONDITION_DIM, dtype=self.dtype, kernel_init=kernel_init(1.0), name=name)
      x_BxC = nn.silu(dense(x_BxC))
    return x_BxC


class Denoiser(nn.Module):
  """Predicts every token from the unmasked ones.

  Dropout is on exactly when a 'dropout' key is passed to `apply`.
  """

  config: ModelConfig
  vocab_size: int

  def setup(self):
    c = self.config
    self.vocabulary = Vocabulary(c, self.vocab_size, special='mask')
    self.stack = Stack(c, c.num_layers)
    self.final_norm = make_norm(c)
    self.embedding_dropout = Dropout(c.dropout)
    self.noise_embedding = NoiseEmbedding(c.dtype)

  def __call__(
    self,
    tokens_BxN: Array,
    noise_B: Array | None = None,
    first_B: Array | None = None,
    length_B: Array | None = None,
    index_B: Array | None = None,
  ) -> Array:
    """One denoising pass.

    Args:
      tokens_BxN: int32 ids in text order, `MASK` where masked.
      noise_B: float32 noise level, of a method whose network reads it; None: 0.
      first_B: int32, token given at position 0 (`first_token='given'`), or None. BOS would give
        a bidirectional network nothing, so there is no row for it.
      length_B: int32, tokens of each text, later rows are never seen; None: all.
      index_B: int32, index of each sequence in the whole batch, which its dropout depends on.
    Returns:
      hidden_BxNxE; `logits` of row n predict token n. At unmasked tokens they have a meaning only
      for D3PM, whose auxiliary loss trains them.
    """
    c = self.config
    # A given token is one more row, in front, that all rows see and that nothing is scored at.
    given = 0 if first_B is None else 1
    ids_BxK = tokens_BxN if first_B is None else jnp.append(first_B[:, None], tokens_BxN, axis=1)
    x_BxKxE = self.vocabulary.embed(ids_BxK)
    x_BxKxE = self.embedding_dropout(x_BxKxE, index_B)
    rows = ids_BxK.shape[1]
    length_B = jnp.full(1, tokens_BxN.shape[1]) if length_B is None else length_B
    rotation = rope_rotation(c, jnp.arange(rows)[None] + 1 - given)
    view = View(
      rotation_BxRxNxD2=side_by_side(rotation),
      source_rotation_BxKxD2=rotation,
      lengths_BxRxN=jnp.broadcast_to(
        (length_B + given).astype(jnp.int32)[:, None, None], (length_B.shape[0], 1, rows)
      ),
      index_B=index_B,
      condition_BxC=self.noise_embedding(jnp.zeros(1) if noise_B is None else noise_B),
    )
    x_Bx1xKxE, _ = self.stack(side_by_side(x_BxKxE), view)
    return self.final_norm(x_Bx1xKxE[:, 0, given:])

  def logits(self, hidden: Array) -> Array:
    """float32 logits; see `ARMD.logits`. There is none for the mask (MDLM's SUBS)."""
    return self.vocabulary.logits(hidden)

  def embedding(self) -> Array:
    """The float32 matrix of the logits, `[V padded, E]`; see `Vocabulary.output`."""
    return self.vocabulary.output()

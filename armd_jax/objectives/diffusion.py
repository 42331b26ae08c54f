"""What a masked-diffusion method is: its draws, and the loss and the bound made of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from armd_jax.config import DiffusionConfig
from armd_jax.models.params import Params
from armd_jax.objectives import masking

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Draw:
  """One draw of an objective per sequence.

  Attributes:
    is_masked_BxN: bool, the tokens to be predicted.
    weights_B: float32, of each sequence's sum over them; or of every token, `[B, N]`.
    noise_B: float32, what the network reads; None: it reads no noise.
    weight_of_shown: of every token that is not masked.
  """

  is_masked_BxN: Array
  weights_B: Array
  noise_B: Array | None = None
  weight_of_shown: float = 0.0


class MaskedDiffusion:
  """A method. Its subclasses have `draw`, and change what their paper has otherwise.

  Attributes:
    kind: of the loss of a token, see `weighted_nll`; with 'score_entropy' what the network's scores
      sum to takes part in the sampler, too.
    reads_clean: whether the network reads the text beside its masked copy, see `SetDenoiser`.
  """

  kind = 'cross_entropy'
  reads_clean = False

  def schedule(self, settings: DiffusionConfig) -> masking.Schedule:
    """How fast tokens are masked."""
    return masking.Schedule(settings.schedule)

  def noise(self, settings: DiffusionConfig, t_B: Array) -> Array | None:
    """What the network reads at time t; None: it reads no noise."""
    return None

  def least_time(self, settings: DiffusionConfig) -> float:
    """From which training draws times. Papers with a continuous time leave out the first
    thousandth, where few tokens weigh much."""
    return masking.EPSILON

  def of_the_bound(self, settings: DiffusionConfig) -> DiffusionConfig:
    """With these the objective is the bound, without auxiliary terms."""
    return settings

  def shown_at_the_end(self, settings: DiffusionConfig) -> float:
    """alpha(1), the share of tokens that x_1 shows and that the bound's prior predicts."""
    return self.schedule(settings).epsilon

  def draw(self, u_B: Array, keys_B: Array, num_slots: int, settings: DiffusionConfig) -> Draw:
    """One draw of the objective per sequence.

    Args:
      u_B: float32 in (0, 1], uniform.
      keys_B: one key per sequence, for its mask.
      num_slots: N.
      settings: the process.
    """
    raise NotImplementedError

  def objective(
    self,
    model: Any,
    params: Params,
    text_BxN: Array,
    u_B: Array,
    keys_B: Array,
    settings: DiffusionConfig,
    is_free_BxN: Array | None = None,
    **options,
  ) -> tuple[Array, Array]:
    """The loss of one draw per sequence.

    Args:
      model, params, text_BxN: see `masking.masked_loss`, which takes the options too.
      u_B, keys_B, settings: see `draw`.
      is_free_BxN: bool, the tokens that may be masked; None: all.
    Returns:
      The scaled total, and nats_B, an unbiased estimate of each sequence's objective; of its bound,
      but for the prior, with the settings `of_the_bound`.
    """
    draw = self.draw(u_B, keys_B, model.config.num_slots, settings)
    is_masked_BxN = draw.is_masked_BxN
    if is_free_BxN is not None:
      is_masked_BxN &= is_free_BxN
    return masking.masked_loss(
      model, params, text_BxN, is_masked_BxN, draw.weights_B, noise_B=draw.noise_B,
      kind=self.kind, weight_of_shown=draw.weight_of_shown, reads_clean=self.reads_clean, **options,
    )  # fmt: skip

  def loss(
    self,
    model: Any,
    params: Params,
    text_BxN: Array,
    keys_B: Array,
    count: int,
    index_B: Array,
    **options,
  ) -> tuple[Array, Array]:
    """The training loss of some of a batch's sequences.

    Args:
      model, params, text_BxN: a `Denoiser` and token ids.
      keys_B: one key per sequence.
      index_B: int32, which sequence of the whole batch each is.
      count: sequences of the whole batch; their times are low-discrepancy together.
      **options: of `masking.masked_loss`.
    Returns:
      Mean nats per scored token, as these sequences' share of the whole batch's, and nats_B.
    """
    settings = model.config.diffusion
    time_keys_B, mask_keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)
    return self.objective(
      model,
      params,
      text_BxN,
      masking.times(time_keys_B, index_B, count, self.least_time(settings)),
      mask_keys_B,
      settings,
      scale=1 / (count * model.config.num_slots),
      index_B=index_B,
      **options,
    )

  def bound(
    self,
    model: Any,
    params: Params,
    text_BxN: Array,
    keys_B: Array,
    settings: DiffusionConfig,
    *,
    samples: int,
    loss_chunk: int,
    document: tuple[Array, Array] | None = None,
  ) -> Array:
    """An unbiased estimate of each sequence's upper bound on its negative log-likelihood.

    The objective, with the settings `of_the_bound`, at `samples` low-discrepancy times. Where
    alpha(1) > 0 comes the prior, KL(q(x_1 | x) || p(x_1)): p(x_1) shows each token with probability
    alpha(1), as what the network predicts when all are masked.

    Args:
      model, params, text_BxN: a `Denoiser` and token ids.
      keys_B: one key per sequence.
      settings: the process.
      samples: times per sequence.
      loss_chunk: slots per sequence whose logits exist at once.
      document: is_given_BxN and length_B of texts of which a part is given: the bound is then on
        what is left, given that part. Such a token is never masked, so that the process is that of
        the others alone.
    Returns:
      float32 nats_B per sequence.
    """
    settings = self.of_the_bound(settings)
    batch, slots = text_BxN.shape[0], model.config.num_slots
    is_free_BxN, length_B = jnp.ones((batch, slots), bool), None
    if document is not None:
      is_given_BxN, length_B = document
      is_free_BxN = ~is_given_BxN & (jnp.arange(slots) < length_B[:, None])
    time_keys_B, mask_keys_B = jax.vmap(jax.random.split, out_axes=1)(keys_B)

    def estimate(index):
      fold = jax.vmap(jax.random.fold_in, (0, None))
      u_B = masking.times(fold(time_keys_B, index), index, samples, least=0.0)
      _, nats_B = self.objective(
        model, params, text_BxN, u_B, fold(mask_keys_B, index), settings, is_free_BxN, scale=1.0,
        loss_chunk=loss_chunk, length_B=length_B,
      )  # fmt: skip
      return nats_B

    # One draw after the other, so that memory does not grow with `samples`.
    nats_B = jnp.mean(jax.lax.map(estimate, jnp.arange(samples)), axis=0)
    shown = self.shown_at_the_end(settings)
    if not shown:
      return nats_B
    _, prior_B = masking.masked_loss(
      model,
      params,
      text_BxN,
      is_free_BxN,
      jnp.full(batch, shown, jnp.float32),
      scale=1.0,
      loss_chunk=loss_chunk,
      length_B=length_B,
      noise_B=self.noise(settings, jnp.ones(batch)),
    )
    return nats_B + prior_B

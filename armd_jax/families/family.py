"""What the rest of the code knows of a family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from armd_jax.config import OrderConfig
from armd_jax.objectives.diffusion import MaskedDiffusion

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Draws:
  """The randomness of some sequences of a training step.

  Attributes:
    orders: what generation orders are drawn from.
    step: int32 scalar.
    step_key: of draws that all sequences of the step share.
    keys_M: one key per sequence.
    index_M: int32, which sequence of the whole batch each is.
    count: sequences of the whole batch.
    scored: float32 scalar, tokens of the whole batch that are scored, if texts have marks
      (`data.documents`); None: they have none, and all tokens are.
  """

  orders: OrderConfig
  step: Array
  step_key: Array
  keys_M: Array
  index_M: Array
  count: int
  scored: Array | None = None


@dataclasses.dataclass(frozen=True)
class Family:
  """An entry of `FAMILIES`; along which orders it predicts is `config.model.orders`.

  Attributes:
    network: `(model config, vocab_size) ->` a Flax module with `config`, `vocab_size` and the
      methods `logits` and `embedding`. Along orders it is called as `ARMD` is, else as `Denoiser`.
    loss: `(model, params, text_MxN, draws, loss_chunk=, dropout_key=) -> (total, kinds_2xK)`: the
      mean nats per scored token, as these sequences' share of the whole batch's,
      and what `training.loss_and_gradients` returns of the kinds of orders; zeros without orders.
    generate: `(decoder, request, sampling, streams=, ...) -> (texts, Generated)`, of a
      `decode.requests.Decoder`. Without samplers it also takes `watch`, `order` and `mend`; with
      samplers also `steps` and `sampler`, and it returns a `decode.diffusion.Denoised`.
    shown: how a text is generated, in a sentence of the report, where `{length}` is its tokens.
    bound: `(model, params, text_BxN, keys_B, diffusion settings, samples=, loss_chunk=, document=)
      -> nats_B`, the family's own upper bound on the negative log-likelihood, see
      `MaskedDiffusion.bound`; None: it is measured along orders alone.
    infills: whether what is generated depends on given text behind it.
    samplers: names, the default first; () where texts are generated along orders.
    method: of masked diffusion, where there are samplers.
  """

  network: Callable[..., Any]
  loss: Callable[..., tuple[Array, Array]]
  generate: Callable[..., tuple[list[str], Any]]
  shown: str
  bound: Callable[..., Array] | None = None
  infills: bool = True
  samplers: tuple[str, ...] = ()
  method: MaskedDiffusion | None = None

"""What is to be decoded, and what decoding remembers between steps.

Sequences of a batch may be at different slots; arrays that describe progress are `[B]`, or `[1]`
when all sequences go in step, which lets the caches be written by plain slices.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

from armd_jax.order import GenerationOrder, block_bounds

Array = jax.Array

CACHE_ROWS = 8  # Hopper's kernels take keys by eights: a ragged cache would be copied at every step


@flax.struct.dataclass
class Request:
  """Texts to complete, one per row, in text order.

  Attributes:
    tokens_BxN: int32 ids; only given ones are read.
    given_BxN: bool, which are given.
    length_B: int32, tokens of each text; later positions stay empty.
    first_B: int32, token before each text, for `first_token='given'`; None: BOS or nothing.
  """

  tokens_BxN: Array
  given_BxN: Array
  length_B: Array
  first_B: Array | None = None


@flax.struct.dataclass
class Task:
  """What is to be generated; nothing in it changes while decoding.

  Attributes:
    order: `[B or 1, N]`; given tokens come first, as singletons.
    end_BxN: int32, with the batch size of the order, where the block of each slot ends.
    num_given_B: int32, likewise, leading slots that are given.
    length_B: int32, likewise, slots that are given or generated; later ones are padding.
    first_B: int32 `[B]`, token in BOS's place, or `armd_jax.models.vocabulary.BOS`.
  """

  order: GenerationOrder
  end_BxN: Array
  num_given_B: Array
  length_B: Array
  first_B: Array

  @classmethod
  def of(cls, order: GenerationOrder, num_given_B: Array, length_B: Array, first_B: Array) -> Task:
    """The task of an order."""
    _, end_BxN = block_bounds(order.block_BxN)
    return cls(order, end_BxN, num_given_B, length_B, first_B)


@flax.struct.dataclass
class DecodeState:
  """Progress of a batch.

  Attributes:
    tokens_BxM: int32, tokens in generation order; N slots and room for the padding of a step.
    filled_B: int32 `[B or 1]`, leading slots that hold a given or generated token.
    committed_B: int32 `[B or 1]`, content rows in the caches, BOS included.
    network: the network's caches.
    steps: int32 scalar, forward passes since the prefill.
    margin_B: float32 `[B]`, nats, the closest draw so far; see `step.Generated`.
  """

  tokens_BxM: Array
  filled_B: Array
  committed_B: Array
  network: Any
  steps: Array
  margin_B: Array


def whole_room(num_slots: int, width: int) -> int:
  """Rows of caches for whole texts and the padding of the widest step behind them."""
  up = lambda rows: -rows // CACHE_ROWS * -CACHE_ROWS
  return up(num_slots + up(width))

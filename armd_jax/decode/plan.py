"""How a task is decoded: all that compiled programs depend on beside the model and the shapes.

What a kind of device changes is behind `Form`. The one here is the plain one, of TPUs; GPUs
(`fused.GPU`) and CPUs (`cpu.CPU`) have their own. Nothing else in decoding depends on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from armd_jax.config import ModelConfig
from armd_jax.decode.state import DecodeState
from armd_jax.models.params import Params


@dataclasses.dataclass(frozen=True)
class Form:
  """How a device takes weights, rows and caches.

  Attributes:
    arranges: whether weights are arranged for steps of few rows; otherwise they are read as the
      network has them.
  """

  arranges: bool = False

  def for_steps(self, config: ModelConfig, rows: int) -> Form:
    """The same for one device, which arranges weights if steps of so many rows are faster then."""
    del config, rows
    return self

  def arrange(self, params: Params) -> Params:
    """Weights for steps of few rows, from unrolled ones in the compute type."""
    return params

  def whole(self, params: Params) -> Params:
    """What `arrange` returns, for many rows."""
    return params

  def reading(self) -> contextlib.AbstractContextManager[None]:
    """Networks applied inside it take what `arrange` and `whole` return."""
    return contextlib.nullcontext()

  def compiler_options(self, config: ModelConfig) -> dict[str, Any]:
    """Of programs that run steps."""
    del config
    return {}

  def narrowest(self, sequences: int) -> int:
    """The fewest slots that a step of so many sequences on a device is compiled for."""
    del sequences
    return 1

  def step_rows(self, batch: int, width: int) -> tuple[int, int]:
    """Rows of each sequence that a step of `width` slots runs, and how many of them it scores."""
    del batch
    return width, width

  def caches(self, empty: Any) -> Any:
    """Empty caches (`models.layers.KVCache`, in any tree) as attention reads them fastest."""
    return empty

  def run(
    self, plan: Plan, start: Callable[[Plan], DecodeState], advance: Callable[..., DecodeState]
  ) -> DecodeState:
    """The prefill and all steps: `step.start` of a plan, `step.advance` of a plan, a state and
    `until`."""
    return advance(plan, start(plan))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static of a task.

  Attributes:
    form: of the device.
    batch: sequences that are wanted; arrays hold as many as the devices can share.
    prefill: rows of the pass over given tokens; at least the largest number of these, at most N.
    width: slots of the widest step.
    narrow: slots of a step whose blocks have one slot each.
    tail: likewise, once all blocks that are to come have one slot each; 0: they are too few for a
      loop of their own.
    room: rows that the caches have room for: whole texts, and the padding of the widest step.
    stop_token: a text ends at its first such token by position, and the batch ends early once every
      sequence has one with nothing missing before it; None: never.
    mesh: where parameters and sequences are; None: on one device.
  """

  form: Form
  batch: int
  prefill: int
  width: int
  narrow: int
  room: int
  tail: int = 0
  stop_token: int | None = None
  mesh: Mesh | None = None

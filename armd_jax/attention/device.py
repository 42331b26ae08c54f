"""For which device attention is being traced: the one that is here, or one that is compiled for."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax
from jax.experimental.pallas import tpu as pltpu

from armd_jax.attention import tpu_blocks

# What `jax.Device.device_kind` calls the chips.
_TPU_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'TPU7': '7x',
  'TPU7x': '7x',
}


@dataclasses.dataclass(frozen=True)
class Device:
  """A platform ('cpu', 'gpu' or 'tpu') and its chip: 'v5e' for TPUs we know, else jax's name."""

  platform: str
  chip: str


_compiled_for: contextvars.ContextVar[Device | None] = contextvars.ContextVar(
  'compiled_for', default=None
)


def current() -> Device:
  """The device that a call traced now will run on."""
  chosen = _compiled_for.get()
  if chosen is not None:
    return chosen
  kind = jax.local_devices()[0].device_kind
  return Device(jax.default_backend(), _TPU_KINDS.get(kind, kind))


@contextlib.contextmanager
def compiling_for(chip: str) -> Iterator[None]:
  """Traces attention for a TPU that is not here, to compile ahead of time.

  Trace inside it (`jax.jit(f).lower(...)`): a function traced before keeps its choice.

  Args:
    chip: one of `tpu_blocks.CHIPS`.
  Raises:
    ValueError: for another chip.
  """
  if chip not in tpu_blocks.CHIPS:
    raise ValueError(f'chip is {chip!r}; write one of {tpu_blocks.CHIPS}')
  token = _compiled_for.set(Device('tpu', chip))
  try:
    yield
  finally:
    _compiled_for.reset(token)


@contextlib.contextmanager
def interpreting_tpu(chip: str = 'v5e') -> Iterator[None]:
  """Runs the TPU kernels on the CPU, slowly, with every trap armed.

  Memory starts as NaN, a read out of bounds raises, and races between copies and compute are
  looked for. For tests: call `jax.jit` inside it.
  """
  armed = pltpu.InterpretParams(
    uninitialized_memory='nan', out_of_bounds_reads='raise', detect_races=True
  )
  with compiling_for(chip), pltpu.force_tpu_interpret_mode(armed):
    yield

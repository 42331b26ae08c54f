"""For which device attention is being traced: the one that is here, or one that is compiled for."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

from armd_jax.hardware.chips import CHIPS, HOPPER

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
  """What attention is traced for.

  Attributes:
    platform: 'cpu', 'gpu' or 'tpu'.
    chip: 'v5e' or the like for known TPUs, 'H100' for Hopper, else jax's name.
    interpreted: whether kernels run in Pallas' interpreter.
  """

  platform: str
  chip: str
  interpreted: bool = False


_compiled_for: contextvars.ContextVar[Device | None] = contextvars.ContextVar(
  'compiled_for', default=None
)


def current() -> Device:
  """The device that a call traced now will run on."""
  chosen = _compiled_for.get()
  if chosen is not None:
    return chosen
  first = jax.local_devices()[0]
  if getattr(first, 'compute_capability', None) == '9.0':
    return Device('gpu', HOPPER)
  return Device(jax.default_backend(), _TPU_KINDS.get(first.device_kind, first.device_kind))


@contextlib.contextmanager
def _tracing_for(device: Device) -> Iterator[None]:
  token = _compiled_for.set(device)
  try:
    yield
  finally:
    _compiled_for.reset(token)


@contextlib.contextmanager
def compiling_for(chip: str) -> Iterator[None]:
  """Traces attention for a chip that is not here, to compile ahead of time.

  Trace inside it (`jax.jit(f).lower(...)`): a function traced before keeps its choice.

  Args:
    chip: one of `chips.CHIPS`.
  Raises:
    ValueError: for another chip.
  """
  if chip not in CHIPS:
    raise ValueError(f'chip is {chip!r}; write one of {tuple(CHIPS)}')
  with _tracing_for(Device('gpu' if chip == HOPPER else 'tpu', chip)):
    yield


@contextlib.contextmanager
def interpreting_tpu(chip: str = 'v5e') -> Iterator[None]:
  """Runs the TPU kernels on the CPU, slowly, with every trap armed.

  Memory starts as NaN, a read out of bounds raises, and races between copies and compute are
  looked for. For tests: call `jax.jit` inside it.
  """
  armed = pltpu.InterpretParams(
    uninitialized_memory='nan', out_of_bounds_reads='raise', detect_races=True
  )
  with _tracing_for(Device('tpu', chip, True)), pltpu.force_tpu_interpret_mode(armed):
    yield


@contextlib.contextmanager
def interpreting_hopper() -> Iterator[None]:
  """Runs the Hopper kernels on the CPU, slowly: memory starts as NaN, races are looked for.

  For tests: call `jax.jit` inside it. Needs jax 0.12: older interpreters lack primitives, or
  (0.11) want every thread to see a barrier's last completion, for which the memory warpgroup does
  not wait.
  """
  armed = plgpu.InterpretGPUParams(
    uninitialized_memory='nan', out_of_bounds_reads='raise', detect_races=True
  )
  with _tracing_for(Device('gpu', HOPPER, True)), plgpu.force_gpu_interpret_mode(armed):
    yield

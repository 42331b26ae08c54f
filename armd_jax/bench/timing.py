"""What the benchmarks share: interleaved timing, the machine, the shape flags and the table."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags

from armd_jax import config as config_lib
from armd_jax.attention import device

# Full size runs on accelerators; the small ones show the same ratios on two CPU cores.
SHAPES = {
  'small': dict(num_layers=6, embed_dim=384, num_heads=6, length=512, vocab_size=8192),
  'weight_bound': dict(num_layers=12, embed_dim=512, num_heads=8, length=256, vocab_size=8192),
  'gpt2_small': dict(num_layers=12, embed_dim=768, num_heads=12, length=1024, vocab_size=50257),
  'gpt2_medium': dict(num_layers=24, embed_dim=1024, num_heads=16, length=1024, vocab_size=50257),
}


@dataclasses.dataclass(frozen=True)
class ShapeFlags:
  """A named shape and the flags that change parts of it."""

  shape: flags.FlagHolder
  changes: dict[str, flags.FlagHolder]
  dtype: flags.FlagHolder

  @classmethod
  def define(cls) -> ShapeFlags:
    return cls(
      flags.DEFINE_enum('shape', 'small', list(SHAPES), 'What the other flags start from.'),
      {
        name: flags.DEFINE_integer(name, None, f"{name}, in place of the shape's.", lower_bound=1)
        for name in SHAPES['small']
      },
      flags.DEFINE_enum(
        'dtype',
        None,
        ['float32', 'bfloat16'],
        'Of activations; left out: float32 on a CPU, bfloat16 on what has a matrix unit.',
      ),
    )

  def values(self) -> tuple[dict[str, Any], int]:
    """Fields of `ModelConfig`, and the vocabulary size."""
    sizes = dict(SHAPES[self.shape.value])
    sizes |= {name: flag.value for name, flag in self.changes.items() if flag.value is not None}
    vocab_size = sizes.pop('vocab_size')
    return sizes | {'dtype': self.dtype.value or default_dtype()}, vocab_size


def default_dtype() -> str:
  """What models compute in where they are used: attention's kernels take no float32 on a GPU."""
  return 'float32' if device.current().platform == 'cpu' else 'bfloat16'


def positive_flag(name: str, default: int, help_text: str) -> flags.FlagHolder[int]:
  return flags.DEFINE_integer(name, default, help_text, lower_bound=1)


def interleaved(
  calls: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
  """Seconds of every call, taken in turns, so that a busy moment of the machine hits all alike.

  Args:
    calls: by name; each does its whole work, and what it returns is waited for.
    repeats: rounds; every other one runs backwards.
    warm_up: rounds before, not counted.
  """
  seconds = {name: [] for name in calls}
  for turn in range(-warm_up, repeats):
    names = list(calls) if turn % 2 == 0 else list(calls)[::-1]
    for name in names:
      start = time.perf_counter()
      jax.block_until_ready(calls[name]())
      if turn >= 0:
        seconds[name].append(time.perf_counter() - start)
  return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
  return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
  """Where the numbers were taken."""
  device = jax.devices()[0]
  kind = device.device_kind
  if device.platform == 'cpu':
    kind = _cpu_name() or kind
  return {
    'platform': device.platform,
    'device': kind,
    'devices': jax.device_count(),
    'cpu_cores': len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count(),
    'load_average': os.getloadavg()[0],
    'jax': jax.__version__,
  }


def _cpu_name():
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return None
  return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), None)


def machine_line(machine: Mapping[str, Any]) -> str:
  return (
    '{platform} {device}, {devices} device(s), {cpu_cores} CPU cores, load {load_average:.1f}, '
    'jax {jax}'.format(**machine)
  )


def shape_line(model: config_lib.ModelConfig, vocab_size: int, batch_size: int) -> str:
  return (
    f'{model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, N = {model.length}, '
    f'batch {batch_size}, vocabulary {vocab_size}, {model.dtype}'
  )


def num_parameters(params: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows of the same columns as text; floats get four significant digits."""

  def text(value):
    if isinstance(value, float):
      return f'{value:.0f}' if value >= 1000 else f'{value:.4g}'
    return '-' if value is None else str(value)

  lines = [list(rows[0]), *([text(x) for x in row.values()] for row in rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  aligned = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
  return '\n'.join(map('  '.join, aligned))

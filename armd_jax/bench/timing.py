"""What the benchmarks share: interleaved timing, the machine, the shape flags and the table."""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from armd_jax import config as config_lib
from armd_jax.hardware import device

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


def shape_line(model: config_lib.ModelConfig, vocab_size: int, batch_size: int) -> str:
  return (
    f'{model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, N = {model.length}, '
    f'batch {batch_size}, vocabulary {vocab_size}, {model.dtype}'
  )

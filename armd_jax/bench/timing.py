"""What the benchmarks share: interleaved timing, the machine, a shape's flags and the table."""

from __future__ import annotations

import dataclasses
from typing import Any

from armd_jax import config as config_lib
from armd_jax.flags import flag
from armd_jax.hardware import device

# Full size runs on accelerators; the small ones show the same ratios on two CPU cores.
SHAPES = {
  'small': dict(num_layers=6, embed_dim=384, num_heads=6, length=512, vocab_size=8192),
  'weight_bound': dict(num_layers=12, embed_dim=512, num_heads=8, length=256, vocab_size=8192),
  'gpt2_small': dict(num_layers=12, embed_dim=768, num_heads=12, length=1024, vocab_size=50257),
  'gpt2_medium': dict(num_layers=24, embed_dim=1024, num_heads=16, length=1024, vocab_size=50257),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShape:
  """Flags for the shape of the model."""

  shape: str = flag('What the other flags start from.', 'small', choices=tuple(SHAPES))
  num_layers: int | None = flag("Layers, in place of the shape's.", None, at_least=1)
  embed_dim: int | None = flag("Model width, in place of the shape's.", None, at_least=1)
  num_heads: int | None = flag("Heads, in place of the shape's.", None, at_least=1)
  length: int | None = flag("Tokens of a text, in place of the shape's.", None, at_least=1)
  vocab_size: int | None = flag("Vocabulary, in place of the shape's.", None, at_least=1)
  dtype: str | None = flag(
    'Of activations; left out: float32 on a CPU, bfloat16 on what has a matrix unit.',
    None,
    choices=('float32', 'bfloat16'),
  )

  def values(self) -> tuple[dict[str, Any], int]:
    """Fields of `ModelConfig`, and the vocabulary size."""
    sizes = dict(SHAPES[self.shape])
    changes = {name: getattr(self, name) for name in sizes}
    sizes |= {name: size for name, size in changes.items() if size is not None}
    vocab_size = sizes.pop('vocab_size')
    return sizes | {'dtype': self.dtype or default_dtype()}, vocab_size


def default_dtype() -> str:
  """What models compute in where they are used: attention's kernels take no float32 on a GPU."""
  return 'float32' if device.current().platform == 'cpu' else 'bfloat16'


def shape_line(model: config_lib.ModelConfig, vocab_size: int, batch_size: int) -> str:
  return (
    f'{model.num_layers} layers x {model.embed_dim}, {model.num_heads} heads, N = {model.length}, '
    f'batch {batch_size}, vocabulary {vocab_size}, {model.dtype}'
  )

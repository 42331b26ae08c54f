"""The calls of attention that are checked and timed; imports nothing that could be missing."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
  """One call of `prefix_attention`.

  Attributes:
    shape: one of `attention.shapes.NAMED`, or any name for a `size` of its own.
    batch: texts.
    streams: R.
    size: rows, keys, query heads, key heads and head dim; None takes those of the named shape.
    lengths: what the rows see, a key of `calls.LENGTHS`.
    dtype: of queries, keys and values.
    magnitude: of the queries, by which the logits grow.
    runs: how often it is run to see the same bits.
    gradients: whether the backward pass is run, too.
  """

  shape: str
  batch: int
  streams: int
  size: tuple[int, int, int, int, int] | None = None
  lengths: str = 'order'
  dtype: str = 'bfloat16'
  magnitude: float = 1.0
  runs: int = 5
  gradients: bool = True

  @property
  def key(self) -> str:
    return f'{self.shape} B{self.batch} x{self.streams}'

  @property
  def decodes(self) -> bool:
    return self.shape.startswith('decode')


# Small calls, each in a process of its own: one that hangs is known by its name.
SMOKE = {
  'forward 64': Case('forward', 1, 2, (256, 256, 2, 2, 64), gradients=False),
  'both 64': Case('both', 1, 2, (256, 256, 2, 2, 64)),
  'both 128': Case('both', 1, 2, (256, 256, 2, 1, 128)),
  'both 256': Case('both', 1, 2, (256, 256, 2, 2, 256)),
  'nothing': Case('nothing', 1, 2, (256, 256, 2, 2, 64), 'nothing'),
  'holes': Case('holes', 1, 1, (384, 320, 2, 2, 64), 'holes'),
  'splits': Case('splits', 1, 2, (8, 2048, 4, 4, 64)),
  'odd': Case('odd', 3, 2, (137, 301, 6, 2, 128), 'random'),
}

# Real sizes and awkward ones, against float32.
NUMERICS = (
  Case('train_1024_12x64', 16, 2, runs=30),
  Case('train_1024_12x64', 16, 1, runs=30),
  Case('train_1024_16x128', 4, 2, runs=10),
  Case('train_1024_16x128', 4, 1, runs=10),
  Case('train_1024_8x256', 2, 2, runs=10),
  Case('train_1024_32/8x128', 2, 2, runs=10),
  Case('decode_2_of_1024_12x64', 1, 2, runs=30),
  Case('decode_8_of_1024_12x64', 8, 2, runs=30),
  Case('decode_32_of_1024_12x64', 1, 2, runs=10),
  Case('cache of 1032', 8, 2, (4, 1032, 12, 12, 64), runs=10),
  Case('random lengths', 3, 2, (137, 301, 6, 2, 128), 'random'),
  Case('ragged 1001', 2, 2, (1001, 1001, 12, 12, 64)),
  Case('sorted lengths', 4, 2, (700, 900, 12, 12, 64), 'sorted'),
  Case('holes', 2, 2, (512, 640, 12, 12, 64), 'holes'),
  Case('nothing', 2, 2, (512, 640, 12, 12, 64), 'nothing', runs=2),
  Case('everything', 2, 2, (512, 640, 16, 16, 128), 'everything'),
  Case('five rows', 1, 2, (5, 5, 2, 1, 64), runs=2),
  Case('one key', 1, 2, (140, 1, 2, 2, 64), 'everything', runs=2),
  Case('large logits', 1, 2, (1024, 1024, 16, 16, 128), magnitude=30.0, runs=2),
  Case('float16', 2, 2, (1024, 1024, 12, 12, 64), dtype='float16'),
  Case('train_4096_12x64', 1, 2),
  Case('train_4096_16x128', 1, 2),
  Case('train_4096_8x256', 1, 1),
  Case('decode_8_of_32768_16x128', 1, 2, runs=10),
  Case('decode_2_of_32768_32/8x128', 1, 2, runs=10),
  Case('decode_8_of_1024_8x256', 1, 2, runs=10),
  Case('train_32768_16x128', 1, 1, runs=3),
)

# 16384 tokens a call fill the chip.
TIMES = (
  Case('train_1024_12x64', 16, 1),
  Case('train_1024_12x64', 16, 2),
  Case('train_4096_16x128', 4, 1),
  Case('train_4096_16x128', 4, 2),
  Case('train_4096_12x64', 4, 1),
  Case('train_4096_12x64', 4, 2),
  Case('train_1024_16x128', 16, 1),
  Case('train_4096_32/8x128', 2, 1),
  Case('train_1024_8x256', 8, 1),
  Case('train_32768_16x128', 1, 1),
  Case('decode_2_of_1024_12x64', 1, 2),
  Case('decode_8_of_1024_12x64', 1, 2),
  Case('decode_8_of_1024_12x64', 8, 2),
  Case('decode_8_of_32768_16x128', 1, 2),
)
KINDS = {'forward': 2, 'both': 7}  # useful matrix products of a call and of one with gradients


def time_key(case: Case, kernel: str, kind: str) -> str:
  """The key of a row of the stages 'times' and 'torch'."""
  return f'{case.key} {kernel} {kind}'


def decode_key(family: str, streams: int, batch: int, label: str = '') -> str:
  """The key of a row of the stage 'decode'."""
  name = 'AR' if family == 'ar' else f'ARMD S={streams}'
  return f'{name} batch {batch}{label}'


def peer_key(batch: int) -> str:
  """The key of a row of the stage 'peers'."""
  return f'transformers GPT-2 batch {batch}'


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step that is timed.

  Attributes:
    shape: of `bench.timing.SHAPES`.
    family: 'armd' or 'ar'.
    batch: texts.
    two_stream: ARMD's layers with a content stream; 0 leaves the default, half of them.
    remat, attention: as in the config.
  """

  shape: str
  family: str
  batch: int
  two_stream: int = 0
  remat: str = 'none'
  attention: str = 'auto'

  @property
  def key(self) -> str:
    name = self.family.upper() + (f' {self.two_stream} two-stream' if self.two_stream else '')
    changed = f', remat {self.remat}' if self.remat != 'none' else ''
    changed += f', attention {self.attention}' if self.attention != 'auto' else ''
    return f'{self.shape} {name} B{self.batch}{changed}'


STEPS = (
  Step('gpt2_small', 'armd', 16),
  Step('gpt2_small', 'ar', 16),
  Step('gpt2_small', 'armd', 16, 1),
  Step('gpt2_small', 'armd', 32),
  Step('gpt2_small', 'ar', 32),
  Step('gpt2_medium', 'armd', 8),
  Step('gpt2_medium', 'ar', 8),
  Step('gpt2_medium', 'armd', 8, 1),
  Step('gpt2_small', 'armd', 16, attention='reference'),
  Step('gpt2_small', 'armd', 32, remat='dots'),
)

TINY_TRAIN = dict(num_layers=4, embed_dim=64, num_heads=2, length=32, vocab_size=256)  # dry runs
TINY_DECODE = dict(num_layers=2, embed_dim=128, num_heads=2, length=32, vocab_size=256)

# Family, S, batch: in order of worth.
DECODED = (
  ('ar', 1, 1),
  ('armd', 1, 1),
  ('armd', 4, 1),
  ('armd', 16, 1),
  ('ar', 1, 8),
  ('armd', 4, 8),
  ('armd', 16, 8),
  ('armd', 32, 1),
  ('armd', 8, 1),
  ('armd', 2, 1),
  ('armd', 1, 8),
  ('armd', 32, 8),
  ('armd', 2, 8),
  ('armd', 8, 8),
)

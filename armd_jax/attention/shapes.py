"""The real shapes that attention is tested at, timed at and compiled ahead of time for."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
  """One call of `prefix_attention`, batch 1, lengths as in an AR order.

  Attributes:
    name: such as `train_1024_12x64` or `decode_8_of_32768_32/8x128`.
    rows: N, slots per stream.
    keys: K.
    heads: H, query heads.
    groups: G, key heads.
    head_dim: D.
  """

  name: str
  rows: int
  keys: int
  heads: int
  groups: int
  head_dim: int

  @property
  def decodes(self) -> bool:
    return self.rows < self.keys

  def lengths(self, streams: int) -> np.ndarray:
    """int32 `[1, streams, rows]`: content rows see their own slot, query rows stop before it.

    The rows of a decoding shape are the last ones of a full cache.

    Examples:
      >>> NAMED['decode_2_of_1024_12x64'].lengths(2).tolist()
      [[[1023, 1024], [1022, 1023]]]
    """
    end = np.arange(self.keys - self.rows, self.keys, dtype=np.int32) + 1
    return np.stack([end - stream for stream in range(streams)])[None]

  def shrunk(self, factor: int) -> Shape:
    """The same shape with `factor` times fewer rows and keys, for tests."""
    rows = self.rows if self.decodes else self.rows // factor
    return dataclasses.replace(self, rows=rows, keys=self.keys // factor)


_HEADS = {
  '12x64': (12, 12, 64),  # GPT-2 small
  '16x64': (16, 16, 64),  # GPT-2 medium
  '16x128': (16, 16, 128),
  '8x256': (8, 8, 256),
  '32/8x128': (32, 8, 128),  # grouped-query
}

_TRAIN = [
  Shape(f'train_{length}_{heads}', length, length, *_HEADS[heads])
  for length in (1024, 4096, 32768)
  for heads in _HEADS
]
_DECODE = [
  Shape(f'decode_{rows}_of_{keys}_{heads}', rows, keys, *_HEADS[heads])
  for rows in (2, 8, 32)
  for keys in (1024, 32768)
  for heads in _HEADS
]

NAMED = {shape.name: shape for shape in _TRAIN + _DECODE}

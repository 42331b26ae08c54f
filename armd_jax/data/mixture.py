"""Several corpora as one: which of them an example is from follows from its global index alone."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from armd_jax.config import DataConfig


@dataclasses.dataclass(frozen=True)
class Mixture(Sequence):
  """Windows of several corpora; as a sequence, of the first one, then of the next.

  Attributes:
    parts: windows of each corpus, by its name.
    weights: of their examples, above 0.
  """

  parts: Mapping[str, Any]
  weights: tuple[float, ...]

  @property
  def shares(self) -> dict[str, float]:
    """Of the examples of training, by the name of their corpus."""
    return {
      name: weight / sum(self.weights)
      for name, weight in zip(self.parts, self.weights, strict=True)
    }

  def turn(self, index: int) -> tuple[int, int]:
    """Which corpus the example at a global index is from, by its number, and how many examples of
    that corpus come before it.

    Of the first n examples a corpus has its share of n, give or take one for each corpus before it
    and itself, so that a mixture of no number of steps is another one.
    """
    rest, before, after = sum(self._units), index, index + 1
    for corpus, unit in enumerate(self._units[:-1]):
      # Of what is not yet given to a corpus, what later ones get.
      later = before * (rest - unit) // rest, after * (rest - unit) // rest
      if after - later[1] > before - later[0]:
        return corpus, before - later[0]
      before, after = later
      rest -= unit
    return len(self._units) - 1, before

  @functools.cached_property
  def _units(self) -> list[int]:
    """The weights in whole numbers: floats of far indices would repeat and leave out examples."""
    weights = [Fraction(str(weight)) for weight in self.weights]
    whole = math.lcm(*(weight.denominator for weight in weights))
    return [int(weight * whole) for weight in weights]

  def __len__(self) -> int:
    return sum(map(len, self.parts.values()))

  # Windows of a slice are one array, not a sequence of arrays.
  def __getitem__(self, index: Any) -> np.ndarray:  # type: ignore[override]
    if isinstance(index, slice):
      windows = [self[i] for i in range(*index.indices(len(self)))]
      first = next(iter(self.parts.values()))
      return np.stack(windows) if windows else np.asarray(first[:0])
    if not -len(self) <= index < len(self):
      raise IndexError(f'window {index} of {len(self)}')
    index = int(index) % len(self)
    for windows in self.parts.values():
      if index < len(windows):
        return windows[index]
      index -= len(windows)
    raise AssertionError('lengths of the parts have changed')


def sources(data: DataConfig) -> tuple[str, ...]:
  """All that a run reads."""
  return data.mixture or (data.source,)


def parts_of(windows_WxN: Any) -> Mapping[str, Any]:
  """Windows by the name of their corpus; '' where there is one corpus only."""
  return windows_WxN.parts if isinstance(windows_WxN, Mixture) else {'': windows_WxN}


def mean(windows_WxN: Any, values: Mapping[str, float]) -> float:
  """Of a number of each corpus, by its share."""
  if not isinstance(windows_WxN, Mixture):
    (value,) = values.values()
    return value
  return sum(share * values[name] for name, share in windows_WxN.shares.items())


def names(sources: Sequence[str]) -> Iterator[str]:
  """Short and different names of corpora: the ends of their paths, numbered where they are equal.

  Examples:
    >>> list(names(['work/web', 'other/web', 'books/*.txt', 'tfds:lm1b']))
    ['web_1', 'web_2', 'txt', 'tfds_lm1b']
  """
  plain = (re.sub(r'[^\w-]+', '_', pathlib.PurePath(source).name) for source in sources)
  ends = [name.strip('_') or 'corpus' for name in plain]
  taken = {end for end in ends if ends.count(end) == 1}
  for end in ends:
    # A number that is not another's own name: corpora are looked up by these.
    numbered = (f'{end}_{number}' for number in itertools.count(1))
    name = end if end in taken else next(name for name in numbered if name not in taken)
    taken |= {name} - {end}
    yield name

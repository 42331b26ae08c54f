"""What is in a corpus: how long its documents are, and how many are there more than once.

Each part of a preparation is counted on its own, and the counts add up. Lengths
are kept exactly up to 64 tokens, and in steps of at most 3 % from there on; documents are compared
by hashes; in a large corpus only those whose hash ends in some zeros, a fixed share of them. How
many bytes it has is known before it is read, how many documents only then: a part with many of
them compares a smaller share, and the corpus the smallest share of all its parts.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_EXACT_BITS = 6
_COMPARED = 2**22  # documents of about a kilobyte; also the most hashes of a part
_HELD = 2**24  # hashes of all parts, of 8 bytes

# Of a part, in JSON: the hashes of one in `every` texts. Where they were too many, `halved` says
# how often half of them were left out; older notes have all of them, equal ones as well.
FORM = {'lengths': {str: int}, 'compared': [str], 'every': int}


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of all documents of a corpus.

  Attributes:
    lengths: documents by their tokens, EOS included, rounded up; in order.
    duplicates: documents that occurred before; an estimate unless all were compared.
    every: one of this many texts was compared; 1: all.
    held_out: share of the text's bytes.
  """

  lengths: Mapping[int, int]
  duplicates: int
  every: int
  held_out: float

  def at_most(self, share: float) -> int:
    """The length that so large a share of the documents does not exceed."""
    left = share * sum(self.lengths.values())
    for length, count in self.lengths.items():
      left -= count
      if left <= 0:
        return length
    return max(self.lengths, default=0)

  def lines(self) -> Iterator[str]:
    """For people."""
    count = sum(self.lengths.values())
    if count:
      yield (
        f'lengths   half of the documents have at most {self.at_most(0.5):,} tokens, 90 % at most '
        f'{self.at_most(0.9):,}, all at most {self.at_most(1):,}'
      )
      about = f'about {self.duplicates:,}' if self.every > 1 else f'{self.duplicates:,}'
      yield f'repeated  {about} documents occur earlier ({self.duplicates / count:.1%})'
    yield f'held out  {self.held_out:.2%} of the bytes'


class Counted:
  """What a part counts.

  Args:
    every: one of so many texts is compared.
    most: hashes to keep; where there are more, half of them are left out, as often as it takes.
  """

  def __init__(self, every: int, most: int):
    self._every, self._most, self._halved = every, most, 0
    self._lengths: collections.Counter[int] = collections.Counter()
    self._compared: set[int] = set()

  def add(self, digest: bytes, num_tokens: int) -> None:
    """A document, by its hash, and its tokens with EOS."""
    self._lengths[rounded(num_tokens)] += 1
    # Two parts of a hash, so that notes of any version can be halved, whatever their `every`.
    if int.from_bytes(digest[-8:], 'big') % self._every == 0:
      number = int.from_bytes(digest[:8], 'big')
      if number % (1 << self._halved) == 0:
        self._compared.add(number)
    while len(self._compared) > self._most:
      self._halved += 1
      self._compared = {one for one in self._compared if one % (1 << self._halved) == 0}

  def json(self) -> dict[str, Any]:
    """The counts in the form of FORM."""
    lengths = {str(length): self._lengths[length] for length in sorted(self._lengths)}
    compared = [f'{number:016x}' for number in sorted(self._compared)]
    halved = {'halved': self._halved} if self._halved else {}
    return {'lengths': lengths, 'compared': compared, 'every': self._every, **halved}


def rounded(length: int) -> int:
  """The length, with the bits behind its first ones all 1.

  Examples:
    >>> [rounded(length) for length in (1, 63, 64, 65, 1000)]
    [1, 63, 65, 65, 1007]
  """
  rest = max(0, length.bit_length() - _EXACT_BITS)
  return length | ((1 << rest) - 1)


def compared_every(num_bytes: int) -> int:
  """K for a corpus of this size: one of K texts is compared with the others."""
  return -(-num_bytes // (_COMPARED * 1000)) if num_bytes else 1


def most_compared(num_parts: int) -> int:
  """Hashes that each of so many parts keeps at most."""
  return max(1, min(_COMPARED, _HELD // num_parts))


class Total:
  """Adds up what parts have counted, holding few of their hashes at a time."""

  def __init__(self) -> None:
    self._lengths: collections.Counter[int] = collections.Counter()
    self._compared: list[np.ndarray] = []  # of each part
    self._every, self._halved = 1, 0

  def add(self, part: Mapping[str, Any]) -> None:
    """A part's counts, see `Counted.json`."""
    self._lengths.update({int(length): count for length, count in part['lengths'].items()})
    self._every = part['every']
    hashes = np.frombuffer(bytes.fromhex(''.join(part['compared'])), '>u8').astype(np.uint64)
    self._compared.append(hashes)
    self._halve(max(self._halved, part.get('halved', 0)))
    while sum(map(len, self._compared)) > _HELD:
      self._halve(self._halved + 1)

  def _halve(self, times: int) -> None:
    """Leaves out what a part does that halves its hashes so often."""
    zeros = np.uint64((1 << times) - 1)
    changed = self._compared if times > self._halved else self._compared[-1:]
    kept = [np.unique(hashes[hashes & zeros == 0]) for hashes in changed]
    self._compared[len(self._compared) - len(kept) :] = kept
    self._halved = times

  def json(self, totals: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of all parts, in the form of a manifest.

    Args:
      totals: documents, bytes and tokens of the sides of the corpus.
    """
    size = {side: total['text_bytes'] for side, total in totals.items()}
    every = self._every << self._halved
    # How often a text occurs differs a lot, so what is estimated is the number of different texts.
    different = every * len(np.unique(np.concatenate([np.zeros(0, np.uint64), *self._compared])))
    return {
      'lengths': {str(length): self._lengths[length] for length in sorted(self._lengths)},
      'duplicates': max(0, self._lengths.total() - different),
      'every': every,
      'held_out': size['held_out'] / max(1, sum(size.values())),
    }


def read(found: Mapping[str, Any]) -> Statistics:
  """What `Total` wrote."""
  lengths = {int(length): count for length, count in found['lengths'].items()}
  return Statistics(lengths, found['duplicates'], found['every'], found['held_out'])


TOTAL_FORM = {'lengths': {str: int}, 'duplicates': int, 'every': int, 'held_out': float}

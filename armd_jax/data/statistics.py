"""What is in a corpus: how long its documents are, and how many are there more than once.

Each part of a preparation is counted on its own, and the counts add up. Lengths
are kept exactly up to 64 tokens, and in steps of at most 3 % from there on; documents are compared
by hashes; in a large corpus only those whose hash ends in some zeros, a fixed share of them.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_EXACT_BITS = 6
_COMPARED = 2**22  # documents of about a kilobyte; more would be too many hashes to hold

FORM = {'lengths': {str: int}, 'compared': [str], 'every': int}  # of a part, in JSON


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of all documents of a corpus.

  Attributes:
    lengths: documents by their tokens, EOS included, rounded up; in order.
    duplicates: documents that occurred before, scaled up from those that were compared.
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
  """

  def __init__(self, every: int):
    self._every = every
    self._lengths: collections.Counter[int] = collections.Counter()
    self._compared: list[str] = []

  def add(self, digest: bytes, num_tokens: int) -> None:
    """A document, by its hash, and its tokens with EOS."""
    self._lengths[rounded(num_tokens)] += 1
    if int.from_bytes(digest[-8:], 'big') % self._every == 0:
      self._compared.append(digest[:8].hex())

  def json(self) -> dict[str, Any]:
    """The counts in the form of FORM."""
    lengths = {str(length): self._lengths[length] for length in sorted(self._lengths)}
    return {'lengths': lengths, 'compared': self._compared, 'every': self._every}


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


def total(parts: Iterable[Mapping[str, Any]], totals: Mapping[str, Any]) -> dict[str, Any]:
  """The statistics of all parts, in the form of a manifest.

  Args:
    parts: what each has counted, see `Counted.json`.
    totals: documents, bytes and tokens of the sides of the corpus.
  """
  lengths: collections.Counter[int] = collections.Counter()
  seen: set[str] = set()
  compared, every = 0, 1
  for part in parts:
    lengths.update({int(length): count for length, count in part['lengths'].items()})
    seen.update(part['compared'])
    compared, every = compared + len(part['compared']), part['every']
  size = {side: total['text_bytes'] for side, total in totals.items()}
  return {
    'lengths': {str(length): lengths[length] for length in sorted(lengths)},
    'duplicates': every * (compared - len(seen)),
    'every': every,
    'held_out': size['held_out'] / max(1, sum(size.values())),
  }


def read(found: Mapping[str, Any]) -> Statistics:
  """What `total` wrote."""
  lengths = {int(length): count for length, count in found['lengths'].items()}
  return Statistics(lengths, found['duplicates'], found['every'], found['held_out'])


TOTAL_FORM = {'lengths': {str: int}, 'duplicates': int, 'every': int, 'held_out': float}

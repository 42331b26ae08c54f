"""How spans become the parts of a preparation."""

import dataclasses

import pytest

from armd_jax.data import parts


@dataclasses.dataclass
class Span:
  """Which counts how often it is asked for its size."""

  size: int
  asked: int = 0

  @property
  def num_bytes(self):
    self.asked += 1
    return self.size

  def split(self, num_bytes):
    return [self]


@pytest.mark.parametrize('count', [1, 100, 3000])
def test_spans_are_asked_once_however_many_a_part_has(count):
  spans = [Span(7) for _ in range(count)]
  assert list(parts.group(spans, 10**9)) == [tuple(spans)]
  assert max(span.asked for span in spans) <= 1


def test_neighbours_are_together_up_to_the_size_of_a_part():
  spans = [Span(size) for size in (50, 30, 9, 1, 95, 0, 0, 89, 1, 3)]
  found = [[span.size for span in group] for group in parts.group(spans, 100)]
  assert found == [[50, 30, 9, 1], [95], [0, 0, 89, 1], [3]]

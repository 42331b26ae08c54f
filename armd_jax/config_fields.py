"""What is known of a field of a config: what it may be, and what depends on it."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Collection
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers between two finite ends, so that neither NaN nor infinity is one of them.

  An end that is left out is left out in float32, too, in which the devices compute.
  """

  low: float
  high: float
  without_low: bool = False
  without_high: bool = False

  def __contains__(self, value: float) -> bool:
    if not self.low <= value <= self.high:
      return False
    value = in_float32(value)
    is_above = self.low < value or not self.without_low
    return is_above and (value < self.high or not self.without_high)

  def __str__(self) -> str:
    low = f'{"above" if self.without_low else "from"} {self.low}'
    return f'{low} {"and below" if self.without_high else "to"} {self.high}'


def in_float32(value: float) -> float:
  """What the devices compute with; what is smaller than a normal number is 0 to them.

  Examples:
    >>> in_float32(0.99999999), in_float32(1e-40)
    (1.0, 0.0)
  """
  (rounded,) = struct.unpack('f', struct.pack('f', value))
  return rounded if abs(rounded) >= _LEAST_FLOAT else 0.0


# What int32 and float32 hold, the types that numbers have on the devices.
_MOST_INT, _MOST_FLOAT, _LEAST_FLOAT = 2**31 - 1, 3e38, 2.0**-126


def field(
  default: Any,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
  one_of: Collection[str] = (),
  resumable: bool = False,
  host_only: bool = False,
  is_path: bool = False,
) -> Any:
  """A field of a config, and what is known of it.

  Args:
    default: always allowed, so that -1 may mean a value that is derived; a tuple without a
      lower end is of texts.
    at_least, above: lower end of a number or, in a tuple, of each; one of them is needed.
    at_most, below: upper end; left out, what the number's type holds on a device.
    one_of: the allowed texts; (): any.
    resumable: a run may resume with another value; if not, it is refused.
    host_only: the compiled training step does not read it, so that another value compiles nothing.
      A field that is not marked is part of what the step is compiled for.
    is_path: a place of files, which decides nothing but by what they hold.
  """
  known = dict(one_of=one_of, resumable=resumable, host_only=host_only, is_path=is_path)
  is_number = not isinstance(default, bool | str)
  if is_number and not (default == () and at_least is above is None):  # which holds texts
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    if low is None:
      raise TypeError('a number needs a lower end')
    if high is None:
      high = _MOST_FLOAT if isinstance(default, float) else _MOST_INT
    known['range'] = Range(low, high, above is not None, below is not None)
  return dataclasses.field(default=default, metadata=known)


def one_of(*values: str, **known: Any) -> Any:
  """A field that is one of some texts, the first by default."""
  return field(values[0], one_of=values, **known)

"""What the tables, the claims and the pictures read of the results."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from armd_jax.reproduce import pieces as p

KINDS = ('exact', 'bound')


@dataclasses.dataclass(frozen=True)
class Mean:
  """A number over seeds.

  Attributes:
    value: mean.
    spread: sample standard deviation; None of a single seed.
    count: seeds.
  """

  value: float
  spread: float | None
  count: int

  def text(self) -> str:
    spread = '' if self.spread is None else f' ± {self.spread:.4f}'
    return f'{self.value:.4f}{spread}'


class Results:
  """The numbers of reproduction.json; what is not there is None.

  Args:
    numbers: as `page.numbers` makes them.
  """

  def __init__(self, numbers: dict[str, Any]):
    self.numbers = numbers
    self.config = ml_collections.ConfigDict(numbers['config'])
    self._pieces = numbers['pieces']

  def of(self, name: str) -> dict[str, Any] | None:
    """A piece's result."""
    piece = self._pieces.get(name)
    return piece and piece['result']

  def rows(self, run: str, step: int) -> list[dict[str, Any]]:
    """Scores of a training piece at a step; none if it was not measured."""
    return (self.of(p.evaluated(run)) or {}).get(str(step), [])

  def score(self, run: str, step: int, kind: str) -> dict[str, Any] | None:
    """The row of a kind; of bounds the one with a single order per text."""
    return next((row for row in self.rows(run, step) if row['kind'] == kind), None)

  def over_seeds(self, system: str, step: int, kind: str, key='nats_per_byte') -> Mean | None:
    """Mean of a system of the core."""
    rows = [self.score(p.core_name(system, seed), step, kind) for seed in p.SEEDS]
    values = [row[key] for row in rows if row]
    return mean_of(values)

  def monte_carlo_error(self) -> float | None:
    """The largest one of any bound of the core, nats per token."""
    names = [p.core_name(system, seed) for system in p.SYSTEMS for seed in p.SEEDS]
    steps = [*p.fractions(self.config).values(), p.long_steps(self.config)]
    errors = [r['monte_carlo_error'] for n in names for s in steps for r in self.rows(n, s)]
    return max(filter(None, errors), default=None)

  # ----- strided generation

  def strided(self, run: str, step: int | None = None) -> dict[int, dict[str, Any]]:
    """Rows of `order_costs` by S; at the last step that was measured."""
    found = self.of(p.strided_name(run)) or {}
    step = step or max(map(int, found), default=0)
    return {row['streams']: row for row in found.get(str(step), [])}

  def models(self, length: int) -> dict[str, str]:
    """Training pieces of a length, by what they are called."""
    few, many = ('S up to ' + str(max(streams)) for streams in (p.FEW, p.MANY))
    return {
      'before SBP': p.base_name(length, self.config),
      'control': p.tuned_name(length, 'control'),
      f'SBP, {few}': p.tuned_name(length, 'few'),
      f'SBP, {many}': p.tuned_name(length, 'many'),
    }

  def lost(self, run: str, length: int, step: int | None = None) -> dict[int, float]:
    """Percent of NLL that every S loses, S at once.

    Against left-to-right generation by the model itself before SBP, and after it by the control,
    which was trained for as long on the orders of the base model.
    """
    base = p.base_name(length, self.config)
    of = base if run == base else p.tuned_name(length, 'control')
    reference = self.strided(of).get(1)
    rows = self.strided(run, step)
    if reference is None:
      return {}
    return {s: 100 * (row['nats'] / reference['nats'] - 1) for s, row in rows.items()}

  def farthest(self, run: str, length: int, percent: float) -> int | None:
    """The largest S up to which at most so much NLL is lost; 0 if S = 1 loses more."""
    lost = self.lost(run, length)
    if not lost:
      return None
    farthest = 0
    for streams in sorted(lost):
      if lost[streams] > percent:
        break
      farthest = streams
    return farthest

  def seconds(self, length: int) -> dict[str, float]:
    """Median seconds of sampling one text, by system of `bench.decode.systems`."""
    found = self.of(p.speed_name(length)) or {'systems': []}
    return {row['system']: row['seconds'] for row in found['systems']}

  def junctions(self, how: str) -> list[dict[int, dict[str, Any]]]:
    """Of the base models of the longest length with 'segments' or without ('plain'), a seed each,
    the rows by S; those that are there."""
    found = (self.strided(p.junction_name(how, seed, self.config)) for seed in p.SEEDS)
    return [rows for rows in found if rows]

  def junction(self, how: str, read: Callable[[dict[int, dict[str, Any]]], float]) -> Mean | None:
    """Mean over the seeds of what is read from the rows by S."""
    return mean_of([read(rows) for rows in self.junctions(how)])

  # ----- cost

  @functools.cached_property
  def cost(self) -> dict[str, dict[str, float]]:
    return self.step_cost('cost')

  def step_cost(self, name: str) -> dict[str, dict[str, float]]:
    """Of a piece, by variant: seconds, memory_bytes, dense_gflops, visible_gflops, and each over
    AR's."""
    steps = (self.of(name) or {'steps': {}})['steps']
    names = ('seconds', 'memory_bytes', 'dense_gflops', 'visible_gflops')
    return {
      system: {name: row[name] for name in names}
      | {f'{name}_ratio': row[name] / steps['ar'][name] for name in names}
      for system, row in steps.items()
    }


def mean_of(values: Sequence[float]) -> Mean | None:
  """None of no values."""
  if not values:
    return None
  spread = statistics.stdev(values) if len(values) > 1 else None
  return Mean(statistics.mean(values), spread, len(values))


def perplexity_excess(nats: float, reference: float) -> float:
  """Percent by which a perplexity exceeds another, from nats per token."""
  return 100 * math.expm1(nats - reference)

"""What the paper claims beside what was seen, and whether they agree, by fixed rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from armd_jax.reproduce import pieces as p
from armd_jax.reproduce.results import Mean, Results, perplexity_excess
from armd_jax.show.columns import markdown

PERPLEXITY = 2.0  # percent over AR's that still agrees
STEP_TIME, STEP_TIME_SLACK = 1.22, 1.05  # over AR's; what a measurement may be off by
PARALLEL = 4  # S of the paper's fine-tunes, at most


@dataclasses.dataclass(frozen=True)
class Claim:
  """One claim.

  Attributes:
    claim: the paper's, with the rule by which it is decided here.
    seen: the numbers.
    agrees: None where something is not measured yet.
  """

  claim: str
  seen: str
  agrees: bool | None

  @property
  def verdict(self) -> str:
    return {True: 'agrees', False: '**does not agree**', None: 'not measured yet'}[self.agrees]


def claims(results: Results) -> list[Claim]:
  """All of them, in the order of the page."""
  return [
    _left_to_right(results),
    _equal_steps(results),
    _a_third(results, 'armd_uniform', 'bound', 'both any-order bounds'),
    _a_third(results, 'armd', 'exact', 'exact left-to-right against bounds, as in the paper'),
    _step_time(results),
    *(_parallel(results, length) for length in p.lengths(results.config)),
    _sets_against_blocks(results),
  ]


def table(claims: Sequence[Claim]) -> str:
  rows = [(c.claim, c.seen, c.verdict) for c in claims]
  return markdown(('claim', 'seen', 'verdict'), rows)


def goals(results: Results) -> list[Claim]:
  """What this project wants of its own recipe; all but the last two at the longest length."""
  length = p.lengths(results.config)[-1]
  of = lambda streams, key: results.junction('segments', lambda rows: rows[streams][key])
  lost = lambda streams: results.junction(
    'segments', lambda rows: 100 * (rows[streams]['nats'] / rows[1]['nats'] - 1)
  )
  both = [results.junction(how, lambda rows: rows[1]['nats']) for how in ('segments', 'plain')]
  segments, plain = both
  price = None
  if segments and plain:
    price = Mean(100 * (segments.value / plain.value - 1), None, segments.count)
  left_to_right = _left_to_right(results)
  ratio = results.cost.get('armd', {}).get('seconds_ratio')
  return [
    _at_most(f'S = 4 loses at most .4 % of NLL (length {length})', lost(4), 0.4, '%'),
    _at_most(f'S = 16 loses at most 2 % (length {length})', lost(16), 2, '%'),
    _at_most('segments in training cost at most .5 % left-to-right', price, 0.5, '%'),
    _at_most(
      'a junction costs at most 2 nats (S = 4)', of(4, 'order_nats_per_junction'), 2, 'nats'
    ),
    _at_least('half of what a start costs is won back (S = 4)', of(4, 'won_back'), 0.5),
    Claim(
      "left-to-right perplexity is not above AR's",
      left_to_right.seen,
      left_to_right.agrees and left_to_right.seen.startswith('-'),
    ),
    _at_most(
      "a training step takes at most 1.05 times as long as AR's",
      None if ratio is None else Mean(ratio, None, 1),
      1.05,
      'times',
    ),
  ]


def _at_most(text, mean, most, unit):
  if mean is None:
    return Claim(text, '', None)
  return Claim(text, f'{mean.value:.3f} {unit}, {mean.count} seeds', mean.value <= most)


def _at_least(text, mean, least):
  if mean is None:
    return Claim(text, '', None)
  return Claim(text, f'{mean.value:.0%}, {mean.count} seeds', mean.value >= least)


def _left_to_right(results):
  text = f"ARMD generates left-to-right within {PERPLEXITY:g} % of AR's perplexity"
  last = results.config.train.steps
  means = [results.over_seeds(s, last, 'exact', 'nats_per_token') for s in ('armd', 'ar')]
  if None in means:
    return Claim(text, '', None)
  armd, ar = means
  excess = perplexity_excess(armd.value, ar.value)
  seen = f'{excess:+.2f} % ({armd.text()} against {ar.text()} nats per token)'
  return Claim(text, seen, excess <= PERPLEXITY)


def _equal_steps(results):
  last = p.long_steps(results.config)
  text = (
    'ARMD on uniform orders is better than every diffusion baseline at equal steps (bounds, '
    f'{last} steps)'
  )
  ours = results.over_seeds('armd_uniform', last, 'bound')
  theirs = {s: results.over_seeds(s, last, 'bound') for s in p.DIFFUSION}
  return _compared(text, ours, theirs, lambda ours, theirs: ours < theirs)


def _a_third(results, system, kind, how):
  names = ('mdlm', 'radd')
  text = f'ARMD at a third of the steps is no worse than MDLM and RADD at all of them ({how})'
  at = p.fractions(results.config)
  ours = results.over_seeds(system, at['a third'], kind)
  theirs = {s: results.over_seeds(s, at['100 %'], 'bound') for s in names}
  return _compared(text, ours, theirs, lambda ours, theirs: ours <= theirs)


def _compared(text, ours, theirs, is_fine):
  if ours is None or None in theirs.values():
    return Claim(text, '', None)
  against = ', '.join(f'{s} {mean.text()}' for s, mean in theirs.items())
  agrees = all(is_fine(ours.value, mean.value) for mean in theirs.values())
  return Claim(text, f'{ours.text()} nats per byte against {against}', agrees)


def _sets_against_blocks(results):
  """SetDLM's own claim, of its fastest way and block diffusion's at the same number of steps."""
  text = (
    'set diffusion generates 1.22 times as fast as block diffusion at equal likelihood (agrees '
    'from 1.1 on, if its bound is at most .5 % above)'
  )
  ways = {row['way']: row for row in (results.of('front') or {'ways': []})['ways']}
  both = [
    max(
      (row for way, row in ways.items() if way.startswith(f'{system}, ')),
      key=lambda row: row['tokens_per_second']['1'],
      default=None,
    )
    for system in ('setdlm', 'bd3lm16')
  ]
  if None in both:
    return Claim(text, '', None)
  ours, theirs = both
  times = ours['tokens_per_second']['1'] / theirs['tokens_per_second']['1']
  seen = (
    f'{times:.2f} times, bounds {ours["nats_per_byte"]:.4f} and {theirs["nats_per_byte"]:.4f} nats '
    'per byte (blocks of 16)'
  )
  is_as_likely = ours['nats_per_byte'] <= 1.005 * theirs['nats_per_byte']
  return Claim(text, seen, times >= 1.1 and is_as_likely)


def _step_time(results):
  text = (
    f"a training step takes {STEP_TIME:g} times as long as AR's (agrees up to "
    f'{STEP_TIME * STEP_TIME_SLACK:.2f})'
  )
  if not results.cost:
    return Claim(text, '', None)
  armd = results.cost['armd']
  seen = f'{armd["seconds_ratio"]:.3f} times; {armd["visible_gflops_ratio"]:.3f} by visible FLOPs'
  return Claim(text, seen, armd['seconds_ratio'] <= STEP_TIME * STEP_TIME_SLACK)


def _parallel(results, length):
  text = (
    f'after SBP, {PARALLEL} tokens at once lose less NLL than before it, and at most 10 % '
    f'(length {length})'
  )
  before, after = (
    results.lost(run, length).get(PARALLEL)
    for run in (p.base_name(length, results.config), p.tuned_name(length, 'few'))
  )
  if before is None or after is None:
    return Claim(text, '', None)
  return Claim(text, f'{after:+.2f} %, before {before:+.2f} %', after < before and after <= 10)

"""The sections of docs/reproduction.md on what the systems write."""

from __future__ import annotations

import itertools

from armd_jax.reproduce import pieces as p
from armd_jax.reproduce.results import Results
from armd_jax.reproduce.tables import NAMES
from armd_jax.show.columns import markdown

SHOWN = 2  # texts of every S that are printed
MARK = '▮'  # in them, where the streams meet


def front(results: Results) -> str:
  """All systems by all their ways to generate."""
  found = results.of('front') or {'ways': [], 'judge': None}
  sizes = list(found['ways'][0]['gaps']) if found['ways'] else []
  batches = list(found['ways'][0]['tokens_per_second']) if found['ways'] else []
  rows = []
  for row in found['ways']:
    system, _, how = row['way'].partition(', ')
    perplexity = row['judge_perplexity']
    rows.append(
      (
        NAMES[system],
        how,
        row['kind'],
        f'{row["nats_per_byte"]:.4f}',
        *(row['gaps'][size] and f'{row["gaps"][size]:.1f}' for size in sizes),
        row['steps'],
        *(f'{row["tokens_per_second"][batch]:,.0f}' for batch in batches),
        perplexity and f'{perplexity:.0f}',
        f'{row["entropy_nats"]:.3f}',
      )
    )
  header = (
    'system', 'generates by', 'kind', 'nats per byte', *(f'nats, gap of {size}' for size in sizes),
    'steps', *(f'tokens/s, batch {batch}' for batch in batches), 'perplexity', 'entropy',
  )  # fmt: skip
  return (
    f'Seed {p.SEEDS[0]}, the last checkpoint of each. S tokens at once along an order, or T steps '
    'of a sampler, in which the network runs as often as something is revealed; medians of texts '
    'made in turns, each system by its own cache if it has one. Exact nats and bounds do not '
    'compare. A gap is in the middle of a window, and all else is given. '
    f'{_judged(found["judge"])}\n\n{markdown(header, rows)}'
  )


def _judged(judge):
  if judge is None:
    return 'No judge was given (`--judge`); the entropy of texts is in nats.'
  return f'Perplexity of texts is under {judge}; beside it their entropy, in nats.'


def texts(results: Results) -> str:
  """The same prompts gone on with at every S."""
  found = results.of('texts') or {'rows': [], 'judge': None}
  number = lambda value: value and f'{value:.0f}'
  rows = [
    (
      row['streams'],
      f'{row["entropy_nats"]:.3f}',
      *(number(row[k]) for k in ('perplexity', 'near', 'elsewhere')),
    )
    for row in found['rows']
  ]
  header = 'S', 'entropy', 'perplexity', 'within 8 tokens of a junction', 'elsewhere'
  parts = [
    f'By ARMD fine-tuned for S up to {max(p.MANY)} at length {p.lengths(results.config)[-1]}; the '
    f'likelier tokens (temperature .7, top-p .95). {_judged(found["judge"])}',
    markdown(header, rows),
  ]
  if found['rows']:
    parts.append(f'A quarter of each text is given; {MARK} marks where streams meet.')
  for index in range(SHOWN if found['rows'] else 0):
    for row in found['rows']:
      marked = _marked(row['texts'][index], row['junctions'][index])
      quoted = '\n'.join(f'    {line}' for line in marked.splitlines())
      parts.append(f'Text {index + 1}, S = {row["streams"]}:\n\n{quoted}')
  return '\n\n'.join(parts)


def _marked(text, junctions):
  """The text with a mark at every junction.

  Examples:
    >>> _marked('abcd', [1, 3])
    'a▮bc▮d'
  """
  cuts = [0, *junctions, len(text)]
  return MARK.join(text[a:b] for a, b in itertools.pairwise(cuts))

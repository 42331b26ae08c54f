"""The page of `armd_jax.report`: its parts as HTML, from numbers, texts and drawings."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
import pathlib
import shlex
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from armd_jax.config import Config
from armd_jax.data.statistics import Statistics
from armd_jax.errors import UserError, sentence
from armd_jax.evaluation.infilling import MEASURES
from armd_jax.evaluation.scores import check_rows, perplexity
from armd_jax.order import GenerationOrder
from armd_jax.show import history, plots

_FILES = pathlib.Path(__file__).with_name('page')
_COLORS = 32  # colours of the scale that shows a text's steps


@dataclasses.dataclass(frozen=True)
class Replay:
  """A generated text, in pieces that appeared at once.

  Attributes:
    name: on the page, 'S = 4' of streams, or 'K = 64' of a diffusion's steps.
    steps: runs of the network that generation took.
    pieces: (text, tokens, step) in text order; given pieces have step 0.
    junctions: indices of pieces with which a further stream of the text begins.
  """

  name: str
  steps: int
  pieces: tuple[tuple[str, int, int], ...]
  junctions: tuple[int, ...] = ()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """A table of numbers and texts; the columns are those of the first row."""

  names = list(rows[0])
  kinds = [' class="text"' if isinstance(rows[0][name], str) else '' for name in names]

  def line(tag, values):
    cells = zip(kinds, values, strict=True)
    return f'<tr>{"".join(f"<{tag}{kind}>{html.escape(x)}</{tag}>" for kind, x in cells)}</tr>'

  lines = [line('th', names), *(line('td', [_text(row[name]) for name in names]) for row in rows)]
  return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _text(value: Any) -> str:
  """A number for a reader: enough digits, and no more.

  Examples:
    >>> [_text(x) for x in (1234.5, 12.3456, 0.05, 0.00042, 0.0, 1234, None, math.nan)]
    ['1,234', '12.346', '0.0500', '4.2e-04', '0', '1,234', '–', '–']
  """
  if value is None or value != value:
    return '–'
  if not isinstance(value, float):
    return f'{value:,}' if type(value) is int else str(value)
  if value == 0 or abs(value) >= 1000:
    return f'{value:,.0f}'
  if abs(value) < 1e-3:
    return f'{value:.1e}'
  return f'{value:.3f}' if abs(value) >= 1 else f'{value:.4f}'


def _of(nats: float | None, number: Callable[[float], float]) -> float | None:
  """Another number of nats; of none, which stands for what is not finite, none."""
  return None if nats is None else number(nats)


def section(title: str, *parts: str) -> str:
  return f'<section>\n<h2>{html.escape(title)}</h2>\n{"".join(parts)}\n</section>'


def note(text: str, *commands: str) -> str:
  """A paragraph, and the commands that make what it speaks of."""
  shown = ''.join(f' <code>{html.escape(command)}</code>' for command in commands)
  return f'<p class="note">{html.escape(text)}{shown}</p>\n'


def figures(drawings: Sequence[tuple[str, str]], kind: str = '') -> str:
  """Drawings with a title each, side by side where there is room."""
  shown = ''.join(
    f'<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>\n'
    for title, svg in drawings
  )
  return f'<div class="figures {kind}">\n{shown}</div>\n'


def replay_section(texts: Sequence[Replay], how: str, commands: Mapping[str, str]) -> str:
  """Texts by name, with a slider over their steps; all of each is there without scripts.

  Args:
    texts: what was generated.
    how: in a sentence.
    commands: by the name of a text, what generates it.
  """
  lanes, shown = [], []
  for text in texts:
    steps, name = f'{text.steps} steps', html.escape(text.name)
    lanes.append(
      f'<button type="button" class="lane" data-name="{name}" '
      f'aria-pressed="false">{name}<canvas></canvas>'
      f'<span class="count">{steps}</span></button>'
    )
    spans = []
    for number, (piece, tokens, step) in enumerate(text.pieces):
      color = 'given' if step == 0 else f'c{(step - 1) * (_COLORS - 1) // max(text.steps - 1, 1)}'
      several = f' data-tokens="{tokens}"' if tokens > 1 else ''
      color += ' junction' * (number in text.junctions)
      spans.append(f'<span class="{color}" data-step="{step}"{several}>{html.escape(piece)}</span>')
    shown.append(
      f'<div class="generated" data-name="{name}" data-steps="{text.steps}" '
      f'data-command="{html.escape(commands[text.name])}" '
      f'aria-label="Text generated with {name}">{"".join(spans)}</div>'
    )
  controls = (
    '<button type="button" id="play">Play</button>'
    f'<input type="range" id="step" min="0" max="{max(text.steps for text in texts)}" '
    'aria-label="Step"><output></output>'
  )
  scale = '<span class="scale">first step<b></b>last step</span>'
  if any(step == 0 for text in texts for _, _, step in text.pieces):
    scale += '<span>given: no colour</span>'
  if any(text.junctions for text in texts):
    scale += '<span><i class="mark"></i>a part of the text begins, unseen by the one before</span>'
  return section(
    'Parallel generation',
    f'<p>{html.escape(how)} A lane is a text from its first token to its last; all of them share '
    'one clock, on which a step is a run of the network. Choose a lane to read its text; a colour '
    'says at which step a token appeared.</p>\n',
    f'<div id="replay">\n<div class="controls">{controls}</div>\n{"".join(lanes)}\n',
    f'{"".join(shown)}\n<p class="key">{scale}</p>\n</div>\n',
    '<p class="note">This command generates the text of '
    f'<span id="which">{html.escape(texts[0].name)}</span>: '
    f'<code id="command">{html.escape(commands[texts[0].name])}</code></p>\n',
  )


def style() -> str:
  """The style sheet, with the colours of steps."""
  colors = [_viridis(number / (_COLORS - 1)) for number in range(_COLORS)]
  rules = [f'.c{number} {{ --c: {color}; }}' for number, color in enumerate(colors)]
  rules.append('.given { --c: var(--muted); }')
  rules.append(f'.scale b {{ background: linear-gradient(to right, {", ".join(colors)}); }}')
  return '\n'.join([_read('page.css'), *rules])


def _viridis(share: float) -> str:
  from matplotlib import cm, colors

  return colors.to_hex(cm.viridis(0.05 + 0.9 * share))


def _read(name: str) -> str:
  return (_FILES / name).read_text('utf-8')


def training_section(
  config: Config, records: Mapping[int, history.Record], goodput: str = ''
) -> str:
  """Curves and the table that training ends with, and where its time went."""
  drawings = [
    ('Loss', plots.svg(lambda axes: plots.loss_panel(axes, records, config.order), 'Loss by step'))
  ]
  kinds = {name for record in records.values() for name in record if name.startswith('loss_')}
  if len(kinds) > 1:
    draw = lambda axes: plots.kinds_panel(axes, records, config.order)
    drawings.append(('Loss by kind of order', plots.svg(draw, 'Loss by kind of order and step')))
  for title, name, label in (
    ('Learning rate and phases', 'learning_rate', 'learning rate'),
    ('Speed', 'tokens_per_second', 'tokens per second'),
  ):
    named = name == 'learning_rate'
    draw = functools.partial(
      plots.curve_panel,
      records=records,
      order=config.order,
      name=name,
      label=label,
      named=named,
    )
    drawings.append((title, plots.svg(draw, f'{title} by step')))
  where = [note(goodput)] if goodput else []
  return section('Training', figures(drawings, 'pairs'), table(history.overview(records)), *where)


def text_section(statistics: Mapping[str, Statistics]) -> str:
  """How long the documents of each corpus are, and how many are there twice."""
  rows = []
  for name, found in statistics.items():
    count = sum(found.lengths.values())
    row: dict[str, Any] = {'corpus': name} if len(statistics) > 1 else {}
    rows.append(
      row
      | {
        'documents': count,
        'tokens of half of them, at most': found.at_most(0.5),
        'of 90 %': found.at_most(0.9),
        'of the longest': found.at_most(1),
        'repeated': f'{found.duplicates / max(1, count):.1%}',
        'held out, of the bytes': f'{found.held_out:.2%}',
      }
    )
  return section('Text', table(rows))


def decoding_section(source: str, numbers: Mapping[str, Any]) -> str:
  """The quality-speed front, and the rows of the benchmark."""
  systems, quality = numbers['systems'], numbers['quality']
  drawings = []
  try:
    if not systems:
      raise ValueError('no systems')
    if quality and plots.are_finite(quality):
      counted = numbers.get('counted')
      draw = lambda axes: plots.front_panel(axes, systems, quality, counted)
      drawings.append(('', plots.svg(draw, 'Held-out nats per token against tokens per second')))
      draw = lambda axes: plots.cost_panel(axes, quality)
      drawings.append(('', plots.svg(draw, 'What order and independence cost at every S')))
      if any(row['won_back'] is not None for row in quality):
        draw = lambda axes: plots.junction_panel(axes, quality)
        drawings.append(('', plots.svg(draw, 'What the order costs near a junction')))
    draw = lambda axes: plots.speed_panel(axes, systems)
    drawings.append(('', plots.svg(draw, 'Tokens per second over S')))
    rows = [
      {
        'system': row['system'],
        'batch': row['batch_size'],
        'steps': row['steps'],
        'tokens/s': row['tokens_per_second'],
      }
      for row in systems
    ]
    costs = [
      {
        'S': row['streams'],
        'nats/token': row['nats'],
        'order costs': row['order_cost'],
        'per junction': row['order_nats_per_junction'],
        'won back': None if row['won_back'] is None else f'{row["won_back"]:.0%}',
        'independence costs': row['independence_cost'],
      }
      for row in quality or ()
    ]
  except (KeyError, TypeError, ValueError, ArithmeticError) as error:
    raise UserError(
      f'{source} holds other rows than bench.decode writes ({sentence(error)}); run it again'
    ) from error
  machine = numbers.get('machine') or {}
  where = ', '.join(str(machine[name]) for name in ('device', 'jax') if name in machine)
  return section(
    'Quality against speed',
    '<p>Where the likelihood goes that speed costs: the <em>order</em> is the strided one taken a '
    'token at a time, against left-to-right; <em>independence</em> is S tokens at once, against '
    'one at a time. The first tokens of a stream lack the text before them; the last ones before '
    'it may win that back, since they are predicted with what follows known.</p>\n',
    figures(drawings),
    table(rows),
    table(costs) if costs else '',
    note(f'Measured on {where}; read from' if where else 'Read from', source),
  )


def scores_section(by_source: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """Likelihoods, with the kind beside every number."""
  parts = []
  for source, rows in by_source.items():
    likelihoods = [row for row in rows if 'nats_per_token' in row]
    try:
      check_rows(rows)
    except ValueError as error:
      raise UserError(
        f'{source} is nothing that evaluate wrote (it {error}); make it anew'
      ) from None
    shown = [
      {
        'order': row['name'],
        **({'text': row['text']} if any(one['text'] for one in likelihoods) else {}),
        'kind': row['kind'],
        'nats/token': row['nats_per_token'],
        '+-': row.get('standard_error'),
        'bits/byte': _of(row['nats_per_byte'], lambda nats: nats / math.log(2)),
        'perplexity': _of(row['nats_per_token'], perplexity),
        # Of what was written into gaps.
        **{n: row.get(n) for n in MEASURES if any(n in one for one in likelihoods)},
      }
      for row in likelihoods
    ]
    parts += [table(shown) if shown else table(rows), note('Read from', source)]
  text = (
    '<p><em>exact</em> is the log-likelihood of a proper distribution over texts, <em>bound</em> '
    'an average over random orders; the two do not compare.</p>\n'
  )
  return section('Likelihood', text, *parts)


def judge_section(by_source: Mapping[str, Mapping[str, Any]]) -> str:
  """Generative perplexity, entropy beside it."""
  rows = [
    {
      'texts': source,
      'judge': numbers['judge'],
      'perplexity': numbers['verdict']['corpus_perplexity'],
      'mean over texts': numbers['verdict']['mean_perplexity'],
      'entropy, bits': numbers['statistics']['entropy_bits'],
      'distinct-2': numbers['statistics']['distinct_2'],
      'repetition-4': numbers['statistics']['repetition_4'],
      'MAUVE': numbers['mauve'],
    }
    for source, numbers in by_source.items()
  ]
  text = note('A judge likes a text that says one word for ever: read entropy with perplexity.')
  return section('Generated texts under a judge', text, table(rows))


def masks_section(drawn: Mapping[str, GenerationOrder]) -> str:
  """Orders by name, and what their rows see."""
  drawings = [
    (
      name,
      plots.svg(
        lambda axes, order=order: plots.order_and_mask(axes, order),
        f'Order and mask: {name}',
        (3.6, 4.3),
        nrows=2,
        height_ratios=(1, 8),
      ),
    )
    for name, order in drawn.items()
  ]
  key = ''.join(
    f'<span><i style="background: var(--{color})"></i>{text}</span>'
    for color, text in (
      ('content', 'earlier blocks: query and content rows see them'),
      ('query', 'own block: content rows only'),
      ('hidden', 'hidden'),
    )
  )
  text = (
    '<p>The kinds of order that this run was trained on, at a few tokens. Stored in generation '
    'order, every row sees a prefix of the keys.</p>\n'
  )
  return section(
    'Orders and masks', text, figures(drawings, 'small'), f'<p class="key">{key}</p>\n'
  )


def config_section(config: Config) -> str:
  """Every option, by group."""
  rows = [
    {'option': f'{group}.{name}', 'value': str(value)}
    for group in ('model', 'order', 'data', 'optimizer', 'train', 'mesh')
    for name, value in dataclasses.asdict(getattr(config, group)).items()
  ]
  return section(
    'Configuration', f'<details><summary>{len(rows)} options</summary>{table(rows)}</details>'
  )


def page(title: str, lead: str, tiles: Mapping[str, str], sections: Sequence[str]) -> str:
  """The whole page."""
  shown = [
    f'<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>'
    for name, value in tiles.items()
  ]
  command = shlex.join(['armd', 'report', *sys.argv[1:]])
  return string.Template(_read('page.html')).substitute(
    title=html.escape(title),
    lead=html.escape(lead),
    tiles='\n'.join(shown),
    sections='\n'.join(sections),
    style=style(),
    script=_read('replay.js'),
    command=html.escape(command),
  )

"""The report of a run: what `report_page` shows of it, in order."""

from __future__ import annotations

import pathlib
import shlex
import types
from collections.abc import Mapping, Sequence

from armd_jax.config import Config
from armd_jax.data import mixture
from armd_jax.data.statistics import Statistics
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.show import goodput, history, report_page
from armd_jax.show.columns import num_parameters
from armd_jax.show.replays import drawn_orders, replays
from armd_jax.show.report_files import Measured

_FLAGS = {'S': 'streams', 'K': 'steps'}  # of `sample`, by what distinguishes its texts


def page(
  workdir: pathlib.Path,
  config: Config,
  step: int,
  records: Mapping[int, history.Record],
  measured: Measured,
  decoder: Decoder,
  sampling: Sampling,
  *,
  streams: Sequence[int] = (1, 2, 4, 8),
  prompt: str = '',
  statistics: Mapping[str, Statistics] = types.MappingProxyType({}),
) -> str:
  """A run as one HTML page.

  Args:
    workdir: of the run; its name is the title.
    config, step: of the run.
    records: its log.
    measured: numbers of other programs.
    decoder: the run's weights, which generate the texts that are replayed.
    sampling: how their tokens are drawn.
    streams: stride counts S of the texts that are generated, see `replays`.
    prompt: what these continue.
    statistics: of the prepared corpora that it was trained on, by name.
  Raises:
    UserError: an S does not suit the model, or numbers are not what they should be.
  """
  command = _sample_command(workdir, prompt, sampling)
  streams = [1] if config.model.orders == 'left_to_right' else streams
  texts, how = replays(decoder, prompt, streams, sampling)
  commands = {}
  for text in texts:
    kind, _, number = text.name.partition(' = ')
    commands[text.name] = f'{command} --{_FLAGS[kind]}={number}'
  sections = [report_page.replay_section(texts, how, commands)]
  for path, rows in measured.decoding.items():
    sections.append(report_page.decoding_section(path, rows))
  if measured.scores:
    sections.append(report_page.scores_section(measured.scores))
  if measured.verdicts:
    sections.append(report_page.judge_section(measured.verdicts))
  found = goodput.of(history.lines(workdir / 'metrics.jsonl'))
  sections.append(report_page.training_section(config, records, found.text() if found else ''))
  if statistics:
    sections.append(report_page.text_section(statistics))
  if drawn := drawn_orders(config, step):
    sections.append(report_page.masks_section(drawn))
  sections.append(report_page.config_section(config))

  model = config.model
  lead = (
    f'{model.family.upper()}, {model.num_layers} layers x {model.embed_dim}, {model.num_heads} '
    f'heads, {model.length:,} tokens of {decoder.tokenizer.name}; trained on '
    f'{", ".join(mixture.sources(config.data))}'
  )
  tiles = {
    'parameters': _short(num_parameters(decoder.params)),
    'steps': f'{step:,}',
    **_read(config, step),
  }
  tiles |= _held_out(config, step, records, measured)
  return report_page.page(workdir.absolute().name, lead, tiles, sections)


def _read(config: Config, step: int) -> dict[str, str]:
  """How much the run has read, as far as its options tell."""
  a_step = config.train.batch_size * config.model.length
  # How much of a window of documents is padding depends on the text.
  is_padded = config.data.packing == 'documents'
  what, with_padding = ('positions', ', with padding') if is_padded else ('tokens', '')
  if config.init_from:  # whose steps, which count on, may have had batches of another size
    return {f'{what} a step{with_padding}': _short(a_step)}
  return {f'{what} read{with_padding}': _short(step * a_step)}


def _held_out(
  config: Config, step: int, records: Mapping[int, history.Record], measured: Measured
) -> dict[str, str]:
  """The one held-out number of the page, of as many windows as were measured at once; with its
  step, where that is not the page's."""
  rows = [row for rows in measured.scores.values() for row in rows if row.get('tokens')]
  rows = [row for row in rows if 'nats_per_gap' not in row]  # of whole texts
  by_kind = [row for row in rows if row['kind'] == 'exact'] or rows
  if by_kind:
    count = by_kind[0]['tokens']
    return {f'nats/token, {count:,} held-out tokens': _nats(by_kind[0]['nats_per_token'])}
  if (logged := history.held_out(records, step)) is None:
    return {}
  measured_step, nats = logged
  title = f'nats/token, up to {config.train.eval_windows} held-out windows'
  of_step = '' if measured_step == step else f', at step {measured_step:,}'
  return {title + of_step: _nats(nats)}


def _nats(nats: float | None) -> str:
  return 'not finite' if nats is None else f'{nats:.4f}'


def _sample_command(workdir, prompt, sampling):
  arguments = {'workdir': workdir} | ({'prompt': prompt} if prompt else {})
  arguments |= {name: getattr(sampling, name) for name in ('seed', 'temperature', 'top_p')}
  flags = [f'--{name}={value}' for name, value in arguments.items()]
  return shlex.join(['armd', 'sample', *flags])


def _short(count: int) -> str:
  """
  Examples:
    >>> _short(2_430_000), _short(512)
    ('2.4M', '512')
  """
  for unit, name in ((10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
    if count >= unit:
      return f'{count / unit:.1f}{name}'
  return str(count)

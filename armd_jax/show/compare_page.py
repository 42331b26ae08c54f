"""Several runs on one page: their numbers, curves and texts side by side."""

from __future__ import annotations

import dataclasses
import operator
import pathlib
import shlex
from collections.abc import Mapping, Sequence

from armd_jax import config as config_lib
from armd_jax.config import Config
from armd_jax.decode.requests import Decoder
from armd_jax.decode.sampling import Sampling
from armd_jax.show import history, plots, report_page
from armd_jax.show.columns import num_parameters
from armd_jax.show.replays import replays


@dataclasses.dataclass(frozen=True)
class Run:
  """What a page shows of a run.

  Attributes:
    workdir: of the run.
    config, step: of the run.
    records: its log.
    decoder: its weights.
    text: sha256 of its text, '' if that is not known.
  """

  workdir: pathlib.Path
  config: Config
  step: int
  records: Mapping[int, history.Record]
  decoder: Decoder
  text: str


def page(runs: Sequence[Run], sampling: Sampling, streams: int, prompt: str) -> str:
  """The runs as one HTML page.

  Args:
    runs: two or more.
    sampling: how the tokens of texts are drawn.
    streams: S of texts, where the family has it.
    prompt: what they continue.
  Raises:
    UserError: the prompt leaves no room.
  """
  names = _names(runs)
  rows, texts, commands = [], [], {}
  for name, run in zip(names, runs, strict=True):
    measured_step, nats = history.held_out(run.records, run.step) or (None, None)
    rows.append({
      'run': name, 'family': run.config.model.family, 'parameters': num_parameters(
        run.decoder.params), 'step': run.step, 'held out, nats/token': nats, 'at step':
      measured_step, 'tokenizer': run.decoder.tokenizer.name, 'text, sha256': run.text[:16] or
      'not known',
    })  # fmt: skip
    count = 1 if run.config.model.orders == 'left_to_right' else streams
    (text,), _ = replays(run.decoder, prompt, [count], sampling)
    kind, _, number = text.name.partition(' = ')
    flag = {'S': 'streams', 'K': 'steps'}[kind]
    texts.append(dataclasses.replace(text, name=f'{name}, {text.name}'))
    words = [f'--workdir={run.workdir}', f'--prompt={prompt}', f'--{flag}={number}']
    words += [f'--{one}={getattr(sampling, one)}' for one in ('seed', 'temperature', 'top_p')]
    commands[texts[-1].name] = shlex.join(['armd', 'sample', *words])
  curves = {name: run.records for name, run in zip(names, runs, strict=True)}
  panels = {'held_out': 'Held-out loss', 'loss': 'Training loss'} | {
    f'held_out_s{streams}': f'Held-out loss, {streams} tokens at once'
    for streams in sorted({one for run in runs for one in run.config.train.eval_streams})
  }
  drawings = [
    (title, plots.svg(lambda axes, key=key: plots.runs_panel(axes, curves, key), title, (6.2, 3.4)))
    for key, title in panels.items()
  ]
  differing = [
    {'option': field} | {n: str(value) for n, value in zip(names, values, strict=True)}
    for field, _ in config_lib.fields()
    if len(set(values := [operator.attrgetter(field)(run.config) for run in runs])) > 1
  ]
  sections = [
    report_page.section(
      'Runs compared',
      report_page.note(
        'Numbers compare where text and tokenizer are the same and both are exact, or both bounds.'
      ),
      report_page.table(rows),
      report_page.figures(drawings, 'pairs'),
    ),
    report_page.replay_section(texts, 'One text of each run.', commands),
    report_page.section('What differs', report_page.table(differing) if differing else 'Nothing.'),
  ]
  return report_page.page(' beside '.join(names), f'{len(runs)} runs', {}, sections)


def _names(runs: Sequence[Run]) -> list[str]:
  """Names of the folders, in full where two are alike."""
  short = [run.workdir.absolute().name for run in runs]
  return short if len(set(short)) == len(short) else [str(run.workdir) for run in runs]

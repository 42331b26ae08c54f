"""Speed over commits: `python -m armd_jax.bench.ratios`, or `make bench`.

Measures a few ratios that hardly depend on the machine, appends them as one line to
docs/records/history.jsonl, and draws all lines as docs/history.png. Every part is a process of its
own, so that no part finds what another has imported or compiled.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from armd_jax import cli
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import clock, machines
from armd_jax.show import plots

ROOT = pathlib.Path(__file__).parents[2]
HISTORY, PICTURE = 'docs/records/history.jsonl', 'docs/history.png'

DECODE = '--shape=weight_bound', '--streams=1,4', '--repeats=3'
TRAIN_STEP = '--shape=small', '--repeats=5'
# One step of the quickstart, so that the time is that of a start: imports, data, compilation.
START = '--config=experiments/quickstart.py', '--config.train.steps=1'

# What the picture calls each ratio.
RATIOS = {
  's4_over_s1': 'decoding: tokens/s of S = 4 over S = 1',
  's1_over_ar': 'decoding: tokens/s of S = 1 over AR',
  'train_armd_over_ar': 'training step: seconds of ARMD over AR',
  'import_over_jax': 'seconds to import the training loop, over jax alone',
  'start_over_jax': 'seconds of a run of one step, over importing jax',
}


def measure(
  decode_flags: Sequence[str] = DECODE,
  train_step_flags: Sequence[str] = TRAIN_STEP,
  start_flags: Sequence[str] = START,
  repeats: int = 3,
) -> dict[str, float]:
  """The ratios of this code, by the names of `RATIOS`, and the seconds behind the last two.

  Args:
    decode_flags: of `armd_jax.bench.decode`, with S = 1 and S = 4 among the streams.
    train_step_flags: of `armd_jax.bench.train_step`.
    start_flags: of `armd_jax.train`.
    repeats: of imports; their median counts.
  Raises:
    UserError: one of the programs failed; its own message is on stderr.
  """
  with tempfile.TemporaryDirectory() as folder:
    speeds, steps = pathlib.Path(folder, 'decode.json'), pathlib.Path(folder, 'train_step.json')
    _python('-m', 'armd_jax.bench.decode', *decode_flags, f'--json={speeds}')
    _python('-m', 'armd_jax.bench.train_step', *train_step_flags, f'--json={steps}')
    systems = json.loads(speeds.read_text('utf-8'))['systems']  # AR comes first
    ar, *armd = (row['tokens_per_second'] for row in systems)
    rate = dict(zip((row['streams'] for row in systems[1:]), armd, strict=True))
    train = json.loads(steps.read_text('utf-8'))['ratios']['time']
    calls = {
      'jax': lambda: _python('-c', 'import jax'),
      'import': lambda: _python('-c', 'import armd_jax.training.loop'),
    }
    seconds = clock.medians(clock.interleaved(calls, repeats))
    start = lambda: _python('-m', 'armd_jax.train', *start_flags, f'--workdir={folder}/run')
    (start_seconds,) = clock.interleaved({'start': start}, 1, warm_up=0)['start']
  return {
    's4_over_s1': rate[4] / rate[1],
    's1_over_ar': rate[1] / ar,
    'train_armd_over_ar': train,
    'import_over_jax': seconds['import'] / seconds['jax'],
    'start_over_jax': start_seconds / seconds['jax'],
    'import_seconds': seconds['import'],
    'start_seconds': start_seconds,
  }


def _python(*arguments: str) -> None:
  """Runs this Python in the root of the repository; what it prints goes to stderr."""
  done = subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=sys.stderr, check=False)
  if done.returncode:
    raise UserError(
      f'python {" ".join(arguments[:2])} ended with exit code {done.returncode}; its message is '
      'above, and nothing was added to the history'
    )


def commit() -> dict[str, str]:
  """The commit that is measured, with '+' after it if files were changed since, and its date."""
  git = lambda *words: subprocess.check_output(['git', *words], cwd=ROOT, text=True).strip()
  changed = git('status', '--porcelain', '--untracked-files=no')
  return {
    'commit': git('rev-parse', '--short=10', 'HEAD') + ('+' if changed else ''),
    'date': git('show', '-s', '--format=%cs', 'HEAD'),
  }


def append(path: pathlib.Path, record: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Adds a line to a file of JSON lines; returns all of them, the new one last."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('a', encoding='utf-8') as lines:
    lines.write(json.dumps(record) + '\n')
  return [json.loads(line) for line in path.read_text('utf-8').splitlines()]


def draw(records: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Every ratio over the commits, in the order in which they were measured."""
  import matplotlib.pyplot as plt

  figure, all_axes = plt.subplots(len(RATIOS), 1, sharex=True, figsize=(8, 9), layout='constrained')
  for (name, title), axes in zip(RATIOS.items(), all_axes, strict=True):
    axes.plot([record[name] for record in records], 'o-', color=plots.CONTENT)
    axes.set_title(title, fontsize=9, loc='left')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
  names = [f'{record["commit"]}\n{record["date"]}' for record in records]
  all_axes[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=7)
  plots.save(figure, path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  repeats: int = flag('Rounds in which imports are timed.', 3, at_least=1)


def main(options: Options) -> None:
  record = commit() | measure(repeats=options.repeats)
  machine = machines.machine()
  record |= {'machine': machines.machine_line(machine)}
  records = append(ROOT / HISTORY, record)
  draw(records, ROOT / PICTURE)
  for name, title in RATIOS.items():
    print(f'{record[name]:8.3f}  {title}')
  print(f'added to {HISTORY}; drawn as {PICTURE}')


if __name__ == '__main__':
  cli.run(main, Options)

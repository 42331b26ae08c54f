"""Measures a run: `python -m armd_jax.evaluate --workdir=DIR [--suite=NAME --texts=NAME=FILE,...]`.

  --suite=likelihood   the run's own held-out text under every kind of order (the default)
  --suite=sedd         texts that were not trained on, as the paper of that name scores them; also
                       radd and mdlm
  --suite=lambada      how often LAMBADA's last words are predicted

Every number is labelled: 'exact' is the log-likelihood of a proper distribution over texts, 'bound'
an average over random orders. The two kinds do not compare. A stopped evaluation goes on when its
command is repeated.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from armd_jax import cli
from armd_jax.artifacts.weights import load_ema
from armd_jax.config import Config
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import MetByAll, UserError
from armd_jax.evaluation import protocols, scores, texts
from armd_jax.evaluation.journal import Journal
from armd_jax.evaluation.suites import (
  LAST_WORD,
  LIKELIHOOD,
  Task,
  last_word_task,
  likelihood_task,
  zero_shot_task,
)
from armd_jax.parallel import distributed


def _given(values: Sequence[str]) -> dict[str, str]:
  """Sources of --texts by name, '' where none is given."""
  return {name: source for name, _, source in (value.partition('=') for value in values)}


def _task(config: Config, tokenizer: Tokenizer) -> Task:
  """What the flags ask for."""
  suite, given = _SUITE.value, _given(_TEXTS.value)
  if suite == LIKELIHOOD and given:
    raise UserError(
      f'--suite={LIKELIHOOD} scores the held-out text of the run; leave out --texts, or choose a '
      f'suite of {", ".join(protocols.PROTOCOLS)}'
    )
  if suite == LIKELIHOOD:
    streams = cli.streams_of(_STREAMS)
    return likelihood_task(config, streams, _ORDERS.value, _WINDOWS.value)
  if not given:
    raise UserError(
      f'--suite={suite} needs texts; write --texts=NAME=FILE,... with names of '
      f'{", ".join(texts.TEXTS)}, or a name alone to read it from tensorflow-datasets'
    )
  if suite == LAST_WORD:
    return last_word_task(given, config, tokenizer, _WINDOWS.value)
  streams = cli.streams_of(_STREAMS) if _STREAMS.present else ()
  return zero_shot_task(suite, given, config, tokenizer, streams, _ORDERS.value, _WINDOWS.value)


def _journal(task: Task, params: Any, config: Config, step: int) -> Journal:
  """What was measured before, which all processes have to read alike."""
  workdir = pathlib.Path(_WORKDIR.value)
  folder = workdir if workdir.is_dir() else workdir.parent  # an export may be one file
  path = _PARTIAL.value or folder / f'evaluate_{_SUITE.value}.partial'
  measured = {
    'model': [step, scores.model_fingerprint(params, config)],
    'text': task.texts,
    'protocol': [
      task.described,
      [[part.protocol.name, part.orders, len(part.windows_WxN)] for part in task.parts],
    ],
    'seed': _SEED.value,
  }
  first = distributed.is_first()
  journal = distributed.together(
    lambda: Journal(path, measured, restart=_RESTART.value, writes=first)
  )
  if len(set(distributed.gather_text(str(journal.count)))) > 1:
    raise MetByAll(
      f'the processes do not read the same in {path}; give a --partial that all of them can read, '
      'or --restart'
    )
  return journal


def main() -> None:
  mesh_config = cli.mesh_of(_MESH.value)
  distributed.start(_CLUSTER())
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(_WORKDIR.value, mesh_config)
  )
  task = distributed.together(lambda: _task(config, tokenizer))
  journal = _journal(task, params, config, step)
  if distributed.is_first():
    print(f'{_WORKDIR.value}, step {step}')
    print('\n'.join(task.described))
    if journal.count:
      print(f'{journal.count} windows were scored before')
  common = {'batch_size': _BATCH_SIZE.value, 'journal': journal}
  if task.passages is not None:
    found = scores.score_last_words(config, tokenizer, params, task.passages, **common)
    text, rows = found.text(), [vars(found)]
  else:
    found = scores.score(config, tokenizer, params, task.parts, seed=_SEED.value, **common)
    text, rows = scores.table(found), [one.row() for one in found]
  if not distributed.is_first():
    return
  print(text)
  if _JSON.value:
    numbers = {
      'suite': _SUITE.value,
      'step': step,
      'seed': _SEED.value,
      'protocol': task.described,
      'texts': task.texts,
      'scores': rows,
    }
    cli.write_json(_JSON.value, numbers)
  journal.finish()


if __name__ == '__main__':
  _WORKDIR = cli.workdir_flag('A training run, or an export.')
  _SUITE = flags.DEFINE_enum(
    'suite', LIKELIHOOD, [LIKELIHOOD, *protocols.PROTOCOLS, LAST_WORD], 'What to measure.'
  )
  _TEXTS = flags.DEFINE_list(
    'texts', [], 'Texts of a zero-shot suite: NAME=FILE, or NAME to read it by tensorflow-datasets.'
  )
  _STREAMS = cli.streams_flag('2,4,8')
  _ORDERS = flags.DEFINE_integer('orders', 8, 'Random orders per window.', lower_bound=1)
  _WINDOWS = flags.DEFINE_integer('windows', 0, 'First windows to score; 0: all.', lower_bound=0)
  _BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Windows per call.', lower_bound=1)
  _SEED = flags.DEFINE_integer('seed', 0, 'Seed of random orders.')
  _RESTART = flags.DEFINE_bool('restart', False, 'Drop what a stopped evaluation left.')
  _PARTIAL = flags.DEFINE_string(
    'partial', None, 'Where results are kept until all are there; left out: in the workdir.'
  )
  _JSON = cli.json_flag()
  _MESH = cli.mesh_flag()
  _CLUSTER = distributed.define_flags()
  cli.run(main)

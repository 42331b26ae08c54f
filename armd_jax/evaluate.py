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

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from armd_jax import cli, distributed
from armd_jax.config import Config
from armd_jax.data import corpus as corpus_lib
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import MetByAll, UserError
from armd_jax.evaluation import last_word, likelihood, protocols, scores, texts
from armd_jax.evaluation.journal import Journal
from armd_jax.sample import load_ema

LIKELIHOOD, LAST_WORD = 'likelihood', 'lambada'


@dataclasses.dataclass(frozen=True)
class Task:
  """What a suite measures.

  Attributes:
    described: lines that are printed with the result, and written.
    parts: windows under protocols; empty if the suite is LAST_WORD.
    passages: of LAST_WORD.
    texts: digits that name the windows.
  """

  described: tuple[str, ...]
  texts: str
  parts: tuple[scores.Part, ...] = ()
  passages: last_word.Passages | None = None


def likelihood_task(config: Config, streams: Sequence[int], orders: int, num_windows: int) -> Task:
  """Every kind of order on the run's own held-out text.

  Args:
    config: of the run.
    streams: stride counts S.
    orders: K, random orders per window.
    num_windows: of the first ones; 0: all.
  Raises:
    UserError: an S does not divide the length, or the text is not there.
  """
  suite = likelihood.standard_suite(config.model, streams)
  if likelihood.UNIFORM in suite and config.order.rho > 1:
    suite.insert(-1, likelihood.shuffled_protocol(config.order))
  corpus = corpus_lib.load(config.data, config.model.length)
  windows_WxN = corpus.held_out_WxN[: num_windows or None]
  parts = [
    scores.Part(protocol, windows_WxN, orders=1 if protocol.streams else orders)
    for protocol in suite
  ]
  described = (
    f'held out of {corpus.description}',
    f'{len(windows_WxN)} windows of {config.model.length} tokens, BOS before each',
  )
  return Task(described, scores.fingerprint([windows_WxN]), parts=tuple(parts))


def zero_shot_task(
  name: str,
  given: dict[str, str],
  config: Config,
  tokenizer: Tokenizer,
  streams: Sequence[int],
  orders: int,
  num_windows: int,
) -> Task:
  """Texts as a published evaluation scores them: left-to-right, where the model can.

  Args:
    name: of `protocols.PROTOCOLS`.
    given: sources by name of a text, as of `protocols.sources_of`.
    config, tokenizer: of the run.
    streams: stride counts S that are scored beside.
    orders: K, random orders per window of a model that has no other.
    num_windows: of the first ones of every text; 0: all.
  Raises:
    UserError: a text is not known or not there, or an S does not divide the length.
  """
  protocol = protocols.PROTOCOLS[name]
  suite = likelihood.standard_suite(config.model, streams)
  suite = [p for p in suite if p != likelihood.UNIFORM]
  described = [f'{protocol.describe(config.model.length)}; tokenizer {tokenizer.name}']
  parts = []
  for text_name, source in protocols.sources_of(protocol, given).items():
    text = texts.TEXTS[text_name]
    rows = texts.read_rows(text, source)
    windows_WxN = protocols.windows(protocol, text, rows, tokenizer, config.model.length)
    found, windows_WxN = len(windows_WxN), windows_WxN[: num_windows or None]
    described.append(
      f'{text.title}: {source}, whose split should be {protocol.split_of(text)!r}; detokenizer '
      f'{text.detokenizer}; {len(windows_WxN)} of {found} windows, {len(rows)} rows'
    )
    parts += [scores.Part(p, windows_WxN, text.title, 1 if p.streams else orders) for p in suite]
  digits = scores.fingerprint(part.windows_WxN for part in parts)
  return Task(tuple(described), digits, parts=tuple(parts))


def last_word_task(
  given: dict[str, str], config: Config, tokenizer: Tokenizer, num_windows: int
) -> Task:
  """LAMBADA's last words; arguments as of `zero_shot_task`.

  Raises:
    UserError: the text is not there, or the model cannot run left-to-right.
  """
  if likelihood.LEFT_TO_RIGHT not in likelihood.standard_suite(config.model, ()):
    raise UserError(
      f'--suite={LAST_WORD} predicts left-to-right, which a model of family '
      f"'{config.model.family}' cannot; choose another suite"
    )
  if list(given) != ['lambada']:
    raise UserError(
      f'--suite={LAST_WORD} reads LAMBADA alone; write --texts=lambada or --texts=lambada=FILE'
    )
  (source,) = protocols.sources_of(protocols.PROTOCOLS['sedd'], given).values()
  rows = texts.read_rows(texts.TEXTS['lambada'], source)[: num_windows or None]
  passages = last_word.passages(rows, tokenizer, config.model)
  described = (
    f'{last_word.describe(config.model.length)}; tokenizer {tokenizer.name}',
    f'LAMBADA: {source}; {len(rows)} passages, of which {passages.cut} lost their beginning',
  )
  digits = scores.fingerprint([passages.text_WxN, passages.first_W])
  return Task(described, digits, passages=passages)


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

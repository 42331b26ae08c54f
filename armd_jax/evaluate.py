"""Measures a run: `armd evaluate --workdir=DIR [--suite=NAME --texts=NAME=FILE,...]`.

  --suite=likelihood   the run's own held-out text under every kind of order (the default)
  --suite=sedd         texts that were not trained on, as the paper of that name scores them; also
                       radd and mdlm
  --suite=lambada      how often LAMBADA's last words are predicted
  --suite=infilling    missing sentences of stories: nats of the true ones, ROUGE of generated ones

Every number is labelled: 'exact' is the log-likelihood of a proper distribution over texts, 'bound'
an average over random orders; numbers of different kinds cannot be compared. The same command
resumes an evaluation that was stopped.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from armd_jax import cli, families
from armd_jax.artifacts.weights import load_ema, text_sha256_of
from armd_jax.config import MeshConfig
from armd_jax.decode.requests import Decoder
from armd_jax.errors import check_seed
from armd_jax.evaluation import journal as journal_lib
from armd_jax.evaluation import scores, suites
from armd_jax.flags import flag
from armd_jax.parallel import distributed, sharding
from armd_jax.show import header


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.OnCluster):
  workdir: str = flag('A training run, or an export.', is_path='or a bucket')
  suite: str = flag('What to measure.', suites.LIKELIHOOD, choices=suites.SUITES)
  texts: tuple[str, ...] = flag(
    'Texts of a zero-shot suite: NAME=FILE with any name, or NAME to read it by '
    'tensorflow-datasets.',
    (),
    is_path='NAME=FILE',
  )
  streams: tuple[int, ...] | None = flag(
    f'Stride counts S; left out: 2,4,8 with --suite={suites.LIKELIHOOD}, 2,4 with '
    f'{suites.INFILLING}, none with others.',
    None,
    at_least=1,
  )
  orders: int = flag('Random orders per window.', 8, at_least=1, at_most=2**16)
  windows: int = flag('First windows to score; 0: all.', 0, at_least=0)
  batch_size: int = flag('Windows per call.', 16, at_least=1, at_most=2**16)
  seed: int = flag('Seed of random orders.', 0)
  restart: bool = flag('Drop what a stopped evaluation left.', False)
  partial: str | None = flag(
    'Where results are kept until all are there; left out: in the workdir, of one in a bucket '
    'nowhere.',
    None,
    is_path=True,
  )
  json: str | None = cli.json_file()
  mesh: MeshConfig | None = cli.mesh()


def main(options: Options) -> None:
  check_seed(options.seed)
  given = suites.sources(options.texts)
  options.start()
  config, tokenizer, params, step = distributed.together(
    lambda: load_ema(options.workdir, options.mesh)
  )
  task = distributed.together(
    lambda: suites.task_of(
      options.suite,
      given,
      config,
      tokenizer,
      options.streams,
      options.orders,
      options.windows,
      text_sha256_of(options.workdir),
    )
  )
  distributed.agree('the text', {'digits of the windows': task.texts})
  model = families.build(config.model, tokenizer.vocab_size)
  mesh = sharding.make_mesh(config.mesh)
  path = journal_lib.place(options.partial, options.workdir, options.suite)
  measured = task.identity([step, scores.model_fingerprint(params, mesh)], options.seed)
  with journal_lib.shared(path, measured, restart=options.restart) as journal:
    if distributed.is_first():
      print(f'{options.workdir}, step {step}')
      print('\n'.join([*header.lines(config.model, mesh), *task.described]))
      if journal.count:
        print(f'{journal.count} windows were scored before')
      print('compiling ...', flush=True)
    decoder = Decoder(model, params, tokenizer, mesh)
    how: dict[str, Any] = {'batch_size': options.batch_size, 'seed': options.seed}
    lines, rows = suites.measure(task, decoder, mesh, **how, journal=journal)
    if not distributed.is_first():
      return
    if options.json:
      numbers = {
        'suite': options.suite,
        'step': step,
        'seed': options.seed,
        'protocol': task.described,
        'texts': task.texts,
        'scores': rows,
      }
      cli.write_json(options.json, numbers)
    print('\n'.join(lines), flush=True)  # or raises, before what is kept is dropped
    journal.finish()


if __name__ == '__main__':
  cli.run(main, Options)

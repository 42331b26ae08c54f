"""All steps in minutes: train, fine-tune for parallel decoding, measure, generate.

  make quickstart [TEXT='books/*.txt']
  armd quickstart --workdir=DIR [--text=FILE_OR_GLOB] [--config.train.steps=2000 ...]

All numbers it prints go to results.json in the work directory, beside the checkpoint, two plots, a
page that replays how the texts were written, and the trained model alone (model/).
The same command resumes a quickstart that was stopped.
"""

from __future__ import annotations

import dataclasses
import os
import sys

import jax
from ml_collections import ConfigDict

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.artifacts import pack
from armd_jax.files import paths
from armd_jax.flags import experiment, flag
from armd_jax.training.quickstart import closing_words, quickstart


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  config: ConfigDict = experiment('experiments/quickstart.py')
  workdir: str = flag('Where everything goes.', is_path=True)
  text: str | None = flag('A file or glob of UTF-8 text to train on.', None)


def main(options: Options) -> None:
  raw = options.config.copy_and_resolve_references()
  if options.text:
    raw.data.source = options.text
  workdir = paths.given(options.workdir, '--workdir')
  print(f'python {sys.version.split()[0]}, jax {jax.__version__}, {os.cpu_count()} cores')
  results = quickstart(config_lib.parse(raw), workdir)
  packed = pack.pack(workdir, 'quickstart', {'held out': results['held_out']['after_sbp']})
  print(f'the model alone, for others: {packed.absolute()}')
  print('\n===== Done')
  print(closing_words(results, workdir))


if __name__ == '__main__':
  cli.run(main, Options)

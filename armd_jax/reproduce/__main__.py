"""The comparison of systems in miniature, on any text:

  make reproduce-mini TEXT='books/*.txt' [WORKDIR=DIR]
  python -m armd_jax.reproduce --workdir=DIR [--text=FILE_OR_GLOB] [--out=docs] [--only=REGEX]

Trains all systems of the comparison at one small size, fine-tunes ARMD for parallel generation,
ablates, measures, and writes reproduction.md, reproduction.json and pictures. Every result is kept
in the work directory at once: the same command goes on where a stopped one was, and does anew what
another text or other code has made stale. --only=REGEX runs the pieces of such names, with what
they need; --list prints the names. The page is written from whatever is there.
"""

from __future__ import annotations

import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.data import corpus as corpus_lib
from armd_jax.errors import UserError
from armd_jax.reproduce import page, run
from armd_jax.reproduce.pieces import all_pieces
from armd_jax.reproduce.place import Place


def main() -> None:
  raw = cli.experiment(_CONFIG)
  if _TEXT.value:
    raw.data.source = _TEXT.value
  config = config_lib.parse(raw)
  pieces = all_pieces(raw)
  some = run.chosen(pieces, _ONLY.value)
  if _LIST.value:
    print('\n'.join(f'{piece.kind:8}  {piece.name}' for piece in some))
    return
  corpus = corpus_lib.load(config.data, config.model.length)
  print(f'text: {corpus.description}, sha256 {corpus.sha256}', flush=True)
  place = Place(pathlib.Path(_WORKDIR.value), raw.to_dict(), corpus.sha256)
  failed = [] if _PAGE_ONLY.value else run.run(some, place, _JOBS.value)
  parts = ('--only', '--page_only', '--jobs')
  given = [flag for flag in sys.argv[1:] if not flag.startswith(parts)]
  command = shlex.join(['python', '-m', 'armd_jax.reproduce', *given])
  numbers = page.numbers(raw, place, pieces, command, corpus)
  page.write(numbers, pathlib.Path(_OUT.value))
  print(
    f'{pathlib.Path(_OUT.value) / "reproduction.md"}: {len(numbers["pieces"])} of '
    f'{len(pieces)} pieces'
  )
  if failed:
    raise UserError(
      f'{len(failed)} pieces failed: {", ".join(failed)}; see {place.workdir / "logs"}, and give '
      'the same command again to go on'
    )


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file(
    'config', 'experiments/miniature.py', help_string='Experiment file.'
  )
  _WORKDIR = cli.workdir_flag('Results, runs and logs.')
  _TEXT = flags.DEFINE_string('text', None, 'A file or glob of UTF-8 text to train on.')
  _OUT = flags.DEFINE_string('out', 'docs', 'Folder of the page.')
  _ONLY = flags.DEFINE_string('only', '', 'A regular expression of the names of pieces.')
  _LIST = flags.DEFINE_bool('list', False, 'Print the names of the pieces only.')
  _PAGE_ONLY = flags.DEFINE_bool('page_only', False, 'Run nothing; write the page.')
  _JOBS = flags.DEFINE_integer('jobs', 2, 'Processes, each on one core.', lower_bound=1)
  cli.run(main)

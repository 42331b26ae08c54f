"""The comparison of systems in miniature, on any text:

  make reproduce-mini TEXT='books/*.txt' [WORKDIR=DIR]
  armd reproduce --workdir=DIR [--text=FILE_OR_GLOB] [--out=docs] [--only=REGEX]

Trains all systems of the comparison at one small size, fine-tunes ARMD for parallel generation,
ablates, measures, and writes reproduction.md, reproduction.json and pictures. Every result is kept
in the work directory at once: the same command resumes a stopped one, and measures again what
another text or other code has made stale. --only=REGEX runs the pieces of such names, with what
they need; --list prints the names. The page is written from whatever is there.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys

from ml_collections import ConfigDict

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.data import corpus as corpus_lib
from armd_jax.errors import UserError
from armd_jax.files import paths
from armd_jax.flags import experiment, flag
from armd_jax.reproduce import page, run
from armd_jax.reproduce.pieces import all_pieces
from armd_jax.reproduce.place import Place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  config: ConfigDict = experiment('experiments/miniature.py')
  workdir: str = flag('Results, runs and logs.', is_path=True)
  text: str | None = flag('A file or glob of UTF-8 text to train on.', None)
  judge: str = flag('Hugging Face folder or .gguf file, for generated texts.', '', is_path=True)
  out: str = flag('Folder of the page.', 'docs', is_path=True)
  only: str = flag('A regular expression of the names of pieces.', '')
  list: bool = flag('Print the names of the pieces only.', False)
  page_only: bool = flag('Run nothing; write the page.', False)
  jobs: int = flag('Processes, each on one core.', 2, at_least=1)


def main(options: Options) -> None:
  workdir, out = paths.given(options.workdir, '--workdir'), paths.given(options.out, '--out')
  raw = options.config.copy_and_resolve_references()
  if options.text:
    raw.data.source = options.text
  config = config_lib.parse(raw)
  pieces = all_pieces(raw)
  some = run.chosen(pieces, options.only)
  if options.list:
    print('\n'.join(f'{piece.kind:8}  {piece.name}' for piece in some))
    return
  corpus = corpus_lib.load(config.data, config.model.length)
  print(f'text: {corpus.description}, sha256 {corpus.sha256}', flush=True)
  place = Place(workdir, raw.to_dict(), corpus.sha256, options.judge)
  failed = [] if options.page_only else run.run(some, place, options.jobs)
  parts = ('--only', '--page_only', '--jobs')
  given = [flag for flag in sys.argv[1:] if not flag.startswith(parts)]
  command = shlex.join(['python', '-m', 'armd_jax.reproduce', *given])
  numbers = page.numbers(raw, place, pieces, command, corpus)
  page.write(numbers, out)
  print(f'{out / "reproduction.md"}: {len(numbers["pieces"])} of {len(pieces)} pieces')
  if failed:
    raise UserError(
      f'{len(failed)} pieces failed: {", ".join(failed)}; see {place.workdir / "logs"}, and give '
      'the same command again to go on'
    )


if __name__ == '__main__':
  cli.run(main, Options)

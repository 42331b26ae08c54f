"""The identity of a run's text, beside its config.json, so that another text is noticed.

text.json   sha256 of the text, its description and statistics, and the tokenizer's fingerprint; of
            a run that was converted, and has no text yet, the fingerprint alone; and its seal, the
            sha256 of all this, which files of older versions lack
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from armd_jax.config import Config
from armd_jax.data import corpus as corpus_lib
from armd_jax.data import statistics
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError
from armd_jax.files import paths, whole
from armd_jax.training import workdir as workdir_lib

FILE = 'text.json'
_OF_OLDER = {'sha256', 'description', 'tokenizer', 'statistics'}  # all that files without seal hold


def keep(workdir: str | pathlib.Path, config: Config, corpus: corpus_lib.Corpus) -> None:
  """Stores which text a new run has, or checks that a resumed run has the same, maybe elsewhere.

  Args:
    workdir: of the run.
    config: of the run, which has read `corpus` from the source in `config.data`.
    corpus: the text.
  Raises:
    UserError: it is another text.
  """
  started = workdir_lib.read_config(workdir)
  places = lambda data: {'source': data.source, 'mixture': data.mixture}
  moved = places(started.data) != places(config.data)
  if sha256_of(workdir):
    check(workdir, corpus)
    if moved:  # so that evaluations find it there, too
      data = dataclasses.replace(started.data, **places(config.data))
      workdir_lib.write_config(workdir, dataclasses.replace(started, data=data))
    return
  if moved:
    raise UserError(
      f'{workdir} was started with config.data.source = {started.data.source!r}, not '
      f'{config.data.source!r}, and before the text was stored; give it under its first name once'
    )
  path = paths.kept(workdir, '--workdir') / FILE
  text = {
    'sha256': corpus.sha256,
    'description': corpus.description,
    'tokenizer': corpus.tokenizer.fingerprint,
    'statistics': dict(corpus.statistics),
  }
  _write(path, text)


def keep_tokenizer(workdir: pathlib.Path, tokenizer: Tokenizer) -> None:
  """Stores the vocabulary of a run that has no text yet."""
  _write(workdir / FILE, {'tokenizer': tokenizer.fingerprint})


def check(workdir: str | pathlib.Path, corpus: corpus_lib.Corpus) -> None:
  """Refuses any text but the run's, whatever its name; a run without text.json is not checked.

  Raises:
    UserError: it is another text.
  """
  if then := sha256_of(workdir):
    corpus_lib.check_same(then, corpus, f'the run in {workdir}')
  check_tokenizer(workdir, corpus.tokenizer)


def check_tokenizer(workdir: str | pathlib.Path, tokenizer: Tokenizer) -> None:
  """Refuses any vocabulary but the run's, whatever its name; older runs are not checked.

  Raises:
    UserError: it is another one, or the file is damaged.
  """
  then = _read(workdir).get('tokenizer', tokenizer.fingerprint)
  if then != tokenizer.fingerprint:
    raise UserError(
      f'{workdir} was trained with another vocabulary {tokenizer.name!r} than the one here '
      f'(fingerprint {str(then)[:8]}, not {tokenizer.fingerprint[:8]}); bring that one back'
    )


def sha256_of(workdir: str | pathlib.Path) -> str:
  """Of the run's text, hex; '' if none is stored, as by runs of older versions.

  Raises:
    UserError: the file is damaged.
  """
  return _read(workdir).get('sha256', '')


def statistics_of(workdir: str | pathlib.Path) -> dict[str, statistics.Statistics]:
  """Of the run's prepared corpora, by name; none of other texts and of older runs.

  Raises:
    UserError: the file is damaged.
  """
  found = _read(workdir).get('statistics', {})
  try:
    whole.check_form(found, {str: statistics.TOTAL_FORM}, 'statistics')
    return {name: statistics.read(one) for name, one in found.items()}
  except ValueError as error:
    path = paths.kept(workdir, '--workdir') / FILE
    raise UserError(f'{path} is damaged (it {error}); delete its statistics') from None


def _write(path: pathlib.Path, text: dict[str, Any]) -> None:
  whole.write_json(path, text | {'seal': whole.sha256(text)})


def _read(workdir: str | pathlib.Path) -> dict[str, Any]:
  path = paths.kept(workdir, '--workdir') / FILE
  fix = 'delete it if the text is the one that the run was started with'
  try:
    found = whole.read_json(path, {}, fix)
  except (FileNotFoundError, NotADirectoryError):
    return {}
  seal = found.pop('seal', None)
  if not (found.keys() <= _OF_OLDER if seal is None else seal == whole.sha256(found)):
    raise UserError(f'{path} is damaged (it is not what was written); {fix}')
  digest = found.get('sha256', found.get('tokenizer'))
  if not isinstance(digest, str) or len(digest) != 64:
    raise UserError(f'{path} is damaged (its sha256 is none); {fix}')
  return found

"""A model trained on texts that are at hand in Python."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import runpy
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from armd_jax import config as config_lib
from armd_jax.artifacts import loaded
from armd_jax.config import Config
from armd_jax.decode import requests
from armd_jax.errors import UserError, quoted, sentence
from armd_jax.files import paths, whole
from armd_jax.training import workdir as workdir_lib
from armd_jax.training.loop import train

EXPERIMENT = 'experiments/quickstart.py'

# Steps of training by which phases begin; without an override they keep their share of all steps.
_SCHEDULE = ('order.ar_steps', 'order.perm_steps', 'order.strided_start', 'optimizer.warmup_steps')


def fit(
  texts: Iterable[str],
  workdir: str | os.PathLike[str],
  *,
  experiment: str | os.PathLike[str] = EXPERIMENT,
  overwrite: bool = False,
  **overrides: Any,
) -> loaded.Model:
  """Trains on a list of texts, each a document, and returns the model.

  The texts are kept in the work directory, so that every program finds the run complete; the same
  call resumes a run that was stopped.

  Args:
    texts: at least two, some of which are held out.
    workdir: where the run is kept.
    experiment: file whose recipe is followed; the quickstart's by default.
    overwrite: delete the run that is in `workdir` first.
    **overrides: fields of the config by their last name, like steps=200 or num_layers=6. Phases of
      training keep their share of `steps`, and what depends on `length` follows it, unless they are
      given, too.
  Raises:
    UserError: an override is no field, or the texts cannot be trained on.
  """
  is_list = isinstance(texts, Iterable) and not isinstance(texts, str | Mapping)
  texts = list(texts) if is_list else []
  if not is_list or not all(isinstance(text, str) for text in texts):
    raise UserError('texts are to be a list of texts, each a document; give at least two')
  for text in texts:
    requests.check_text('one of the texts', text)
  config = _config(experiment, overrides)
  config_lib.parse(config)
  folder = workdir_lib.place(workdir)
  data = ''.join(json.dumps({'text': text}) + '\n' for text in texts)
  # By what it holds: a run never finds other texts under its name.
  path = folder / f'texts-{hashlib.sha256(data.encode()).hexdigest()[:16]}.jsonl'
  is_new = not path.exists()
  try:
    whole.write_text(path, data)
  except OSError as error:
    raise UserError(f'cannot write {path} ({error.strerror}); use another workdir') from error
  config.data.source = os.fspath(path)
  try:
    train(config_lib.parse(config), folder, overwrite=overwrite)
  except UserError:
    if is_new and not _is_read(path):
      path.unlink(missing_ok=True)
    raise
  return loaded.load(folder)


def _is_read(path: Any) -> bool:
  """Whether the run in whose folder a text is was started with it."""
  try:
    return workdir_lib.read_config(path.parent).data.source == os.fspath(path)
  except UserError:  # there is no run
    return False


def _config(experiment: Any, overrides: dict[str, Any]) -> Any:
  """The recipe with these fields changed."""
  if not isinstance(experiment, str | os.PathLike):
    raise UserError(f'experiment is {quoted(experiment)}; give the path of a file')
  path = pathlib.Path(paths.experiment(os.fspath(experiment), 'experiment'))
  if not path.is_file():
    raise UserError(f'there is no experiment {experiment!r}; give the path of a file')
  try:
    config = runpy.run_path(str(path))['get_config']()
    if not isinstance(config, ConfigDict):
      raise TypeError(f'get_config returns {config!r}, no ConfigDict')
  except (Exception, SystemExit) as error:  # whatever a user's file raises
    raise UserError(
      f'the experiment {path} cannot be run ({type(error).__name__}: {sentence(error)}); mend it'
    ) from error
  names: dict[str, list[str]] = {}
  for name, _ in config_lib.fields(Config):
    names.setdefault(name.rpartition('.')[2], []).append(name)
    names.setdefault(name, []).append(name)
  given = {}
  for name, value in overrides.items():
    if name.rpartition('.')[2] in ('source', 'mixture'):
      raise UserError(f'{name} is given, and so are texts, which are trained on; leave it out')
    found = sorted(set(names.get(name, ())))
    if len(found) != 1:
      fix = f'write one of {", ".join(found)}' if found else 'armd_jax/config.py lists all fields'
      raise UserError(f'the config has no single field {name!r}; {fix}')
    given[found[0]] = value
  family = given.get('model.family', config.model.family)
  # `parse` reports one that is not there, and one that is no text.
  kind = config_lib.FAMILIES.get(family) if isinstance(family, str) else None
  if kind and (kind.orders != 'any' or kind.own_orders):  # no strided orders to be fine-tuned on
    given.setdefault('order.strided_start', -1)
  if isinstance(steps := given.get('train.steps'), int) and 0 < steps < 2**31:
    for name in _SCHEDULE:
      if _get(config, name) > 0 and name not in given:
        given[name] = _get(config, name) * steps // config.train.steps
  if isinstance(length := given.get('model.length'), int):
    given.setdefault('train.loss_chunk', max(1, length))
    given.setdefault('order.segments_cuts', max(1, length // 8))
  for name, value in given.items():
    *sections, last = name.split('.')
    section = config
    for one in sections:
      section = section[one]
    try:
      with section.ignore_type():  # `parse` reports wrong types
        section[last] = value
    except OverflowError:  # a whole number that no float holds
      raise UserError(f'config.{name} is {quoted(value)}; write a smaller number') from None
  return config


def _get(config: Any, name: str) -> Any:
  for part in name.split('.'):
    config = config[part]
  return config

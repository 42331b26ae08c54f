"""What is fuzzed: programs and files, and what may come of it."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import tiny_run
from hypothesis import HealthCheck, settings

from armd_jax import flags
from armd_jax.errors import UserError


def tries(count):
  return settings(
    max_examples=count, derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
  )  # fmt: skip


def outcome(call: Callable[[], Any]) -> Any:
  """What it returns; None if that is a sentence of the two parts."""
  try:
    return call()
  except UserError as error:
    text = str(error)
  except SystemExit as ended:  # of `run.py` of an export, which has no UserError
    text = str(ended.code)
  assert '\n' not in text and len(text) < 1500, text
  assert '; ' in text or ' must ' in text or text.startswith('write '), text  # the fix
  return None


@dataclasses.dataclass(frozen=True)
class File:
  """A file, what reads it, and whether it has a digest, so that no other content is accepted."""

  path: pathlib.Path
  read: Callable[[], Any]
  is_json: bool = True
  is_sealed: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
  """A program, and flags that it accepts."""

  name: str
  good: dict[str, str]

  @property
  def options(self):
    return importlib.import_module(self.name).Options

  def parse(self, **changes):
    argv = [f'--{name}={word}' for name, word in (self.good | changes).items()]
    return flags.parse(self.options, [self.name, *argv])


def of_name(name):
  required = [
    field.name
    for field in dataclasses.fields(importlib.import_module(name).Options)
    if field.default is dataclasses.MISSING and not field.metadata.get('file')
  ]
  return Program(name, {one: QUICKSTART if one == 'config' else 'x' for one in required})


QUICKSTART = str(tiny_run.ROOT / 'experiments/quickstart.py')

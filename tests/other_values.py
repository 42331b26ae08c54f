"""Configs that differ in one field."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from armd_jax import config


def changed(section: Any, name: str, value: Any) -> Any:
  """A config with another value of the field with this dotted name, unchecked."""
  first, _, rest = name.partition('.')
  value = changed(getattr(section, first), rest, value) if rest else value
  return dataclasses.replace(section, **{first: value})


def one_by_one(base: config.Config) -> list[tuple[str, dataclasses.Field, config.Config]]:
  """For every field: its name, what is known of it, and the config with another value of it."""
  found = []
  for name, field in config.fields():
    value = operator.attrgetter(name)(base)
    found.append((name, field, changed(base, name, _other(field, value))))
  return found


def _other(field, value):
  if field.metadata['one_of']:
    return next(choice for choice in field.metadata['one_of'] if choice != value)
  if isinstance(value, bool):
    return not value
  if isinstance(value, str):
    return value + 'x'
  return (*value, 2) if isinstance(value, tuple) else value + 1

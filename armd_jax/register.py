"""Families, tokenizers and sources of text from outside of the package.

    armd_jax.register.tokenizer('words', WordTokenizer)      --config.data.tokenizer=words
    armd_jax.register.source('lines', read_lines)            --config.data.source=lines:FILE
    armd_jax.register.family('mirrored', family, 'any')      --config.model.family=mirrored

Programs import the modules that $ARMD_JAX_PLUGINS names (a list with commas) before they read
their flags, so that all of them can use what these register.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from armd_jax import config as config_lib
from armd_jax import families
from armd_jax.data import readers, tokenizers
from armd_jax.errors import UserError
from armd_jax.families.family import Family

_SOURCES, _FAMILIES = ('tfds', 'hf', 'stdlib', 'gs'), frozenset(families.FAMILIES)


def tokenizer(name: str, make: Callable[[], tokenizers.Tokenizer]) -> None:
  """A vocabulary.

  Args:
    name: for `config.data.tokenizer`; it is the tokenizer's `name`, too.
    make: returns a `data.tokenizers.Tokenizer`.
  Raises:
    UserError: it is no name, or one of the package's own, or no function.
  """
  tokenizers.REGISTERED[_checked(name, tokenizers.OWN)] = _function(name, make)


def source(name: str, documents: Callable[[str], Iterable[str]]) -> None:
  """A source of text.

  Args:
    name: of sources `NAME:REST`, for `config.data.source`.
    documents: from REST to the documents, the same ones each time; blank ones are left out.
  Raises:
    UserError: as of `tokenizer`.
  """
  readers.REGISTERED[_checked(name, _SOURCES)] = _function(name, documents)


def family(name: str, entry: Family, orders: str = 'any') -> None:
  """A family of models: an objective, a network, a way to generate.

  Args:
    name: for `config.model.family`.
    entry: a `families.family.Family`; `dataclasses.replace(families.FAMILIES['armd'], loss=...)`
      is ARMD with another objective, or along other orders.
    orders: along which it predicts: 'any', 'left_to_right' or 'none'.
  Raises:
    UserError: as of `tokenizer`, or it is no `Family`, or orders is another word.
  """
  if orders not in ('any', 'left_to_right', 'none'):
    raise UserError(f"orders is {orders!r}; write 'any', 'left_to_right' or 'none'")
  if not isinstance(entry, Family):
    raise UserError(f'family {name!r} is {entry!r}; write a families.family.Family')
  families.FAMILIES[_checked(name, _FAMILIES)] = entry
  config_lib.FAMILIES[name] = config_lib.Prediction(orders)


def _checked(name: str, own: Collection[str]) -> str:
  """The name, if it is none of the package's own, which would be another thing in older runs."""
  if not isinstance(name, str) or not name.isidentifier():
    raise UserError(f'the name {name!r} cannot be registered; write letters, digits and _')
  if name in own:
    raise UserError(f"the name {name!r} is one of the package's own; write another")
  return name


def _function(name: str, make: Any) -> Any:
  if not callable(make):
    raise UserError(f'what {name!r} names is {make!r}; write a function')
  return make

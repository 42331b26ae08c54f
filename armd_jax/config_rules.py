"""Rules of a config that concern few of its fields, apart from `armd_jax.config` for its length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def of_documents(config: Any) -> Iterator[str]:
  """What contradicts a document a window, a sentence each.

  Args:
    config: a `Config`.
  """
  model, data = config.model, config.data
  if data.packing == 'documents' and model.orders == 'none':
    yield (
      f"config.data.packing is 'documents' but config.model.family is {model.family!r}, which has "
      "no orders to leave padding out of; write 'joined' or 'wrapped'"
    )
  if data.prompt and data.packing != 'documents':
    yield (
      f'config.data.prompt is {data.prompt!r} but config.data.packing is {data.packing!r}, in '
      "which prompts are lost; write packing = 'documents'"
    )


def of_adapting(config: Any) -> Iterator[str]:
  """What contradicts the names of parameters that are trained, and evaluations, a sentence each."""
  names, streams, family = config.optimizer.trained, config.train.eval_streams, config.model.family
  try:
    re.compile(names)
  except (re.error, OverflowError, RecursionError) as error:
    yield (
      f'config.optimizer.trained is {names!r}, no regular expression ({error}); write a part of '
      "names, like 'causal/.*/query'"
    )
  if streams and config.model.orders != 'any':
    yield (
      f'config.train.eval_streams is {streams} but config.model.family is {family!r}, which has no '
      'strided orders; write ()'
    )

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


def of_trained(optimizer: Any) -> Iterator[str]:
  """What is wrong with the names of parameters that are trained, a sentence."""
  try:
    re.compile(optimizer.trained)
  except (re.error, OverflowError, RecursionError) as error:
    yield (
      f'config.optimizer.trained is {optimizer.trained!r}, no regular expression ({error}); write '
      "a part of names, like 'causal/.*/query'"
    )

"""Spans of data sets that the package `datasets` of Hugging Face reads: of the hub, or of a folder.

A set is written NAME[/CONFIG]#SPLIT: 'Salesforce/wikitext/wikitext-103-raw-v1#train', or a folder
of files or of what `save_to_disk` wrote, and CONFIG behind it. Where sets are kept is `datasets`'
own matter: its variable HF_HOME, by default ~/.cache/huggingface; with HF_HUB_OFFLINE=1 nothing is
downloaded.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from armd_jax.data import rows
from armd_jax.data.rows import OnBad, pick_column
from armd_jax.errors import UserError, sentence
from armd_jax.files import paths

_ROWS = 1000  # read at a time


class HfSpan(rows.RowSpan):
  """Rows [begin, end) of a split of a set."""

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    """The column of every row, blank ones left out."""
    table = _table(self.name, self.split_name).select_columns([self.column])
    for first in range(self.begin, self.end, _ROWS):
      texts = table[first : min(first + _ROWS, self.end)][self.column]
      for number, text in enumerate(texts, first):
        if text is None:
          problem = f'row {number} of {self.name!r} has null in column {self.column!r}'
          on_bad(lambda p=problem: (p, 'write the right --column'))  # type: ignore[misc]
        elif text.strip():
          yield rows.whole(text)


def hf_span(name: str, split_name: str, column: str) -> HfSpan:
  """A whole split, downloaded if it is not there.

  Args:
    name: NAME[/CONFIG] as at the top of this file.
    split_name: 'train', 'test[:10%]'.
    column: the one that holds the documents; '': 'text', or the only one of text.
  Raises:
    UserError: `datasets` is missing, or there is no such set, split or column.
  """
  table = _table(name, split_name)
  texts = [key for key, kind in table.features.items() if _is_text(kind)]
  column = pick_column(column, texts, list(table.features), f'the set {name!r}')
  size = table.select_columns([column]).data.nbytes
  return HfSpan(name, split_name, 0, len(table), column, size)


def _is_text(kind: Any) -> bool:
  return getattr(kind, 'dtype', None) in ('string', 'large_string')


@functools.lru_cache(maxsize=4)
def _table(name: str, split_name: str) -> Any:
  """The rows of a split, read from a disk when they are needed."""
  try:
    import datasets
  except ImportError as error:
    raise UserError(f'hf:{name} is read by the package datasets; pip install datasets') from error
  # Its progress bars would disturb ours, in every worker.
  datasets.disable_progress_bars()
  folder, rest = _folder(name)
  try:
    if folder is None:
      words = name.split('/')
      config = '/'.join(words[2:]) or None
      return datasets.load_dataset('/'.join(words[:2]), config, split=split_name)
    if not rest and any((folder / file).exists() for file in ('state.json', 'dataset_dict.json')):
      return _saved(datasets, folder, split_name)
    return datasets.load_dataset(str(folder), rest or None, split=split_name)
  except Exception as error:  # whatever downloads and readers of many formats raise
    raise UserError(
      f'the set hf:{name}#{split_name} cannot be read ({sentence(error)}); write NAME/CONFIG#SPLIT '
      'as its page on the hub has them, or the path of a folder'
    ) from error


def _saved(datasets: Any, folder: pathlib.Path, split_name: str) -> Any:
  """Rows of what `save_to_disk` wrote; a set that was saved without splits is 'train'."""
  found = datasets.load_from_disk(str(folder))
  splits = found if isinstance(found, dict) else {'train': found}
  lengths = {name: len(table) for name, table in splits.items()}
  found = []
  for part in datasets.ReadInstruction.from_spec(split_name).to_absolute(lengths):
    first, last = part.from_ or 0, lengths[part.splitname] if part.to is None else part.to
    found.append(splits[part.splitname].select(range(first, last)))
  return datasets.concatenate_datasets(found) if len(found) > 1 else found[0]


def _folder(name: str) -> tuple[pathlib.Path | None, str]:
  """The folder that a name begins with, if there is one, and what comes after it."""
  path = paths.given(name, 'the set behind hf:')
  for folder, rest in ((path, ''), (path.parent, path.name)):
    if folder.is_dir() and folder != pathlib.Path('.'):
      return folder, rest
  return None, ''

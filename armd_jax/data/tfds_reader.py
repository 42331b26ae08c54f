"""Spans of tensorflow-datasets sets, read at random from their ArrayRecord files.

Reading needs no TensorFlow. Where sets are kept is tensorflow-datasets' own matter: its variable
TFDS_DATA_DIR, by default ~/tensorflow_datasets.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from typing import Any

from armd_jax.data import rows
from armd_jax.data.rows import OnBad, pick_column
from armd_jax.errors import UserError, sentence

# tensorflow-datasets whose documents are in a column of another name, beside other columns.
_COLUMNS = {'lambada': 'passage', 'pg19': 'book_text'}


class TfdsSpan(rows.RowSpan):
  """Examples [begin, end) of a split of a prepared tensorflow-datasets set."""

  def documents(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    return (text for text in self.texts(on_bad) if text.strip())

  def texts(self, on_bad: OnBad = rows.stop) -> Iterator[str]:
    """The column of every example, blank ones too."""
    examples = _examples(self.name, self.split_name)
    for index in range(self.begin, self.end):
      try:
        data = examples[index][self.column]
      except Exception as error:  # whatever the C++ library raises for damaged files
        raise UserError(
          f'example {index} of {self.name!r} cannot be read ({sentence(error)}); delete '
          f'{_builder(self.name).data_dir} and prepare the set anew'
        ) from error
      try:
        text = data.decode('utf-8')
      except UnicodeDecodeError:
        problem = f'example {index} of {self.name!r} is not UTF-8'
        on_bad(lambda p=problem: (p, 'prepare the set from other text'))  # type: ignore[misc]
      else:
        yield text


def columns(name: str) -> list[str]:
  """The columns of a tensorflow-datasets set that hold text, by name.

  Raises:
    UserError: there is no such set.
  """
  features = _builder(name).info.features
  return sorted(key for key, feature in features.items() if feature.np_dtype in (str, object))


def tfds_span(name: str, split_name: str, column: str, prepare: bool) -> TfdsSpan:
  """A whole split of a tensorflow-datasets set.

  Args:
    name: as tensorflow-datasets writes it: 'lm1b', 'c4/en', 'wikipedia/20230601.en:1.0.0'.
    split_name: 'train', 'test[:10%]'.
    column: the one that holds the documents; '': the usual one.
    prepare: download and prepare the set if it is not there; archives need TensorFlow for that.
  Raises:
    UserError: no such set, split or column, or it is not prepared for random access.
  """
  builder = _builder(name)
  if prepare and not builder.is_prepared():
    _prepare(builder, name)
  if not builder.is_prepared():
    raise UserError(
      f'tensorflow-datasets {name!r} is not prepared in {builder.data_dir}; run armd prepare '
      f'--source=tfds:{name} --tokenizer=bytes --out=work/{re.sub("[^a-z0-9]", "_", name)}, or set '
      'TFDS_DATA_DIR'
    )
  column = column or _COLUMNS.get(builder.name, '')
  where = f'tensorflow-datasets {name!r}'
  column = pick_column(column, columns(name), sorted(builder.info.features), where)
  count = len(_examples(name, split_name))
  total = builder.info.splits.total_num_examples
  size = builder.info.dataset_size * count // max(total, 1)
  return TfdsSpan(name, split_name, 0, count, column, size)


@functools.cache
def _builder(name: str) -> Any:
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name)
  except (tfds.core.registered.DatasetNotFoundError, FileNotFoundError) as error:
    raise UserError(
      f'tensorflow-datasets has no {name!r}, neither by that name nor prepared in TFDS_DATA_DIR; '
      'see its catalogue for names and configs'
    ) from error
  except (ValueError, KeyError, AssertionError) as error:
    raise UserError(
      f'tensorflow-datasets cannot open {name!r} ({sentence(error)}); see its catalogue for '
      'names, configs and versions'
    ) from error


@functools.cache
def _examples(name: str, split_name: str) -> Any:
  builder = _builder(name)
  try:
    return builder.as_data_source(split=split_name)
  except NotImplementedError as error:
    raise UserError(
      f'{builder.data_dir} holds {name!r} in a format without random access; prepare it in another '
      'TFDS_DATA_DIR, or convert it with tensorflow_datasets.scripts.convert_format to array_record'
    ) from error
  except (ValueError, KeyError, AssertionError) as error:
    known = ', '.join(builder.info.splits)
    raise UserError(
      f'tensorflow-datasets {name!r} has no split {split_name!r}; write one of {known}'
    ) from error


def _prepare(builder: Any, name: str) -> None:
  try:
    builder.download_and_prepare(file_format='array_record')
  except ImportError as error:
    raise UserError(
      f'preparing {name!r} needs {error.name or error}; pip install tensorflow'
    ) from error
  except Exception as error:  # whatever downloads, archives and Beam raise
    raise UserError(
      f'tensorflow-datasets cannot prepare {name!r} ({sentence(error)}); put its archive into '
      f'{os.path.join(builder.data_dir_root, "downloads", "manual")} and run the command again'
    ) from error

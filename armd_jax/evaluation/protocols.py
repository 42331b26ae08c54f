"""Published ways to score a text that was not trained on: protocols are data, printed with results.

Protocols differ in the split of a text that they score, in the tokens around a window and in what
they drop, so perplexities under different protocols cannot be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from armd_jax.data.packing import Packing, get_packing, token_dtype
from armd_jax.data.tokenizers import Tokenizer
from armd_jax.errors import UserError
from armd_jax.evaluation.detokenizers import detokenize
from armd_jax.evaluation.texts import TEXTS, Text, named


@dataclasses.dataclass(frozen=True)
class ZeroShot:
  """How a published evaluation cuts a text into windows.

  Rows are put together by the text's detokenizer, tokenised and followed by EOS, joined, and cut.
  All of them group rows by 1000, the default of `datasets.map`, in which their code does the
  cutting, and drop what is left over in each group.

  Attributes:
    name: on the command line.
    packing: of `armd_jax.data.packing`: 'joined', or 'wrapped' in BOS and EOS.
    rows_per_group: rows that are joined; what they leave over is dropped.
    split: which split of a text is scored, unless `splits` has another one for it.
    splits: of single texts, by name.
    source: whose evaluation it is, in words.
  """

  name: str
  packing: str
  split: str
  splits: Mapping[str, str]
  source: str
  rows_per_group: int = 1000

  def split_of(self, text: Text) -> str:
    """The split that is scored."""
    return self.splits.get(text.name, self.split)

  def describe(self, length: int) -> str:
    """One line that is printed with every result."""
    window = f'BOS, {length - 2} tokens, EOS' if self.packing == 'wrapped' else f'{length} tokens'
    return (
      f'protocol {self.name} ({self.source}): detokenised rows, EOS after each, joined by '
      f'{self.rows_per_group}, windows of {window}, remainders dropped'
    )


_TEST = dict.fromkeys(('lambada', 'lm1b', 'ag_news'), 'test')  # these have no validation split
_ALL = (
  ZeroShot('sedd', 'joined', 'validation', _TEST, "SEDD's loader"),
  ZeroShot('radd', 'joined', 'test', {'wikitext2': 'train'}, "RADD's evaluation"),
  ZeroShot('mdlm', 'wrapped', 'validation', _TEST, "MDLM's loader"),
)
PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def windows(
  protocol: ZeroShot, text: Text, rows: Sequence[str], tokenizer: Tokenizer, length: int
) -> np.ndarray:
  """The windows that a protocol scores.

  Args:
    protocol, text: how, and which text.
    rows: from `texts.read_rows`.
    tokenizer: gives the ids.
    length: N, tokens of a window; 1024 in all published evaluations.
  Returns:
    windows_WxN: unsigned ids.
  Raises:
    UserError: no group of rows fills a window.
  """
  packing = get_packing(protocol.packing, length, tokenizer)
  groups = [
    _group(rows[first : first + protocol.rows_per_group], text, tokenizer, packing)
    for first in range(0, len(rows), protocol.rows_per_group)
  ]
  windows_WxN = np.concatenate(groups)
  if not len(windows_WxN):
    raise UserError(
      f'{text.title} has {len(rows)} rows, too few for one window of {length} tokens; give more '
      'text, or a model of shorter windows'
    )
  return windows_WxN


def _group(rows, text, tokenizer, packing: Packing):
  dtype = token_dtype(tokenizer)
  end_1 = np.array([tokenizer.eos_id], dtype)
  parts = []
  for row in rows:
    parts += [tokenizer.encode(detokenize(text.detokenizer, row)).astype(dtype), end_1]
  return packing.windows(np.concatenate(parts))


def sources_of(protocol: ZeroShot, given: Mapping[str, str]) -> dict[str, str]:
  """Where each text is read from.

  Args:
    protocol: names the split of sets that tensorflow-datasets has.
    given: source by name of a text; '' means the set of tensorflow-datasets.
  Raises:
    UserError: no such text, or one that tensorflow-datasets does not have.
  """
  sources = {}
  for name, source in given.items():
    if not name or (name not in TEXTS and not source):
      raise UserError(
        f'there is no text {name!r}; write some of {", ".join(TEXTS)}, or NAME=FILE of your own'
      )
    text = named(name)
    if not source and not text.tfds:
      raise UserError(
        f'{text.title} is not among the sets of tensorflow-datasets; write --texts={name}=FILE'
      )
    sources[name] = source or f'tfds:{text.tfds}#{protocol.split_of(text)}'
  return sources

"""A document a window, the rest of it padding; a prompt before the document is seen, not scored.

One array holds a window: int32 [N], where a token that is scored is its id, one that is given is
`~id` (which is negative), and padding, which always comes last, is `PADDING`. Networks never see
these marks: `read` takes them off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from armd_jax.data.rows import Parts
from armd_jax.data.tokenizers import Tokenizer

PACKING = 'documents'  # its name among packings
PADDING = -(2**31)


class Read(NamedTuple):
  """Windows without marks, arrays of numpy or jax, `[..., N]`.

  Attributes:
    ids_BxN: int32 token ids; 0 in place of padding.
    is_given_BxN: bool, tokens that are seen and not scored.
    is_real_BxN: bool, all but padding.
  """

  ids_BxN: Any
  is_given_BxN: Any
  is_real_BxN: Any

  @property
  def is_scored_BxN(self) -> Any:
    return self.is_real_BxN & ~self.is_given_BxN


def read(window_BxN: Any) -> Read:
  """Takes off the marks; a window that has none is all scored."""
  is_real_BxN = window_BxN != PADDING
  is_given_BxN = (window_BxN < 0) & is_real_BxN
  # `x ^ -1` is `~x`, and `x ^ 0` is x: a choice without numpy's or jax's `where`.
  return Read((window_BxN ^ -is_given_BxN.astype('int32')) * is_real_BxN, is_given_BxN, is_real_BxN)


def are_marked(windows_WxN: np.ndarray) -> bool:
  """Whether any token of these windows is given or padding."""
  return bool(np.any(windows_WxN < 0))


def num_scored(windows_WxN: np.ndarray) -> np.ndarray:
  """int64 [W]: tokens that are scored."""
  return np.sum(windows_WxN >= 0, axis=1)


def encode(text: str, tokenizer: Tokenizer) -> np.ndarray:
  """A document with its marks and EOS at its end, int32 [n]; the ids of its prompt, if it has one,
  are those of the prompt alone, so that they are the same in generation."""
  prompt, answer = text.parts if isinstance(text, Parts) else ('', text)
  parts = [~tokenizer.encode(prompt).astype(np.int32)] if prompt else []
  parts += [tokenizer.encode(answer).astype(np.int32), np.array([tokenizer.eos_id], np.int32)]
  return np.concatenate(parts)


def window(document_n: np.ndarray, length: int) -> np.ndarray:
  """A document in a window, int32 [N]. Of one that is too long, the beginning of the prompt is left
  out, and where that is not enough, the end of the answer."""
  prompt = int(np.sum(document_n < 0))
  answer = min(len(document_n) - prompt, length)
  begin = max(0, prompt + answer - length)
  kept = document_n[begin : prompt + answer]
  return np.pad(kept, (0, length - len(kept)), constant_values=PADDING)


def windows(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> np.ndarray:
  """A window for each document, int32 [W, N]."""
  found = [window(encode(text, tokenizer), length) for text in texts]
  return np.stack(found) if found else np.empty((0, length), np.int32)

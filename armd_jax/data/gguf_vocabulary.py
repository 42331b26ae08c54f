"""The vocabulary that a file of GGUF holds, as Hugging Face's tokenizer.json."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from armd_jax import errors
from armd_jax.errors import UserError, sentence

_SPECIAL = (3, 4)  # kinds of tokens: control, and what a user defined
# How a text is cut before its pieces are merged, by the name that GGUF has for it.
_WORDS = {
  'llama-bpe': (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
  ),
  'qwen2': (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r'|\s*[\r\n]+|\s+(?!\S)|\s+'
  ),
}


def tokenizer_json(path: pathlib.Path, found: Mapping[str, Any]) -> str:
  """The text of tokenizer.json.

  Args:
    path: the file, for errors.
    found: its metadata, by GGUF's names.
  Raises:
    UserError: its vocabulary is of a kind that is not known here, or damaged.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers

  kind, cut = (found.get(f'tokenizer.ggml.{name}') for name in ('model', 'pre'))
  if kind != 'gpt2' or cut not in (*_WORDS, 'smollm', 'gpt-2', 'default'):
    raise UserError(
      f'{path} holds a vocabulary of the kind {kind!r}, {cut!r}, which is not known here; put the '
      "model's tokenizer.json beside it"
    )
  try:
    tokens, kinds = found['tokenizer.ggml.tokens'], found.get('tokenizer.ggml.token_type', ())
    special = [token for token, kind in zip(tokens, kinds, strict=False) if kind in _SPECIAL]
    merges = [tuple(pair.split(' ', 1)) for pair in found['tokenizer.ggml.merges']]
    ids = {token: number for number, token in enumerate(tokens)}
    whole = cut == 'llama-bpe'
    with errors.no_panics():
      made = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=whole))
  except Exception as error:  # the library raises Exception itself
    raise UserError(
      f'{path} holds no whole vocabulary ({sentence(error)}); fetch it anew'
    ) from error
  by_byte = lambda words: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
  if cut in _WORDS:
    words = tokenizers.Regex(_WORDS[cut])
    steps = [pre_tokenizers.Split(words, 'isolated'), by_byte(False)]
  elif cut == 'smollm':
    steps = [pre_tokenizers.Digits(individual_digits=True), by_byte(True)]
  else:
    steps = [by_byte(True)]
  made.pre_tokenizer = pre_tokenizers.Sequence(steps)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(special)
  return made.to_str(pretty=True)

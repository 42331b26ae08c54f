"""Any tokenizer as the tokenizer.json that Hugging Face's libraries read."""

from __future__ import annotations

import itertools
from typing import Any

from armd_jax.data.tokenizers import BertTokenizer, ByteTokenizer, Gpt2Tokenizer, Tokenizer
from armd_jax.errors import UserError
from armd_jax.files import paths, whole

_END = '<|endoftext|>'


def text_of(tokenizer: Tokenizer, bos_id: int, name: str) -> str:
  """The text of the file, which gives the same ids behind that of BOS.

  Args:
    tokenizer: of this package, or from such a file.
    bos_id: the id that a text begins with; the next one that there is becomes `name`.
    name: of a token that no text has.
  Raises:
    UserError: it is of another kind, or leaves out ids.
  """
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, processors

  if isinstance(tokenizer, ByteTokenizer):
    ids = {letter: number for number, letter in enumerate(_letters())} | {_END: 256}
    made = tokenizers.Tokenizer(models.BPE(ids, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([_END])
  elif isinstance(tokenizer, Gpt2Tokenizer):
    made = tokenizers.Tokenizer(models.BPE(*_ids_and_merges(tokenizer)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([_END])
  elif isinstance(tokenizer, BertTokenizer):
    made = tokenizers.Tokenizer.from_str(tokenizer._wordpiece.to_str())
    made.add_special_tokens(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'])
  else:
    made = tokenizers.Tokenizer.from_str(_own(tokenizer))
    if made.id_to_token(tokenizer.eos_id) is None:
      _add(made, _END, tokenizer.eos_id, tokenizer.name)
  if bos_id == tokenizer.vocab_size:
    _add(made, name, bos_id, tokenizer.name)
  first = made.id_to_token(bos_id)
  made.post_processor = processors.TemplateProcessing(
    single=f'{first} $A', special_tokens=[(first, bos_id)]
  )
  return made.to_str(pretty=True)


def _add(made: Any, token: str, number: int, name: str) -> None:
  """One more token. The library counts tokens for its id, which is another's where ids are left
  out."""
  made.add_special_tokens([token])
  if made.token_to_id(token) != number:
    raise UserError(
      f'the tokenizer {name!r} leaves out ids, so that no token can be added to it as {number}; '
      'write --out'
    )


def tokens(text: str) -> dict[int, str]:
  """The names of ids in a tokenizer.json."""
  import tokenizers

  made = tokenizers.Tokenizer.from_str(text)
  return {number: token for token, number in made.get_vocab().items()}


def _own(tokenizer: Tokenizer) -> str:
  """The file that a tokenizer was made of."""
  path = paths.given(tokenizer.name, 'the tokenizer')
  path = path / 'tokenizer.json' if path.is_dir() else path
  if path.suffix != '.json' or not path.exists():
    raise UserError(
      f'the tokenizer {tokenizer.name!r} has no tokenizer.json, which transformers needs; write '
      '--out'
    )
  whole.read_json(path, {}, 'fetch it anew')
  return path.read_text('utf-8')


def _letters() -> list[str]:
  """Of every byte the letter that spells it in such files: itself where it can be printed."""
  plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != ' ']
  others = iter(range(256, 512))
  return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def _ids_and_merges(tokenizer: Gpt2Tokenizer) -> tuple[dict[str, int], Any]:
  """GPT-2's pieces by their spelling, and the pair that each was merged from.

  A piece's pair is what the merges before its own make of its bytes.
  """
  rank_of = tokenizer._bpe._mergeable_ranks
  letters = _letters()
  spelled = lambda piece: ''.join(letters[b] for b in piece)
  merges = []
  for piece, rank in sorted(rank_of.items(), key=lambda item: item[1]):
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
      pairs = [rank_of.get(a + b, rank) for a, b in itertools.pairwise(parts)]
      first = min(range(len(pairs)), key=pairs.__getitem__)
      parts[first : first + 2] = [parts[first] + parts[first + 1]]
    if len(parts) == 2:
      merges.append((spelled(parts[0]), spelled(parts[1])))
  ids = {spelled(piece): rank for piece, rank in rank_of.items()}
  return ids | {_END: tokenizer.eos_id}, merges

"""What the arrays of an export are: the section of its model card that describes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from armd_jax.config import ModelConfig

# By the end of their names. E is the width of the model, H its heads, G those of keys and values, D
# the width of a head, F the width inside the MLP, C that of the noise embedding.
_MEANINGS = {
  'vocabulary/embedding': '[V, E]: a row for every token id, for input and, transposed, logits',
  'vocabulary/head': '[V, E]: a row for every token id, for logits in place of the embedding',
  'vocabulary/bos': '[E]: the row before the text (BOS)',
  'vocabulary/mask': '[E]: the input of a masked token',
  'vocabulary/positions': '[length + 1, E]: added to the rows of content and of queries',
  'mask': '[E]: every query row before the first layer',
  'pe': '[length + 1, position_dim]: rows of positions in eq. 6, normalised to length 1 when read',
  'neighbours': '[2 radius, E]: what a known token weighs in a query row, by its offset',
  'unknown': '[2 radius, E]: added to a query row for an unknown token, by its offset',
  'gain': 'the share of eq. 6 in the query rows before the first layer',
  'attention_norm/scale': '[E]: of the norm before attention',
  'attention_norm/bias': '[E]: of the norm before attention',
  'mlp_norm/scale': '[E]: of the norm before the MLP',
  'mlp_norm/bias': '[E]: of the norm before the MLP',
  'final_norm/scale': '[E]: of the norm after the last layer',
  'final_norm/bias': '[E]: of the norm after the last layer',
  'query/kernel': '[E, H, D]: queries',
  'query/bias': '[H, D]: of queries',
  'key_value/kernel': '[E, 2, G, D]: keys (0 of the axis of 2) and values (1)',
  'key_value/bias': '[2, G, D]: of keys (0) and values (1)',
  'out/kernel': '[H, D, E]: what leaves attention',
  'out/bias': '[E]: of what leaves attention',
  'up/kernel': '[E, F]: into the MLP, before GELU',
  'up/bias': '[F]: before GELU',
  'gate_up/kernel': '[E, 2, F]: into the MLP, of which SiLU is taken (0), and times it (1)',
  'gate_up/bias': '[2, F]: of both of them',
  'query_norm/scale': '[D]: of the norm of queries',
  'key_norm/scale': '[D]: of the norm of keys',
  'down/kernel': '[F, E]: out of the MLP',
  'down/bias': '[E]: of what leaves the MLP',
  'modulation/kernel': '[C, 2, 3, E]: shift (0), scale (1), gate (2) of attention (0), MLP (1)',
  'modulation/bias': '[2, 3, E]: shift (0), scale (1), gate (2) of attention (0), MLP (1)',
  'noise_in/kernel': '[256, C]: first layer of the noise embedding; cosines, then sines',
  'noise_in/bias': '[C]: of the first layer of the noise embedding',
  'noise_out/kernel': '[C, C]: second layer of the noise embedding',
  'noise_out/bias': '[C]: of the second layer of the noise embedding',
}


def section(model: ModelConfig, vocab_size: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
  """A paragraph and a table in Markdown.

  Args:
    model: of the export.
    vocab_size: ids of its vocabulary.
    shapes: of the parameters, by name.
  Raises:
    ValueError: a parameter is not known here.
  """
  rows = {}
  for name, shape in shapes.items():
    # Unrolled layers are alike: a row describes them all.
    rows[re.sub(r'layer_\d+', 'layer_*', name)] = shape, _meaning(name)
  lines = [
    f'| `{name}` | {" x ".join(map(str, shape)) or "a number"} | {meaning} |'
    for name, (shape, meaning) in rows.items()
  ]
  padded = model.padded(vocab_size)
  padding = (
    f' Rows {vocab_size} to {padded - 1} of the embedding are padding, whose logits are -inf.'
    if padded > vocab_size
    else ''
  )
  heads = 'H' if model.num_kv_heads == model.num_heads else str(model.num_kv_heads)
  return f"""Arrays are float32. V = {padded}, E = {model.embed_dim}, H = {model.num_heads}, \
G = {heads}, D = {model.head_dim}, F = {model.mlp_dim}.{padding}
{_layers(model)}

| name | shape | what it is |
| --- | --- | --- |
{chr(10).join(lines)}"""


def _meaning(name):
  ends = [end for end in _MEANINGS if f'/{name}'.endswith(f'/{end}')]
  if not ends:
    raise ValueError(f'no row of _MEANINGS ends the name {name!r}; add one')
  # 'mask' alone ends 'vocabulary/mask', too.
  return _MEANINGS[max(ends, key=len)]


def _layers(model):
  """In which order the layers of the tree come."""
  two = model.num_two_stream_layers
  parts = {'stack': model.num_layers}
  if model.orders == 'any':
    parts = {
      'two_stream': max(two - 1, 0),
      'last_two_stream': min(two, 1),
      'causal': model.num_layers - two,
    }
  found, first = [], 1
  for name, count in parts.items():
    if count:
      found.append(f'`{name}` ({first if count == 1 else f"{first} to {first + count - 1}"})')
    first += count
  how = (
    'the first axis of arrays below `layers` counts layers'
    if model.scan_layers
    else '`layer_*` is `layer_0`, `layer_1`, ...'
  )
  return f'Layers 1 to {model.num_layers} are, in this order, {", ".join(found)}; {how}.'

"""A small GPT-2 checkpoint as Hugging Face writes it, and what it computes."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy
import tokenizers

V, N, E, HEADS, LAYERS = 13, 8, 16, 2, 2
WORDS = [f'w{number}' for number in range(V)]  # of its vocabulary
DESCRIBED = {
  'model_type': 'gpt2', 'vocab_size': V, 'n_positions': N, 'n_embd': E, 'n_head': HEADS,
  'n_layer': LAYERS,
}  # fmt: skip


def arrays() -> dict[str, np.ndarray]:
  """A random checkpoint with Hugging Face's names, far from initialisation."""
  rng = np.random.RandomState(0)
  shapes = {'wte.weight': (V, E), 'wpe.weight': (N, E), 'ln_f.weight': (E,), 'ln_f.bias': (E,)}
  for layer in range(LAYERS):
    for name, shape in {
      'ln_1': (E,), 'ln_2': (E,), 'attn.c_attn': (E, 3 * E), 'attn.c_proj': (E, E),
      'mlp.c_fc': (E, 4 * E), 'mlp.c_proj': (4 * E, E),
    }.items():  # fmt: skip
      shapes[f'h.{layer}.{name}.weight'] = shape
      shapes[f'h.{layer}.{name}.bias'] = shape[-1:]
  is_scale = lambda name: name.endswith('.weight') and 'ln_' in name
  return {
    name: (0.5 * rng.normal(size=shape) + is_scale(name)).astype(np.float32)
    for name, shape in shapes.items()
  }


def write(folder: pathlib.Path, arrays: dict[str, np.ndarray], **described) -> pathlib.Path:
  """Writes both files; `described` changes config.json. Returns the folder."""
  (folder / 'config.json').write_text(json.dumps(DESCRIBED | described))
  safetensors.numpy.save_file(arrays, folder / 'model.safetensors')
  return folder


def reference(p, ids_T):
  """Logits [T, V] of the checkpoint p as the GPT-2 paper's code computes them, in float64."""
  p = {name: x.astype(np.float64) for name, x in p.items()}

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * p[f'{name}.weight'] + p[f'{name}.bias']

  dense = lambda x, name: x @ p[f'{name}.weight'] + p[f'{name}.bias']
  gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  x = p['wte.weight'][ids_T] + p['wpe.weight'][: len(ids_T)]
  for layer in range(LAYERS):
    h = f'h.{layer}'
    q, k, v = np.split(dense(norm(x, f'{h}.ln_1'), f'{h}.attn.c_attn'), 3, axis=-1)
    heads = []
    for d in np.split(np.arange(E), HEADS):
      scores = q[:, d] @ k[:, d].T / np.sqrt(len(d))
      scores = np.where(np.tri(len(ids_T), dtype=bool), scores, -np.inf)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, d])
    x = x + dense(np.concatenate(heads, axis=-1), f'{h}.attn.c_proj')
    x = x + dense(gelu(dense(norm(x, f'{h}.ln_2'), f'{h}.mlp.c_fc')), f'{h}.mlp.c_proj')
  return norm(x, 'ln_f') @ p['wte.weight'].T


def write_words(folder: pathlib.Path) -> None:
  """Writes a tokenizer of `WORDS` beside a model."""
  ids = {word: number for number, word in enumerate(WORDS)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token='w0'))
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  words.save(str(folder / 'tokenizer.json'))
  # Without it transformers makes a tokenizer of the model's kind, whatever tokenizer.json holds.
  kind = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(kind))

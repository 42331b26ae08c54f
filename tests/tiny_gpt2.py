"""A small GPT-2 checkpoint as Hugging Face writes it."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import safetensors.numpy

V, N, E, HEADS, LAYERS = 13, 8, 16, 2, 2
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

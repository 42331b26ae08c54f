"""Generates token ids from the programs beside this file, with numpy, jax and flatbuffers alone.

python run.py --prompt=84,104,101 --seed=0
"""

import argparse
import hashlib
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from jax import export


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--prompt', default='', help='token ids, like 84,104,101')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--temperature', type=float, default=1.0)
  flags = parser.parse_args()
  here = pathlib.Path(__file__).parent
  about = json.loads((here / 'about.json').read_text('utf-8'))
  for name, sha256 in about['sha256'].items():
    if hashlib.sha256((here / name).read_bytes()).hexdigest() != sha256:
      sys.exit(f'error: {name} is damaged; export again')
  load = lambda name: export.deserialize(bytearray((here / name).read_bytes())).call
  prefill = jax.jit(load('prefill.stablehlo'))
  step = jax.jit(load('step.stablehlo'), donate_argnums=1)
  with np.load(here / 'weights.npz') as file:
    weights = [file[f'arr_{n}'] for n in range(len(file))]

  batch, length = about['batch_size'], about['length']
  prompt = [int(number) for number in flags.prompt.split(',') if number]
  tokens = np.zeros((batch, length), np.int32)
  tokens[:, : len(prompt)] = prompt
  given = np.broadcast_to(np.arange(length) < len(prompt), (batch, length))
  weights, caches = prefill(weights, tokens, given, np.full(batch, length, np.int32))
  temperature = np.float32(flags.temperature)
  draws: dict[str, Any] = {'seed': np.uint32(flags.seed), 'temperature': temperature}
  draws['sequence_B'] = np.arange(batch, dtype=np.int32)
  more = len(prompt) < length
  while more:
    caches, tokens, more = step(weights, caches, draws)
  for text in np.asarray(tokens).tolist():
    print(*text)


if __name__ == '__main__':
  main()

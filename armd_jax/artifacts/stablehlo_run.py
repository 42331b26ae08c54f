"""Generates token ids from the programs beside this file, with numpy, jax and flatbuffers alone.

python run.py --prompt=84,104,101 --seed=0
python run.py --text='The '                     of a model of bytes
"""

import argparse
import hashlib
import io
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
  parser.add_argument('--text', help='of a model of bytes: goes on from it, and prints text')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--temperature', type=float, default=1.0)
  flags = parser.parse_args()
  if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may be unable to spell a text
    sys.stdout.reconfigure(errors='backslashreplace')
  here = pathlib.Path(__file__).parent
  about = read_about(here)
  batch, length, vocab_size = (about[name] for name in ('batch_size', 'length', 'vocab_size'))
  if flags.text is not None and (flags.prompt or about.get('tokenizer') != 'bytes'):
    sys.exit('error: --text is for models of bytes; write token ids as --prompt')
  spelled = [str(byte) for byte in (flags.text or '').encode()]
  prompt = spelled or [number for number in flags.prompt.split(',') if number]
  is_id = lambda text: text.isdecimal() and len(text) < 10 and int(text) < vocab_size
  if len(prompt) > length or not all(map(is_id, prompt)):
    sys.exit(f'error: --prompt takes up to {length} numbers below {vocab_size}, like 84,104,101')
  if not flags.temperature >= 0:
    sys.exit(f'error: --temperature is {flags.temperature}; write 0 (most likely) or more')

  load = lambda name: export.deserialize(bytearray((here / name).read_bytes())).call
  prefill = jax.jit(load('prefill.stablehlo'))
  step = jax.jit(load('step.stablehlo'), donate_argnums=1)
  with np.load(here / 'weights.npz') as file:
    weights = [file[f'arr_{n}'] for n in range(len(file))]
  tokens = np.zeros((batch, length), np.int32)
  tokens[:, : len(prompt)] = [int(number) for number in prompt]
  given = np.broadcast_to(np.arange(length) < len(prompt), (batch, length))
  weights, caches = prefill(weights, tokens, given, np.full(batch, length, np.int32))
  temperature = np.float32(flags.temperature)
  draws: dict[str, Any] = {'seed': np.uint32(flags.seed % 2**32), 'temperature': temperature}
  draws['sequence_B'] = np.arange(batch, dtype=np.int32)
  more = len(prompt) < length
  while more:
    caches, tokens, more = step(weights, caches, draws)
  for text in np.asarray(tokens).tolist():
    read = bytes(number for number in text if number < 256).decode(errors='replace')
    print(*text) if flags.text is None else print(read)


def read_about(here: pathlib.Path) -> dict:
  """What about.json holds, once it and the files that it names are what was written."""
  sha256 = lambda data: hashlib.sha256(data).hexdigest()
  try:
    about = json.loads((here / 'about.json').read_bytes())
    is_whole = about.pop('seal') == sha256(json.dumps(about, sort_keys=True).encode())
  except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):
    is_whole = False
  if not is_whole:
    sys.exit('error: about.json is damaged; export again')
  for name, digest in about['sha256'].items():
    if not (here / name).is_file() or sha256((here / name).read_bytes()) != digest:
      sys.exit(f'error: {name} is damaged; export again')
  return about


if __name__ == '__main__':
  main()

"""transformers' GPT-2 of the same size, sampling with its cache."""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from armd_jax import config as config_lib
from armd_jax.bench import decode_peers, timing
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.cases import TINY_DECODE, peer_key
from armd_jax.bench.device.torch_times import begin

BATCHES = (1, 8)
TURNS = 3
WARM_UP = 16  # tokens


def measure(batch: int, dry: bool, left: float) -> dict:
  """Generates texts as often as there is time for; the numbers of a row."""
  model: dict[str, Any] = dict(TINY_DECODE if dry else timing.SHAPES['gpt2_small'])
  vocab_size = model.pop('vocab_size')
  model['dtype'] = 'float32' if dry else 'bfloat16'
  config = config_lib.parse({'model': model}).model
  until = time.perf_counter() + left
  run = decode_peers.gpt2(config, vocab_size, batch)['run']
  run(WARM_UP)
  seconds: list[float] = []
  while len(seconds) < TURNS and time.perf_counter() + sum(seconds[-1:]) < until:
    start = time.perf_counter()
    run()
    seconds.append(time.perf_counter() - start)
  if not seconds:
    return {'skipped': rows_lib.NO_TIME}
  median = statistics.median(seconds)
  tokens = config.num_slots
  return {
    'seconds': median,
    'tokens_per_s': batch * tokens / median,
    'ms_per_step': 1e3 * median / tokens,
    'runs': len(seconds),
  }


def main(rows: rows_lib.Rows, _: list[str]) -> int:
  todo = [batch for batch in BATCHES if not rows.has(peer_key(batch))]
  for index, batch in enumerate(todo):
    seconds = rows.left() / (len(todo) - index)
    rows.measure(peer_key(batch), lambda b=batch, s=seconds: measure(b, rows.dry, s))
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*begin('transformers')))

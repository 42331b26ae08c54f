"""Milliseconds of attention, ours beside XLA, cuDNN and jax's own Hopper kernel, one after another.

Programs are compiled in threads; nothing is timed while anything compiles, unless compiling takes
most of the time there is.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from armd_jax.attention import shapes
from armd_jax.bench.attention import peers
from armd_jax.bench.device import calls
from armd_jax.bench.device.ahead import compiled_ahead
from armd_jax.bench.device.cases import KINDS, TIMES, Case, time_key
from armd_jax.bench.device.rows import Rows

MAX_SCORES = 2**29  # of the reference, which keeps all of them
MIN_SECONDS = 0.01  # of a chain of calls, if each ran at half the peak
CALLS = (5, 200)  # fewest and most of a chain
DRY_CALLS = 2
OURS, MOSAIC = 'ours', 'jax mosaic gpu'
MOSAIC_SHAPES = ('train_1024_12x64', 'train_4096_16x128')


@dataclasses.dataclass(frozen=True)
class Timed:
  """A chain of calls.

  Attributes:
    key: of its row.
    program: jitted, of q, k, v and a cotangent.
    dtype: of them.
    count: calls in the chain.
    flops: that one call needs.
  """

  key: str
  program: Callable
  dtype: str
  count: int
  flops: float


def timed(case: Case, dry: bool) -> list[Timed]:
  """The chains of a case."""
  batch, size = calls.size_of(case, dry)
  rows, keys, heads, _, dim = size
  host = calls.lengths(case, batch, size)
  lengths = jnp.asarray(host)
  ours = calls.ours(lengths)
  kernels = {OURS: (ours, 'bfloat16', tuple(KINDS))}
  if batch * case.streams * rows * keys * heads <= MAX_SCORES:
    kernels['xla'] = calls.plain(lengths), 'bfloat16', tuple(KINDS)
  if case.streams == 1 and not case.decodes and not dry:  # others support left to right only
    others = peers.callables('gpu', shapes.NAMED[case.shape])
    mosaic = others.pop(MOSAIC)
    kernels |= {name: (attend, 'bfloat16', tuple(KINDS)) for name, attend in others.items()}
    if case.shape in MOSAIC_SHAPES:
      # Its tiles are float16, and its causal mask has no backward pass.
      kernels[MOSAIC] = mosaic, 'float16', ('forward',)
      kernels[f'{OURS} float16'] = ours, 'float16', ('forward',)
  product = 2.0 * dim * heads * batch * int(host.sum())
  made = []
  for name, (attend, dtype, kinds) in kernels.items():
    for kind in kinds:
      if kind == 'both' and case.decodes:
        continue
      flops = KINDS[kind] * product
      count = DRY_CALLS
      if not dry:
        count = int(min(max(CALLS[0], MIN_SECONDS * calls.peak() / flops), CALLS[1]))  # type: ignore[operator]
      form = calls.with_gradients if kind == 'both' else calls.forward_only
      chain = calls.chained(form(attend), count, cut=name == 'xla')
      made.append(Timed(time_key(case, name, kind), chain, dtype, count, flops))
  return made


def main(rows: Rows, _: list[str]) -> int:
  every = {chain.key: (case, chain) for case in TIMES for chain in timed(case, rows.dry)}

  def arrays(case, dtype):
    batch, size = calls.size_of(case, rows.dry)
    return calls.arrays(dataclasses.replace(case, dtype=dtype), batch, size)

  def compile_(key):
    case, chain = every[key]
    like = jax.eval_shape(lambda: arrays(case, chain.dtype))
    return chain.program.lower(*like).compile()

  def measure(key, compiled, busy):
    case, chain = every[key]
    arguments = arrays(case, chain.dtype)
    ms = calls.median_ms(lambda: compiled(*arguments), chain.count)
    peak = calls.peak()
    rate = chain.flops / (1e-3 * ms)
    return {
      'ms': ms,
      'tflops': 1e-12 * rate,
      'of_peak': peak and rate / peak,
      'calls': chain.count,
      'compiling_beside': busy,
    }

  compiled_ahead(rows, list(every), compile_, measure)
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

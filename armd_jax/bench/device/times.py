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
MIN_SECONDS = 0.01  # of calls at half the peak
CALLS = (4, 100)  # fewest and most of a program
MAX_BYTES = 12 * 2**30  # of queries and results
DRY_CALLS = 2
OURS, XLA, MOSAIC = 'ours', 'xla', 'jax mosaic gpu'
MOSAIC_SHAPES = ('train_1024_12x64', 'train_4096_16x128')


@dataclasses.dataclass(frozen=True)
class Timed:
  """A program of some calls.

  Attributes:
    key: of its row.
    program: as of `calls.repeated`.
    dtype: of them.
    count: calls in it.
    flops: that one call needs.
  """

  key: str
  program: Callable
  dtype: str
  count: int
  flops: float


def timed(case: Case, dry: bool) -> list[Timed]:
  """The programs of a case."""
  batch, size = calls.size_of(case, dry)
  rows, keys, heads, _, dim = size
  host = calls.lengths(case, batch, size)
  lengths = jnp.asarray(host)
  ours = calls.ours(lengths)
  kernels = {OURS: (ours, 'bfloat16', tuple(KINDS))}
  if batch * case.streams * rows * keys * heads <= MAX_SCORES:
    kernels[XLA] = calls.plain(lengths), 'bfloat16', tuple(KINDS)
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
        held = (5 if kind == 'both' else 2) * 2 * batch * case.streams * rows * heads * dim
        wanted = min(MIN_SECONDS * calls.peak() / flops, MAX_BYTES / held)  # type: ignore[operator]
        count = int(min(max(CALLS[0], wanted), CALLS[1]))
      form = calls.with_gradients if kind == 'both' else calls.forward_only
      key = time_key(case, name, kind)
      made.append(Timed(key, calls.repeated(form(attend)), dtype, count, flops))
  return made


def main(rows: Rows, _: list[str]) -> int:
  every = {one.key: (case, one) for case in TIMES for one in timed(case, rows.dry)}

  def arrays(case, one):
    batch, size = calls.size_of(case, rows.dry)
    q, *rest = calls.arrays(dataclasses.replace(case, dtype=one.dtype), batch, size)
    return [q * (1 + i / 128) for i in range(one.count)], *rest

  def compile_(key):
    case, one = every[key]
    like = jax.eval_shape(lambda: arrays(case, one))
    return one.program.lower(*like).compile()

  def measure(key, compiled, busy):
    case, one = every[key]
    arguments = arrays(case, one)
    ms = calls.median_ms(lambda: compiled(*arguments), one.count)
    peak = calls.peak()
    rate = one.flops / (1e-3 * ms)
    return {
      'ms': ms,
      'tflops': 1e-12 * rate,
      'of_peak': peak and rate / peak,
      'calls': one.count,
      'compiling_beside': busy,
    }

  # Ours and its rivals at every shape, before what is slower at all of them.
  worth = sorted(every, key=lambda key: f' {XLA} ' in key)
  return compiled_ahead(rows, worth, compile_, measure)


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

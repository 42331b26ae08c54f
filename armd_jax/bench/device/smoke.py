"""One small call of the kernels against float32: `... smoke CASE`."""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp

from armd_jax.attention import reference
from armd_jax.bench.device import calls
from armd_jax.bench.device.cases import SMOKE, Case
from armd_jax.bench.device.rows import Rows

RESULTS = ('out', 'dq', 'dk', 'dv')
TOLERANCE = 0.02


def check(case: Case, dry: bool) -> dict:
  """Errors of the results by name, seconds of compiling, and whether all is well."""
  batch, size = calls.size_of(case, dry)
  lengths = jnp.asarray(calls.lengths(case, batch, size))
  arguments = calls.arrays(case, batch, size)
  form = calls.with_gradients if case.gradients else calls.forward_only
  exact = form(lambda q, k, v: reference.prefix_attention(q, k, v, lengths))
  start = time.perf_counter()
  compiled = jax.jit(form(calls.ours(lengths))).lower(*arguments).compile()
  seconds = time.perf_counter() - start
  found = jax.block_until_ready(compiled(*arguments))
  with jax.default_matmul_precision('float32'):
    expected = jax.jit(exact)(*(x.astype(jnp.float32) for x in arguments))
  errors = {n: calls.error(a, e) for n, a, e in zip(RESULTS, found, expected, strict=False)}
  # Not a number is not well either.
  fine = all(value <= TOLERANCE for value in errors.values())
  return {'ok': fine, 'compile_s': seconds} | errors


def main(rows: Rows, names: list[str]) -> int:
  for name in names:
    rows.measure(name, lambda name=name: check(SMOKE[name], rows.dry))
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

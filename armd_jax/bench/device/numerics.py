"""The kernels at real sizes against float32, many times: `... numerics PART PARTS [KEY ...]`.

Every error is given beside that of the XLA reference in the same dtype, which bounds ours. A race
shows as results that differ from those of the first run: `moved` counts such runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp

from armd_jax.attention import reference
from armd_jax.bench.device import calls
from armd_jax.bench.device.cases import NUMERICS, Case
from armd_jax.bench.device.rows import Rows
from armd_jax.bench.device.smoke import RESULTS

Array = jax.Array

WORSE = 1.3  # than the reference's error
ROUNDING = {'bfloat16': 4e-3, 'float16': 1e-3}  # a smaller error is always well
MAX_SCORES = 2**28  # of the reference at once
ROWS_AT_ONCE = 4096


def program(lengths_BxRxN: Array) -> Callable:
  """What is checked: `(q, k, v, dout) -> (out, dq, dk, dv)`, jitted."""
  return jax.jit(calls.with_gradients(calls.ours(lengths_BxRxN)))


def by_rows(q, k, v, dout, lengths_BxRxN) -> tuple[Array, ...]:
  """The same by the reference, some rows at a time: all scores of 32768 would not fit."""

  @jax.jit
  def some(q, k, v, dout, lengths):
    attend = lambda q, k, v: reference.prefix_attention(q, k, v, lengths)
    return calls.with_gradients(attend)(q, k, v, dout)

  parts = [slice(i, i + ROWS_AT_ONCE) for i in range(0, q.shape[2], ROWS_AT_ONCE)]
  made = [some(q[:, :, p], k, v, dout[:, :, p], lengths_BxRxN[:, :, p]) for p in parts]
  out, dq, dk, dv = zip(*made, strict=True)
  joined = (jnp.concatenate(x, axis=2) for x in (out, dq))
  return *joined, *(sum(y.astype(jnp.float32) for y in x) for x in (dk, dv))


def check(case: Case, dry: bool) -> dict:
  """Errors of ours and of the reference, runs, those that moved, and whether all is well."""
  batch, size = calls.size_of(case, dry)
  runs = min(case.runs, 2) if dry else case.runs
  rows, keys, heads, groups, _ = size
  lengths = jnp.asarray(calls.lengths(case, batch, size))
  arguments = calls.arrays(case, batch, size)
  run = program(lengths)
  found = jax.block_until_ready(run(*arguments))
  moved = 0
  for _ in range(runs - 1):
    again = run(*arguments)
    moved += not all(bool((a == b).all()) for a, b in zip(found, again, strict=True))
  # The reference sees one key head, its query heads, and as many texts as memory holds.
  copies = heads // groups
  texts = max(1, MAX_SCORES // (case.streams * rows * keys * copies))
  seen = (copies, 1, 1, copies)
  cut = lambda x, heads: x[:texts, ..., :heads, :]
  small = [cut(x, n) for x, n in zip(arguments, seen, strict=True)]
  theirs = lengths[:texts]
  with jax.default_matmul_precision('float32'):
    exact = by_rows(*(x.astype(jnp.float32) for x in small), theirs)
  xla = by_rows(*small, theirs)
  row, fine = {}, not moved
  results = zip(RESULTS, found, xla, exact, (copies, copies, 1, 1), strict=True)
  for name, a, x, e, n in results:
    floor = 1e-3 * e.size**0.5  # where there is one key, dq is 0
    row[name] = calls.error(cut(a, n), e, floor)
    row[f'{name} xla'] = calls.error(x, e, floor)
    fine &= row[name] <= max(WORSE * row[f'{name} xla'], ROUNDING[case.dtype])
    fine &= bool(jnp.isfinite(a).all())
    if case.lengths == 'nothing':
      fine &= bool((a == 0).all())
  return {'ok': fine, 'runs': runs, 'moved': moved} | row


def main(rows: Rows, arguments: list[str]) -> int:
  part, parts = map(int, arguments[:2])
  wanted = arguments[2:] or [case.key for case in NUMERICS]
  for case in NUMERICS[part::parts]:
    if case.key in wanted:
      rows.measure(case.key, lambda case=case: check(case, rows.dry))
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*calls.begin()))

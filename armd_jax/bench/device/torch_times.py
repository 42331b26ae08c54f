"""Milliseconds of torch's scaled_dot_product_attention at the same sizes, by backend."""

from __future__ import annotations

import functools
import importlib
import statistics
import sys
import time

from armd_jax.bench.device import calls
from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.cases import KINDS, TIMES, Case, time_key

BACKENDS = {'torch flash': 'FLASH_ATTENTION', 'torch cudnn': 'CUDNN_ATTENTION'}
REPEATS = 7
CALLS = 10


def begin(package: str) -> tuple[rows_lib.Rows, list[str]]:
  """The rows of this process, which names the device that torch has, and its own arguments.

  Args:
    package: torch, or what needs it; where it is missing, a row notes it and the process ends well.
  """
  job, rest = rows_lib.parse()
  try:
    import torch

    importlib.import_module(package)
  except ImportError as missing:
    rows_lib.Rows(job).add(package, skipped=str(missing))
    sys.exit(0)
  here = torch.cuda.is_available()
  return rows_lib.Rows(job, torch.cuda.get_device_name() if here else 'cpu', not here), rest


def measure(case: Case, backend: str, dry: bool) -> dict[str, dict]:
  """Numbers of a row by kind."""
  import torch
  from torch.nn import attention

  device = 'cpu' if dry else 'cuda'
  batch, (rows, _, heads, groups, dim) = calls.size_of(case, dry)
  make = functools.partial(torch.randn, device=device, dtype=torch.bfloat16)
  q, k, v = (make(batch, n, rows, dim, requires_grad=True) for n in (heads, groups, groups))
  dout = make(batch, heads, rows, dim)
  attend = functools.partial(
    torch.nn.functional.scaled_dot_product_attention, is_causal=True, enable_gqa=heads != groups
  )
  kinds = {
    'forward': lambda: attend(q, k, v),
    'both': lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), dout),
  }
  wait = (lambda: None) if dry else torch.cuda.synchronize
  product = 2 * dim * heads * batch * rows * (rows + 1) / 2
  count = CALLS if rows <= 4096 else 2
  found = {}
  with attention.sdpa_kernel(getattr(attention.SDPBackend, backend)):
    for kind, call in kinds.items():
      seconds = []
      for turn in range(-1, REPEATS):
        wait()
        start = time.perf_counter()
        for _ in range(count):
          call()
        wait()
        if turn >= 0:
          seconds.append((time.perf_counter() - start) / count)
      ms = 1e3 * statistics.median(seconds)
      found[kind] = {'ms': ms, 'tflops': 1e-9 * KINDS[kind] * product / ms}
  return found


def main(rows: rows_lib.Rows, _: list[str]) -> int:
  for case in TIMES:
    if case.streams > 1 or case.decodes:
      continue
    for name, backend in BACKENDS.items():
      if rows.dry and name != 'torch flash':
        continue
      # Both kinds by one call: made for the first, and there for the second.
      made = functools.cache(functools.partial(measure, case, backend, rows.dry))
      for kind in KINDS:
        key = time_key(case, name, kind)
        rows.measure(key, lambda made=made, kind=kind: made()[kind])
  return rows.exit_code()


if __name__ == '__main__':
  sys.exit(main(*begin('torch')))

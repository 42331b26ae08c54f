"""Rows as an H100 would leave them, made up: every goal is met by them."""

from armd_jax.bench.device import cases

DEVICE = 'NVIDIA H100 80GB HBM3'
MS = {
  'ours': 0.1, 'cudnn': 0.12, 'torch flash': 0.13, 'torch cudnn': 0.12, 'xla': 2.0,
}  # fmt: skip


def row(stage, key, **numbers):
  return {'stage': stage, 'key': key, 'at': 0.0, 'device': DEVICE, 'dry': False} | numbers


def _times():
  for case in cases.TIMES:
    for kernel, ms in MS.items():
      stage = 'torch' if kernel.startswith('torch') else 'times'
      for kind, products in cases.KINDS.items():
        if kernel != 'ours' and (case.streams > 1 or case.decodes):
          continue
        ms_of_call = ms * products * (1.5 if case.streams > 1 else 1)
        rate = 50 / ms_of_call * products
        yield row(stage, cases.time_key(case, kernel, kind), ms=ms_of_call, tflops=rate)


def _decoded():
  for family, streams, batch in cases.DECODED:
    rate = 2500 * batch * streams**0.98 * (1.05 if family == 'ar' else 1)
    yield row(
      'decode', cases.decode_key(family, streams, batch), tokens_per_s=rate, ms_per_step=0.4
    )
  for batch in (1, 8):
    yield row('peers', cases.peer_key(batch), tokens_per_s=110.0 * batch, ms_per_step=9.0)


def rows():
  """By (stage, key)."""
  made = [row('machine', 'compilers', ptxas='13.0.88', carried_ptxas='13.5.37')]
  made += [row('smoke', key, ok=True, out=0.002) for key in cases.SMOKE]
  made += [
    row('numerics', case.key, ok=True, runs=case.runs, moved=0, out=0.002)
    for case in cases.NUMERICS
  ]
  made += _times()
  made += [
    row('train', step.key, ok=True, ms=60.0, tokens_per_s=270e3, mfu=0.41, gib=30.0)
    for step in cases.STEPS
  ]
  made += _decoded()
  return {(r['stage'], r['key']): r for r in made}

"""Both programs of a config compiled for a target, and what they need and cost, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from armd_jax.compiled import movers, targets
from armd_jax.compiled.programs import (
  TooLarge,
  compile_program,
  decode_report,
  find_fix,
  lower_decode,
  lower_train,
  mesh_for,
  train_report,
)
from armd_jax.config import Config
from armd_jax.hardware.chips import GIB


def compile_and_report(
  config: Config,
  vocab_size: int,
  target: targets.Target,
  say: Callable[[str], None],
  num_movers: int = 0,
) -> dict[str, Any]:
  """Both programs of a config on a target, and the fix if training does not fit.

  Args:
    say: takes lines for the user.
    num_movers: of the training step, which are listed as well.
  """
  config, mesh = mesh_for(config, target, vocab_size, say)
  results: dict[str, Any] = {'target': target.name, 'processes': target.processes}
  say(f'{target.name}: {mesh.size} devices, {target.processes} processes, mesh {dict(mesh.shape)}')
  compiled = compile_program(lower_train(config, vocab_size, mesh, target), target)
  results['train'] = train_report(config, vocab_size, mesh, target, compiled)
  say(describe('training step', results['train']))
  if num_movers and not isinstance(compiled, TooLarge):
    say(movers.table(compiled.as_text(), dict(mesh.shape), target.chip.hbm_bandwidth, num_movers))
  if not results['train']['memory']['fits']:
    results['fix'] = find_fix(config, vocab_size, mesh, target, say)
    say(f'does not fit: {results["fix"]}')
  compiled = compile_program(lower_decode(config, vocab_size, mesh, target), target)
  results['generate'] = decode_report(config, vocab_size, mesh, target, compiled)
  say(describe('prefill and decoding', results['generate']))
  return results


def describe(title: str, report: dict[str, Any]) -> str:
  """A report as text."""
  needs = report['memory']
  lines = [f'{title}: ' + ', '.join(f'{k} {v}' for k, v in report.items() if _is_short(v))]
  for name, size in needs.items():
    if name not in ('fits', 'total', 'usable'):
      lines.append(f'  {name:<12}{size / GIB:10.3f} GiB')
  verdict = 'fits' if needs['fits'] else 'DOES NOT FIT'
  lines.append(
    f'  {"all":<12}{needs["total"] / GIB:10.3f} GiB of {needs["usable"] / GIB:.2f}: {verdict}'
  )
  for part in (report, *(report[k] for k in ('prefill', 'decode') if k in report)):
    if 'seconds' in part:
      name = next((f'{k}: ' for k in ('prefill', 'decode') if report.get(k) is part), '')
      lines += _describe_costs(name, part)
  return '\n'.join(lines)


def _is_short(value):
  return isinstance(value, int | str | dict) and not (isinstance(value, dict) and len(value) > 3)


def _describe_costs(name: str, part: dict[str, Any]) -> list[str]:
  seconds, mfu = part['seconds'], part['mfu']
  lines = [
    f'  {name}{part["visible_flops"]:.4g} FLOPs (of visible keys; {part["dense_flops"]:.4g} as '
    f'computed), '
    f'{part["hbm_bytes"]:.4g} bytes of memory traffic, {part["sent_bytes"]:.4g} bytes sent, '
    f'{part["launches"]} launches'
  ]
  lines += [
    f'    {row["kind"]:<20}{row["axis"]:<16}{row["bytes"] / 1e6:10.2f} MB in {row["launches"]}'
    for row in part['collectives']
    if row['bytes']
  ]
  lines.append(
    '    at least: '
    + ', '.join(f'{k} {seconds[k] * 1e3:.3f} ms' for k in ('compute', 'memory', 'network'))
    + f'; {seconds["overlapped"] * 1e3:.3f} ms overlapped, {seconds["serial"] * 1e3:.3f} one after '
    f'the other; MFU at most {mfu["overlapped"]:.2f} and {mfu["serial"]:.2f}'
  )
  return lines

"""Times prefix attention at its named shapes, or shows the compiled view where there is no TPU.

    python -m armd_jax.bench.attention [--json=PATH] [--compiled=docs/attention_tpu.json]

On a TPU: milliseconds of forward, and of forward with gradients, and the fraction of peak that the
useful products make of them; beside them the XLA reference where its scores fit. Without one: tiles
counted exactly, and the useful utilisation that the compiler's schedule implies for each chip, read
from what `python -m armd_jax.attention.aot` wrote.
"""

from __future__ import annotations

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
from absl import flags

from armd_jax import attention, cli
from armd_jax.attention import device, schedule, shapes
from armd_jax.bench import timing
from armd_jax.errors import UserError

# Peak bf16 FLOP/s of one jax device: a v4 or v5p chip, half a 7x chip.
PEAK_FLOPS = {'v4': 275e12, 'v5e': 197e12, 'v5p': 459e12, 'v6e': 918e12, '7x': 1155e12}
# The reference keeps all scores; beyond this many it is left out.
MAX_REFERENCE_SCORES = 2**30


def functions(backend: str):
  """Forward, and forward with all gradients."""

  def forward(q, k, v, lengths):
    return attention.prefix_attention(q, k, v, lengths, backend=backend)

  def both(q, k, v, lengths):
    out, pullback = jax.vjp(lambda q, k, v: forward(q, k, v, lengths), q, k, v)
    return pullback(out)

  return {'forward': jax.jit(forward), 'both': jax.jit(both)}


def timed_rows(shape: shapes.Shape, streams: int, repeats: int) -> list[dict]:
  """One row per backend that can run the shape here."""
  keys = jax.random.split(jax.random.key(0), 3)
  size = (1, streams, shape.rows, shape.heads, shape.head_dim)
  q = jax.random.normal(keys[0], size, jnp.bfloat16)
  size = (1, shape.keys, shape.groups, shape.head_dim)
  k, v = (jax.random.normal(key, size, jnp.bfloat16) for key in keys[1:])
  lengths = shape.lengths(streams)
  backends = ['pallas_tpu']
  if streams * shape.rows * shape.keys * shape.heads <= MAX_REFERENCE_SCORES:
    backends.append('reference')
  calls = {
    (backend, kind): functools.partial(function, q, k, v, jnp.asarray(lengths))
    for backend in backends
    for kind, function in functions(backend).items()
  }
  seconds = timing.medians(timing.interleaved(calls, repeats))
  product = 2 * shape.head_dim * shape.heads * int(lengths.sum())
  peak = PEAK_FLOPS[device.current().chip]
  return [
    {
      'shape': shape.name,
      'streams': streams,
      'backend': backend,
      'forward ms': 1e3 * seconds[backend, 'forward'],
      'both ms': 1e3 * seconds[backend, 'both'],
      # Useful products: 2 forward, 5 backward.
      'forward of peak': 2 * product / seconds[backend, 'forward'] / peak,
      'both of peak': 7 * product / seconds[backend, 'both'] / peak,
    }
    for backend in backends
  ]


def compiled_rows(path: pathlib.Path) -> list[dict]:
  """The compiled view, one row per program.

  Raises:
    UserError: there are no results, or they were made from other sources.
  """
  command = f'python -m armd_jax.attention.aot --json={path}'
  if not path.exists():
    raise UserError(f'there is no TPU here and no {path}; write it with `{command}`')
  results = json.loads(path.read_text())
  if results['stamp'] != schedule.stamp():
    raise UserError(f'{path} was made from other sources; run `{command}` again')
  rows = []
  for key, program in results['programs'].items():
    chip, shape, streams = key.rsplit(' ', 2)
    forward, backward = program['forward'], program['backward']
    rows.append(
      {
        'chip': chip,
        'shape': shape,
        'streams': int(streams[1:]),
        'tile': 'x'.join(map(str, forward['blocks'][:2])),
        'active': forward['active'],
        'partial': forward['partial'],
        'forward cycles/tile': forward['cycles_per_active_tile'],
        'backward cycles/tile': backward['cycles_per_active_tile'],
        'forward useful': forward['useful'],
        'backward useful': backward['useful'],
      }
    )
  return rows


def main() -> None:
  if jax.default_backend() == 'tpu':
    machine = timing.machine()
    print(timing.machine_line(machine))
    rows = [
      row
      for shape in shapes.NAMED.values()
      for streams in (1, 2)
      for row in timed_rows(shape, streams, _REPEATS.value)
    ]
  else:
    rows = compiled_rows(pathlib.Path(_COMPILED.value))
  print(timing.table(rows))
  if _JSON.value:
    cli.write_json(_JSON.value, rows)


if __name__ == '__main__':
  _COMPILED = flags.DEFINE_string(
    'compiled', 'docs/attention_tpu.json', 'What attention.aot wrote, for the compiled view.'
  )
  _REPEATS = timing.positive_flag('repeats', 20, 'Timed rounds.')
  _JSON = cli.json_flag()
  cli.run(main)

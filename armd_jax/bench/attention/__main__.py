"""Times prefix attention at its named shapes, or shows the compiled view where no chip is here.

    python -m armd_jax.bench.attention [--json=PATH] [--shapes=train_4096]

On a TPU or a Hopper GPU: milliseconds of forward, and of forward with gradients, and the fraction
of peak that the useful products make of them; beside them the XLA reference where its scores fit,
and other kernels where they are installed and can do the mask. Elsewhere: tiles counted exactly,
and the compilers' figures, as `compile_tpu` and `compile_hopper` recorded them: on TPU the
useful utilisation that the schedule implies, on Hopper the registers that were spilled.
"""

from __future__ import annotations

import dataclasses

from armd_jax import cli
from armd_jax.attention import shapes
from armd_jax.bench.attention import compile_hopper
from armd_jax.bench.attention.timed import (
  COMPILED_PEERS,
  COMPILED_TPU,
  compiled_hopper_rows,
  compiled_tpu_rows,
  timed_rows,
)
from armd_jax.errors import UserError
from armd_jax.flags import flag
from armd_jax.hardware import device, machines
from armd_jax.hardware.chips import CHIPS
from armd_jax.show import columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  shapes: str = flag('Only shapes whose name contains this.', '')
  repeats: int = flag('Timed rounds.', 20, at_least=1)
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  here = device.current()
  names = [name for name in shapes.NAMED if options.shapes in name]
  if not names:
    raise UserError(
      f'no shape has {options.shapes!r} in its name; see armd_jax/attention/shapes.py'
    )
  if here.chip in CHIPS:
    machine = machines.machine()
    print(machines.machine_line(machine))
    rows = []
    for name in names:
      for streams in (1, 2):
        rows += timed_rows(shapes.NAMED[name], streams, options.repeats)
      print(columns.table(rows[-8:]), flush=True)
    tables = [rows]
  else:
    tables = [
      compiled_tpu_rows(COMPILED_TPU, COMPILED_PEERS),
      compiled_hopper_rows(compile_hopper.PATH),
    ]
    tables = [[row for row in rows if row['shape'] in names] for rows in tables]
  for rows in tables:
    if rows:
      print(columns.table(rows), end='\n\n')
  if options.json:
    cli.write_json(options.json, [row for rows in tables for row in rows])


if __name__ == '__main__':
  cli.run(main, Options)

"""What a decoding step launches on an H100 that is not here, read from the compiled program.

    python -m armd_jax.bench.launches --shape=gpt2_small

A program is compiled at two depths. What they differ by are two layers (of ARMD one of each kind),
what is left is what a step does beside its layers: the embedding and the seed of the query rows,
logits and draws. Products may launch more inside cuBLAS than the program shows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from armd_jax import cli, models
from armd_jax import config as config_lib
from armd_jax.bench import timing
from armd_jax.compiled import hlo, targets
from armd_jax.config import ModelConfig
from armd_jax.decode import generate
from armd_jax.flags import flag
from armd_jax.hardware import device
from armd_jax.show import columns

DEPTHS = 4, 6  # of the compiled programs, layers


def lower(
  config: ModelConfig, vocab_size: int, streams: int, batch_size: int, target: targets.Target
) -> jax.stages.Lowered:
  """Decoding of texts of the model's length in S streams, nothing given, for one device."""
  shape = batch_size, config.num_slots
  here = jax.sharding.SingleDeviceSharding(target.devices[0])
  on_target = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
  network = models.build(config, vocab_size)
  params = jax.eval_shape(lambda: models.init(network, jax.random.key(0)))
  task = generate.task_of(np.zeros(shape, bool), np.full(batch_size, config.num_slots), streams)
  with device.compiling_for(target.kernels):
    return generate.lower_generate(network, jax.tree.map(on_target, params), task)


def of_step(
  config: ModelConfig, vocab_size: int, streams: int, batch_size: int, target: targets.Target
) -> int:
  """Launches of a step that makes S tokens of each text."""
  lowered = lower(config, vocab_size, streams, batch_size, target)
  program = hlo.Program(lowered.compile(dict(target.options)).as_text(), {'device': 1})
  return list(program.rounds.values())[-1].kernels


def measure(
  model: dict[str, Any], vocab_size: int, streams: int, batch_size: int, target: targets.Target
) -> dict[str, Any]:
  """A row of the table.

  Args:
    model: fields of ModelConfig.
    vocab_size: V.
    streams: S.
    batch_size: texts generated together.
    target: an H100.
  """
  config = config_lib.parse({'model': model, 'order': {'max_shuffled': 0}}).model
  counts = []
  for depth in DEPTHS:
    halves = dataclasses.replace(config, num_layers=depth, num_two_stream_layers=depth // 2)
    counts.append(of_step(halves, vocab_size, streams, batch_size, target))
  layer = (counts[1] - counts[0]) / (DEPTHS[1] - DEPTHS[0])
  beside = counts[0] - DEPTHS[0] * layer
  return {
    'system': 'AR' if config.family == 'ar' else f'ARMD S={streams}',
    'batch': batch_size,
    'a layer': layer,
    'beside them': beside,
    'a step': beside + config.num_layers * layer,
  }


def rows(
  model: dict[str, Any],
  vocab_size: int,
  streams: Sequence[int],
  batch_sizes: Sequence[int],
) -> list[dict[str, Any]]:
  """AR and ARMD at every S, each at every batch size; see `measure`."""
  target = targets.gpu('h100')
  systems = [('ar', 1), *(('armd', count) for count in streams)]
  return [
    measure(model | {'family': family}, vocab_size, count, batch_size, target)
    for batch_size in batch_sizes
    for family, count in systems
  ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(timing.ModelShape):
  streams: tuple[int, ...] = flag('Stride counts S.', (1, 4, 16, 32), at_least=1)
  batch_sizes: tuple[int, ...] = flag('Texts generated together.', (1, 8), at_least=1)


def main(options: Options) -> None:
  model, vocab_size = options.values()
  found = rows(model | {'dtype': 'bfloat16'}, vocab_size, options.streams, options.batch_sizes)
  print(f'launches of a decoding step on an H100, bfloat16, jax {jax.__version__}')
  print(columns.table(found))


if __name__ == '__main__':
  cli.run(main, Options)

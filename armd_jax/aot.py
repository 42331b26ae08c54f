"""Compiles training and decoding for hardware that is not here, and prints what they need and cost.

    armd aot --config=experiments/owt_medium.py --topology=v5p:8x8x16
    armd aot --config=experiments/owt_medium.py --target=h100

The programs are the real ones, `training.train_step` and `decode.generate`, with the attention
kernels of the chip. XLA's compiler for the chip compiles them; they are not run. If a step does not
fit, other settings are tried, and the first that fits is named. `--movers=20` lists those
instructions of the training step that move most bytes, with their source lines. Needs
`pip install -e '.[aot]'`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.compiled import targets
from armd_jax.compiled.reports import compile_and_report
from armd_jax.data import tokenizers
from armd_jax.errors import UserError
from armd_jax.flags import experiment, flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  config: ConfigDict = experiment()
  topology: str = flag('A TPU slice, like v5p:8x8x16.', '')
  target: str = flag('h100, or h100:8.', '')
  effort: float = flag(
    'Of a TPU compiler that knows it; -1 takes a quarter of the time, memory comes out larger.', 0.0
  )
  movers: int = flag('Lists so many of what moves most bytes in the training step.', 0, at_least=0)
  json: str | None = cli.json_file()


def main(options: Options) -> None:
  config = config_lib.parse(options.config)
  if bool(options.topology) == bool(options.target):
    raise UserError('write either --topology=v5p:8x8x16 (a TPU slice) or --target=h100')
  target = (
    targets.tpu(options.topology, options.effort)
    if options.topology
    else targets.gpu(options.target)
  )
  vocab_size = tokenizers.vocab_size(config.data.tokenizer)
  say = lambda text: print(text, flush=True)
  if options.effort and not target.options:
    say('--effort is left out: this libtpu has no such option')
  results = compile_and_report(config, vocab_size, target, say, options.movers)
  if options.json:
    cli.write_json(options.json, results)


if __name__ == '__main__':
  cli.run(main, Options)

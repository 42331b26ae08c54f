"""Trains a model: `armd train --config=experiments/quickstart.py --workdir=DIR`.

The same command resumes from the last checkpoint, with the same data and randomness, as if the run
had never stopped. SIGTERM and Ctrl-C save, and end it with exit code 75.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.flags import experiment, flag
from armd_jax.training.loop import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.OnCluster):
  config: ConfigDict = experiment()
  workdir: str = flag('Where the run is kept.', is_path='or a bucket')
  overwrite: bool = flag('Delete the run in --workdir first.', False)


def main(options: Options) -> None:
  config = config_lib.parse(options.config)
  options.start()
  train(config, options.workdir, overwrite=options.overwrite)


if __name__ == '__main__':
  cli.run(main, Options)

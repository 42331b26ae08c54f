"""Trains a model: `python -m armd_jax.train --config=experiments/quickstart.py --workdir=DIR`.

The same command goes on from the last checkpoint, with the same data and randomness, as if the run
had never stopped. SIGTERM saves, and ends it with exit code 75.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from armd_jax import cli
from armd_jax import config as config_lib
from armd_jax.parallel import distributed
from armd_jax.training.loop import (
  train,
)


def main() -> None:
  config = config_lib.parse(cli.experiment(_CONFIG))
  distributed.start(_CLUSTER())
  train(config, _WORKDIR.value, overwrite=_OVERWRITE.value)


if __name__ == '__main__':
  _CONFIG = config_flags.DEFINE_config_file('config', help_string='Experiment file.')
  _WORKDIR = cli.workdir_flag('Where the run is kept.')
  _OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Delete the run in --workdir first.')
  _CLUSTER = distributed.define_flags()
  flags.mark_flag_as_required('config')
  cli.run(main)

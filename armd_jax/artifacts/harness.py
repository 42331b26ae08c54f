"""EleutherAI's evaluation harness: its own command, with a model of this package.

  python -m armd_jax.artifacts.harness --model armd_jax \
    --model_args path=RUN,streams=4 --tasks NAMES

`path` is a run or an export; all flags are lm_eval's own, which the extra `eval` brings.
"""

from __future__ import annotations

import sys


def main() -> None:
  try:
    from lm_eval.__main__ import cli_evaluate
  except ImportError:
    sys.exit("error: lm_eval is not installed; pip install -e '.[eval]' in a clone")
  from armd_jax.artifacts import harness_model
  from armd_jax.errors import UserError

  assert harness_model.NAME  # importing it registers the model
  try:
    cli_evaluate()
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()

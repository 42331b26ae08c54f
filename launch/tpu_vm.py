"""Runs a job on all workers of a Cloud TPU VM, over gcloud's ssh:

  python launch/tpu_vm.py --processes 4 --devices-per-process 4 --name my-tpu --zone us-east5-a \\
    --setup -- python -m armd_jax.train --config=experiments/owt_small.py --workdir=/mnt/runs/owt

--name is the TPU's, with one process a worker. The work directory must be on a file system that
all workers mount. --setup first copies this repository there and installs it.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Sequence

import common

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ARCHIVE = 'armd_jax.tar.gz'
# TPU images hold an older Python than the package needs, so uv brings one.
_SETUP = (
  f'set -e; mkdir -p armd_jax; tar -xzf {_ARCHIVE} -C armd_jax; '
  'python3 -m pip install --quiet --user uv; '
  'python3 -m uv venv --quiet --clear --python 3.12 armd_jax/.venv; '
  "python3 -m uv pip install --quiet --python armd_jax/.venv/bin/python -e armd_jax 'jax[tpu]'"
)


def main(arguments: Sequence[str]) -> int:
  """Sets up if asked, then runs the job, again after crashes; returns its exit code."""
  parser = common.parser(__doc__.splitlines()[0], ['tpu'])
  add = parser.add_argument
  add('--zone', required=True, help="the TPU's")
  add('--project', default='', help="the TPU's; gcloud's own by default")
  add('--setup', action='store_true', help='copy this repository there and install it first')
  parsed = parser.parse_args(arguments)
  job = common.job(parsed)
  common.check_fixed(job, 'a TPU VM')
  where = [f'--zone={parsed.zone}', '--worker=all']
  where += [f'--project={parsed.project}'] if parsed.project else []
  setup = setup_commands(job, where) if parsed.setup else []
  train = train_command(job, where)
  if parsed.dry_run:
    common.show('\n'.join(map(shlex.join, [*setup, train])))
    return common.DONE
  for command in setup:
    code = common.call(command).returncode
    if code:
      return code
  restarts = 0
  while True:
    code = common.call(train).returncode
    if not common.starts_again(code, restarts, job):
      return code
    restarts += code not in common.TOLD_TO_STOP


def setup_commands(job: common.Job, where: list[str]) -> list[list[str]]:
  """Commands that bring what is committed in this repository to all workers, and install it."""
  tpu_vm = ['gcloud', 'compute', 'tpus', 'tpu-vm']
  return [
    ['git', f'--git-dir={_ROOT / ".git"}', 'archive', f'--output={_ARCHIVE}', 'HEAD'],
    [*tpu_vm, 'scp', _ARCHIVE, f'{job.name}:', *where],
    [*tpu_vm, 'ssh', job.name, *where, f'--command={_SETUP}'],
  ]


def train_command(job: common.Job, where: list[str]) -> list[str]:
  """The command that runs one process on every worker."""
  line = common.shell_line(common.on_cluster(job, 'tpu'), common.environment(job))
  # `exec`, so that a signal to the shell is one to the process.
  remote = f'cd armd_jax && export PATH="$PWD/.venv/bin:$PATH" && exec env {line}'
  return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', job.name, *where, f'--command={remote}']


if __name__ == '__main__':
  common.run(main)

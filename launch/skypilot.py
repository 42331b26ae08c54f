"""Launches a managed job of SkyPilot, one process a node:

  python launch/skypilot.py --processes 2 --devices-per-process 8 --accelerator H100 --spot \\
    --mount /runs=s3://my-bucket/runs -- \\
    python -m armd_jax.train --config=experiments/owt_small.py --workdir=/runs/owt

SkyPilot copies this repository to every node and installs it. The work directory must be on a
bucket that it mounts with --mount, or on a file system that all nodes share.
"""

from __future__ import annotations

import pathlib
import re
import shlex
import tempfile
from collections.abc import Sequence
from typing import Any

import common
import yaml

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PORT = 8476
_EXTRA = {'gpu': "'jax[cuda12]'", 'cpu': 'jax'}


class _Dumper(yaml.SafeDumper):
  """Writes lines of shell as lines, where they are such that YAML can."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
  style = '|' if '\n' in text else None
  return dumper.represent_scalar('tag:yaml.org,2002:str', text, style)


_Dumper.add_representer(str, _text)


def main(arguments: Sequence[str]) -> int:
  """Launches the job; returns sky's exit code."""
  parser = common.parser(__doc__.splitlines()[0], ['gpu', 'cpu'])
  add = parser.add_argument
  add('--accelerator', default='', help='kind of GPU, like H100 or A100-80GB')
  add('--infra', default='', help='where, like gcp/us-central1; the cheapest by default')
  add('--spot', action='store_true', help='on machines that may be taken away')
  add(
    '--mount', action='append', default=[], metavar='PATH=URL',
    help='a bucket and where it is, like /runs=gs://bucket/runs',
  )  # fmt: skip
  parsed = parser.parse_args(arguments)
  job = common.job(parsed)
  task_of = task(job, parsed.accelerator, parsed.infra, parsed.spot, parsed.mount)
  try:
    text = yaml.dump(task_of, Dumper=_Dumper, sort_keys=False, width=2**20)
    text.encode()
  except (UnicodeEncodeError, yaml.YAMLError):
    raise common.UserError(
      'a flag or the command has bytes that are no UTF-8, which YAML cannot hold; give the files '
      'other names'
    ) from None
  if parsed.dry_run:
    file = f'{job.name}.sky.yaml'
    launch = shlex.join(['sky', 'jobs', 'launch', '--yes', file])
    common.show(f'{common.here_document(f"cat > {file}", text)}\n{launch}')
    return common.DONE
  with tempfile.NamedTemporaryFile('w', suffix='.yaml', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    command = ['sky', 'jobs', 'launch', '--yes', file.name]
    return common.call(command, 'pip install skypilot, or use --dry-run').returncode


def task(
  job: common.Job, accelerator: str, infra: str, spot: bool, mounts: Sequence[str]
) -> dict[str, Any]:
  """The task, as SkyPilot's YAML has it.

  Args:
    job: what to run, one process a node.
    accelerator: kind of GPU; '' for CPU.
    infra: where, or ''.
    spot: on machines that may be taken away.
    mounts: of buckets, 'PATH=URL'.
  Raises:
    UserError: the accelerator does not fit the platform, a mount is none, or it is elastic.
  """
  common.check_fixed(job, 'a job of SkyPilot')
  if bool(accelerator) != (job.platform == 'gpu') or not re.fullmatch(r'[\w.-]*', accelerator):
    raise common.UserError(
      f'--accelerator is {accelerator!r}; write the kind of GPU for gpu, without their number, and '
      'none for cpu'
    )
  recovery: dict[str, Any] = {
    'max_restarts_on_errors': job.max_restarts,
    'recover_on_exit_codes': list(common.TOLD_TO_STOP),
  }
  resources: dict[str, Any] = {'job_recovery': recovery, 'use_spot': spot}
  if accelerator:
    resources['accelerators'] = {accelerator: job.devices_per_process}
  if infra:
    resources['infra'] = infra
  found = {
    'name': job.name,
    'num_nodes': job.processes,
    'workdir': str(_ROOT),
    'resources': resources,
    'envs': common.environment(job),
    'setup': _setup(job),
    'run': _run(job),
  }
  places = dict(map(_mount, mounts))
  if len(places) < len(mounts):
    raise common.UserError(
      f'--mount is {" and ".join(map(repr, mounts))}, two buckets in one place; give each its own'
    )
  return found | ({'file_mounts': places} if places else {})


def _setup(job: common.Job) -> str:
  """Lines of shell that install the package; a node that is taken up again has it already."""
  return (
    'set -e\n'
    'python3 -m pip install --quiet --user uv\n'
    'test -d .venv || python3 -m uv venv --quiet --python 3.12 .venv\n'
    f'python3 -m uv pip install --quiet --python .venv/bin/python -e . {_EXTRA[job.platform]}\n'
  )


def _run(job: common.Job) -> str:
  """Lines of shell of every node, by SkyPilot's own variables."""
  command = shlex.join([*job.command])
  which = f'--coordinator="$first:{_PORT}" --process_id="$SKYPILOT_NODE_RANK"'
  return (
    'export PATH="$PWD/.venv/bin:$PATH"\n'
    'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
    f'exec {command} {which} {shlex.join(common.expected(job))}\n'
  )


def _mount(text: str) -> tuple[str, dict[str, str]]:
  path, _, url = text.partition('=')
  if not re.match('/+[^/]', path) or not re.match(r'[a-z0-9]+://.', url):
    raise common.UserError(f'--mount is {text!r}; write PATH=URL, like /runs=gs://bucket/runs')
  # Files of a run are added to and renamed, which a plain mount of a bucket cannot do.
  return path, {'source': url, 'mode': 'MOUNT_CACHED'}


if __name__ == '__main__':
  common.run(main)

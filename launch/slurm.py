"""Submits a job to Slurm:

  python launch/slurm.py --processes 16 --devices-per-process 4 --nodes 8 --time 24:00:00 -- \\
    python -m armd_jax.train --config=experiments/owt_small.py --workdir=/shared/runs/owt

The work directory and this environment must be on a file system that all nodes share. Before the
time is up, on preemption and on `scontrol requeue` the job saves; it is then queued again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import common

# After the first task has ended: all that succeed end together, and nothing ends a crashed job's.
_SECONDS_FOR_THE_OTHERS = 30


def main(arguments: Sequence[str]) -> int:
  """Submits the job; returns sbatch's exit code."""
  parser = common.parser(__doc__.splitlines()[0], ['gpu', 'cpu'])
  add = parser.add_argument
  add('--nodes', type=int, default=0, help='nodes that share the processes; 0: one each')
  add('--time', default='', help='limit, such as 24:00:00')
  add('--partition', default='', help='where to queue')
  add('--sbatch', action='append', default=[], help='one more option, like --sbatch=--account=me')
  parsed = parser.parse_args(arguments)
  script = batch_script(
    common.job(parsed), parsed.nodes, parsed.time, parsed.partition, parsed.sbatch
  )
  if parsed.dry_run:
    common.show(common.here_document('sbatch', script))
    return common.DONE
  fix = 'run this on a login node of a Slurm cluster'
  return common.call(['sbatch'], fix, input=os.fsencode(script)).returncode


def batch_script(
  job: common.Job, nodes: int, time: str, partition: str, options: Sequence[str]
) -> str:
  """The script given to sbatch.

  Args:
    job: what to run.
    nodes: nodes that share its processes equally; 0: as many as processes.
    time, partition: of the job, or ''.
    options: more options of sbatch.
  Raises:
    UserError: the nodes cannot share the processes, all or the least of them, or an option takes
      more than a line.
  """
  nodes = nodes or job.processes
  if nodes < 1 or job.processes % nodes:
    raise common.UserError(
      f'--nodes is {nodes}, which cannot share {job.processes} processes equally; write a divisor'
    )
  tasks = job.processes // nodes
  if job.elastic % tasks:
    raise common.UserError(
      f'--elastic is {job.elastic}, but a node has {tasks} processes; write a multiple of them'
    )
  least = f'{job.elastic // tasks}-' if job.elastic else ''
  gpus = [f'--gpus-per-node={tasks * job.devices_per_process}'] if job.platform == 'gpu' else []
  all_options = [
    f'--job-name={job.name}',
    f'--nodes={least}{nodes}',  # Slurm gives what there is, each time that the job is queued
    f'--ntasks-per-node={tasks}',
    *gpus,
    *([f'--time={time}'] if time else []),
    *([f'--partition={partition}'] if partition else []),
    '--output=%x-%j.log',
    '--open-mode=append',
    '--requeue',
    f'--signal=TERM@{job.grace}',
    *options,
  ]
  for option in all_options:
    if not (option.startswith('-') and option.isprintable()):
      raise common.UserError(
        f'sbatch takes no {option!r}; write --time, --partition and --sbatch=--OPTION without line '
        'breaks and control characters'
      )
  variables = [f'export {k}={shlex.quote(v)}' for k, v in common.environment(job).items()]
  head = [f'#SBATCH {shlex.quote(option)}' for option in all_options]
  srun = f'srun --label --kill-on-bad-exit=0 --wait={_SECONDS_FOR_THE_OTHERS}'
  command = shlex.join(common.on_cluster(job, 'slurm'))
  return '\n'.join(['#!/bin/bash', *head, *variables, f'{srun} {command}', _end(job)])


def _end(job: common.Job) -> str:
  stopped = ' || '.join(f'[ $code -eq {code} ]' for code in common.TOLD_TO_STOP)
  return f"""code=$?
restarts=${{SLURM_RESTART_COUNT:-0}}
echo "launch: the job ended with exit code $code after $restarts restarts" >&2
again=no
if {stopped}; then again=yes; fi
if [ $code -gt {common.USER_ERROR} ] && [ "$restarts" -lt {job.max_restarts} ]; then again=yes; fi
# A job that was cancelled, or is queued again already, no longer runs.
if [ $again = yes ] && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


if __name__ == '__main__':
  common.run(main)

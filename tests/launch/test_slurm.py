"""launch/slurm.py: what the batch script asks for, and when it queues the job again."""

import subprocess
import sys

import common
import pytest
import slurm
import tiny_run
from called import dry_run

from armd_jax.errors import UserError

SLURM = [sys.executable, str(tiny_run.ROOT / 'launch' / 'slurm.py')]


def job(**changes):
  fields = dict(
    command=('python', '-m', 'armd_jax.train', '--workdir=/runs/a b'),
    name='mine',
    processes=4,
    devices_per_process=2,
    platform='gpu',
    max_restarts=2,
    grace=60,
  )
  return common.Job(**fields | changes)


def options(script):
  lines = [line for line in script.splitlines() if line.startswith('#SBATCH ')]
  return dict(line.removeprefix('#SBATCH --').partition('=')[::2] for line in lines)


def test_asks_for_the_nodes_and_to_be_told():
  script = slurm.batch_script(job(), 2, '1:00:00', 'main', ['--account=me'])
  got = options(script)
  assert got['nodes'] == '2' and got['ntasks-per-node'] == '2' and got['gpus-per-node'] == '4'
  assert got['signal'] == 'TERM@60' and 'requeue' in got and got['open-mode'] == 'append'
  assert (got['time'], got['partition'], got['account']) == ('1:00:00', 'main', 'me')
  assert got['job-name'] == 'mine'
  alone = options(slurm.batch_script(job(platform='cpu'), 0, '', '', []))
  assert alone['nodes'] == '4' and alone['ntasks-per-node'] == '1'
  assert not alone.keys() & {'gpus-per-node', 'time', 'partition'}


def test_an_elastic_job_takes_the_nodes_there_are():
  script = slurm.batch_script(job(elastic=2), 2, '', '', [])
  assert options(script)['nodes'] == '1-2' and '--num_processes' not in script
  assert '--cluster=slurm --devices_per_process=2' in script
  with pytest.raises(UserError, match='a node has 2 processes; write a multiple of them'):
    slurm.batch_script(job(elastic=3), 2, '', '', [])


@pytest.mark.parametrize(
  ('code', 'restarts', 'state', 'requeued'),
  [
    (0, 0, 'RUNNING', False),
    (1, 0, 'RUNNING', False),
    (75, 9, 'RUNNING', True),
    (143, 9, 'RUNNING', True),
    (137, 0, 'RUNNING', True),
    (137, 1, 'RUNNING', True),
    (137, 2, 'RUNNING', False),
    (70, 0, 'RUNNING', True),
    (75, 0, 'CANCELLED', False),
    (75, 0, 'PENDING', False),
  ],
)
def test_queues_itself_again(tmp_path, code, restarts, state, requeued):
  """The script run by bash, with an srun that ends with `code`, in a job of this state."""
  for name, body in (
    ('srun', f'printf "%s\\n" "$@" > {tmp_path}/srun.txt; env > {tmp_path}/env.txt; exit {code}'),
    (
      'scontrol',
      f'if [ $1 = show ]; then echo JobState={state}; else echo "$*" > {tmp_path}/scontrol.txt; fi',
    ),
  ):
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  variables = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'SLURM_JOB_ID': '42'}
  if restarts:
    variables['SLURM_RESTART_COUNT'] = str(restarts)
  script = slurm.batch_script(job(), 2, '', '', [])
  done = subprocess.run(['bash'], input=script, text=True, env=variables, capture_output=True)
  assert done.returncode == code, done.stderr
  asked = tmp_path / 'scontrol.txt'
  assert asked.exists() == requeued
  if requeued:
    assert asked.read_text() == 'requeue 42\n'
  arguments = (tmp_path / 'srun.txt').read_text().splitlines()
  assert arguments[-7:] == [
    'python', '-m', 'armd_jax.train', '--workdir=/runs/a b', '--cluster=slurm',
    '--num_processes=4', '--devices_per_process=2',
  ]  # fmt: skip
  assert 'JAX_PLATFORMS=cuda' in (tmp_path / 'env.txt').read_text()


def test_submits_what_it_prints(tmp_path):
  """An sbatch that keeps what it is given."""
  (tmp_path / 'sbatch').write_text(f'#!/bin/sh\ncat > {tmp_path}/given\nexit 3\n')
  (tmp_path / 'sbatch').chmod(0o755)
  flags = ['--processes=2', '--devices-per-process=1', '--nodes=1', '--sbatch=--exclusive']
  command = ['--', 'python', 'a program']
  path = {'PATH': f'{tmp_path}:/usr/bin:/bin'}
  assert subprocess.run([*SLURM, *flags, *command], env=path).returncode == 3
  printed = dry_run(slurm, *flags, *command)
  assert printed == f"sbatch <<'END'\n{(tmp_path / 'given').read_text()}END\n"
  assert '#SBATCH --exclusive\n' in printed


def test_bad_input_is_a_sentence(tmp_path):
  sizes = ['--processes=4', '--devices-per-process=2']
  for nodes, message in (
    ('3', '--nodes is 3, which cannot share 4 processes equally'),
    ('-1', '--nodes is -1'),
  ):
    with pytest.raises(UserError, match=message):
      slurm.main([*sizes, f'--nodes={nodes}', '--', 'x'])
  done = subprocess.run(
    [*SLURM, *sizes, '--', 'x'], capture_output=True, text=True, env={'PATH': str(tmp_path)}
  )
  assert done.returncode == 1 and done.stderr.startswith('error: there is no sbatch here')

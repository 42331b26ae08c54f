"""Several processes train as one would, save together, and say what is wrong."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import time
import types

import jax
import numpy as np
import pytest
import tiny_run

from armd_jax import config as config_lib
from armd_jax import training
from armd_jax.errors import UserError
from armd_jax.parallel import distributed, sharding
from armd_jax.parallel.distributed import Cluster
from armd_jax.show import history
from armd_jax.training import checkpoint, loop, metrics
from armd_jax.training import workdir as workdir_lib

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'n[0-1]',
  'SLURM_NTASKS': '2',
  'SLURM_LOCALID': '0',
}


# ----- which cluster this is


@pytest.mark.parametrize(
  ('given', 'environment', 'kind'),
  [
    (Cluster('auto'), {}, 'none'),
    (Cluster('auto'), SLURM, 'slurm'),
    (Cluster('auto'), SLURM | {'SLURM_NTASKS': '1'}, 'none'),
    (Cluster('auto'), {'TPU_WORKER_HOSTNAMES': 'a,b'}, 'gke'),
    (Cluster('auto'), {'TPU_WORKER_HOSTNAMES': 'a'}, 'none'),
    (Cluster('none'), SLURM, 'none'),
    (Cluster('tpu'), SLURM, 'tpu'),
    (Cluster('auto', 'host:1', 2, 1), SLURM, 'explicit'),
  ],
)
def test_kind_of_cluster(given, environment, kind):
  assert distributed.resolve(given, environment).kind == kind


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (Cluster('slurm'), 'SLURM_JOB_ID is not set, .* start it with srun'),
    (Cluster('auto', 'host', 2, 0), 'write --coordinator=HOST:PORT'),
    (Cluster('auto', 'host:0', 2, 0), 'write --coordinator=HOST:PORT'),
    (Cluster('auto', 'host:65536', 2, 0), 'write --coordinator=HOST:PORT'),
    (Cluster('auto', 'host:²', 2, 0), 'write --coordinator=HOST:PORT'),
    (Cluster('auto', 'host:1', 2, 2), 'a --process_id from 0 to --num_processes - 1'),
    (Cluster('auto', '', 2, 1), 'write --coordinator=HOST:PORT'),
    (Cluster('slurm', 'host:1', 2, 1), 'both say where the processes are; drop one'),
    (Cluster('auto', '', 2), 'nothing says where they are'),
  ],
)
def test_contradictions_are_refused(given, message):
  with pytest.raises(UserError, match=message):
    distributed.resolve(given, {})


def test_fewer_devices_than_expected_is_a_sentence():
  distributed.start(Cluster(devices_per_process=jax.device_count()))
  expected = jax.device_count() + 1
  with pytest.raises(
    UserError, match=f'process 0 on .* sees .* cpu devices, not {expected}; check'
  ):
    distributed.start(Cluster(devices_per_process=expected))


def test_processes_that_do_not_come_are_a_sentence():
  """A process whose process 0 never answers, with a short time limit."""
  script = (
    'from armd_jax import cli\nfrom armd_jax.parallel import distributed as d\n'
    'start = lambda _: d.start(d.Cluster("explicit", "127.0.0.1:1", 2, 1), timeout=2)\n'
    'cli.run(start, cli.OnCluster)'
  )
  done = tiny_run.run([*tiny_run.PYTHON, '-c', script])
  assert done.returncode == 70
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: process 1 on ') and 'waited 2 s for the other processes' in line


def test_an_error_of_the_program_itself_is_a_crash():
  """Exit code 70, at once, where jax would wait for the other processes to leave too."""
  script = (
    'from armd_jax import cli\nfrom armd_jax.parallel import distributed as d\n'
    f'at = "127.0.0.1:{tiny_run.free_port()}"\n'
    'cli.run(lambda _: (d.start(d.Cluster("explicit", at, 1, 0)), 1 / 0), cli.OnCluster)'
  )
  done = tiny_run.run([*tiny_run.PYTHON, '-c', script])
  assert done.returncode == 70
  assert 'ZeroDivisionError' in done.stderr
  assert done.stderr.splitlines()[-1].startswith('error: this process failed, or lost another')


# ----- meshes over processes


def fake_mesh(shape, devices_per_process, process):
  """What `process_part` reads of a mesh over (data, fsdp, tensor)."""
  size = int(np.prod(shape))
  devices = [
    types.SimpleNamespace(process_index=i // devices_per_process, id=i) for i in range(size)
  ]
  return types.SimpleNamespace(
    shape=dict(zip(('data', 'fsdp', 'tensor'), shape, strict=True)),
    devices=np.array(devices).reshape(shape),
    local_devices=[d for d in devices if d.process_index == process],
    size=size,
  )


@pytest.mark.parametrize(
  ('shape', 'devices', 'parts'),
  [
    ((8, 1, 1), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((2, 2, 2), 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    ((1, 2, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes share their sequences
    ((1, 1, 8), 2, [(0, 1)] * 4),
    ((4, 1, 2), 8, [(0, 1)]),
  ],
)
def test_part_of_a_batch(shape, devices, parts):
  got = [sharding.process_part(fake_mesh(shape, devices, p)) for p in range(len(parts))]
  assert got == parts


def test_a_tensor_axis_across_processes_is_refused():
  with pytest.raises(
    UserError, match=r'mesh.tensor is 3, but a process has 2 devices; write a div'
  ):
    sharding.process_part(fake_mesh((2, 1, 3), 2, 0))


def test_devices_of_a_process_lie_side_by_side():
  device = dataclasses.make_dataclass('Device', ['process_index', 'id'], frozen=True)
  devices = [device(0, 0), device(1, 1), device(0, 2), device(1, 3)]
  mesh = sharding.make_mesh(config_lib.MeshConfig(), devices)
  assert [d.id for d in mesh.devices.ravel()] == [0, 2, 1, 3]


# ----- one process that is told to stop


@pytest.mark.parametrize(
  ('number', 'name'), [(signal.SIGTERM, 'SIGTERM'), (signal.SIGINT, 'Ctrl-C')]
)
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys, number, name):
  """Stopped after step 4, on which nothing else is due, and continued: the straight run's bits."""
  config = config_lib.parse(tiny_run.config(tmp_path))
  straight = loop.train(config, tmp_path / 'straight')
  log_step = metrics.Log.step

  def step_and_signal(self, step, *args):
    log_step(self, step, *args)
    if step == 4:
      os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
    patch.setattr(metrics.Log, 'step', step_and_signal)
    loop.train(config, tmp_path / 'run')
  assert stopped.value.code == 75
  assert f'stopped by {name}; step 4 is saved' in capsys.readouterr().out
  assert signal.getsignal(number) is before
  assert checkpoint.Checkpoints(tmp_path / 'run').found() == [4]
  state = loop.train(config, tmp_path / 'run')
  jax.tree.map(np.testing.assert_array_equal, state, straight)
  assert tiny_run.losses(tmp_path / 'run') == tiny_run.losses(tmp_path / 'straight')


def test_a_second_ctrl_c_is_an_interrupt():
  notice = distributed.StopNotice(sharding.make_mesh(config_lib.MeshConfig(), jax.devices()[:1]))
  try:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not notice.reached()
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    assert notice.reached()
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  finally:
    notice.close()


# ----- programs of two processes

_JOB = """
import os, signal, sys, time
from armd_jax import cli
from armd_jax.parallel import distributed

def main(_):
  distributed.start(distributed.Cluster('explicit', sys.argv[1], 2, me), timeout=200)
  print('joined', flush=True)
{body}

me = int(sys.argv.pop())
cli.run(main, cli.OnCluster)
"""


def job(body, stopped=None):
  """Runs two processes, each with its number as `me`; their output, errors and exit codes.

  The one that is `stopped` is killed when the other has ended.
  """
  body = '\n'.join(f'  {line}' for line in body.strip().splitlines())
  address = f'127.0.0.1:{tiny_run.free_port()}'
  script = _JOB.format(body=body).replace('sys.argv[1]', repr(address))
  processes = [
    subprocess.Popen(
      [*tiny_run.PYTHON, '-c', script, str(me)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | tiny_run.VARIABLES | {'JAX_NUM_CPU_DEVICES': '1'},
    )
    for me in range(2)
  ]
  try:
    if stopped is not None:
      processes[1 - stopped].wait(timeout=300)
      processes[stopped].kill()
    return [(*process.communicate(timeout=300), process.returncode) for process in processes]
  finally:
    for process in processes:
      process.kill()


def errors(text):
  return [line for line in text.splitlines() if line.startswith('error: ')]


def test_what_must_be_the_same_is_compared():
  """Nested, long, and absent on one; equal facts are no difference."""
  body = """
distributed.agree('numbers', {'a': {'b': 1, 'c': (2, 3)}, 'long': 'x' * 1000})
distributed.agree('the config', {'seed': 7, 'model': {'name': 'é' * 300, 'only': 1} if me else
                                 {'name': 'é' * 301}})
"""
  (_, err, code), (_, other_err, other_code) = job(body)
  assert code == other_code == 1
  (line,) = errors(err)
  assert 'Traceback' not in err + other_err and not errors(other_err)
  assert line.startswith('error: the processes differ in the config: model.name is éé')
  assert 'é on process 0 and model.name is é' in line and 'é on process 1; start all of' in line


@pytest.mark.parametrize(
  ('process', 'count'),
  [(0, 1), (1, 1), *(pytest.param(process, 5, marks=pytest.mark.drill) for process in (0, 1))],
)
def test_the_error_of_one_is_told_before_all_end(process, count):
  """With one sentence and without an abort by jax, time after time."""
  body = f"""
from armd_jax.errors import UserError
def work():
  if me == {process}:
    raise UserError('bad')
distributed.together(work)
"""
  for _ in range(count):
    found = job(body)
    assert [code for *_, code in found] == [1, 1], found
    assert [errors(err) for _, err, _ in found] == [
      ['error: bad'] if me == process else [] for me in range(2)
    ]
    assert not any('Check failure' in err for _, err, _ in found)


@pytest.mark.parametrize('lost', [0, 1])
def test_a_process_that_crashes_ends_the_other(lost):
  """By itself, so that it can tell."""
  found = job(f"""
if me == {lost}:
  1 / 0
time.sleep(200)
""")
  assert [code for *_, code in found] == [70, 70], found
  assert 'ZeroDivisionError' in found[lost][1]
  (line,) = errors(found[1 - lost][1])
  assert f'process {lost} on ' in line and 'ended with exit code 70' in line


@pytest.mark.parametrize('told', [0, 1])
def test_a_process_that_stops_at_once_stops_the_other(told):
  """With its code, though what they compute together breaks before that is told."""
  found = job(f"""
from armd_jax.parallel import ends
distributed.gather_text('both are here')
if me == {told}:
  ends.leave(75, 'told to stop')
distributed.gather_text('x')
""")
  assert [code for *_, code in found] == [75, 75], found
  assert 'told to stop' in found[told][1]
  assert 'Traceback' not in found[1 - told][1] and not errors(found[1 - told][1])


def test_a_process_that_is_lost_ends_the_other_with_a_sentence():
  """Killed, so that it tells nothing: jax aborts the other."""
  found = job("""
if me == 0:
  os.kill(os.getpid(), signal.SIGKILL)
time.sleep(200)
""")
  assert [code for *_, code in found] == [-9, 70], found
  (line,) = errors(found[1][1])
  assert line.startswith('error: process 1 on ') and 'lost another one' in line


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_is_stopped_ends_the_other_within_hang_seconds(stopped):
  body = f"""
from armd_jax.training import hooks
distributed.gather_text('both are here')
watchdog = hooks.Watchdog(9, 'the state to start from')
if me == {stopped}:
  os.kill(os.getpid(), signal.SIGSTOP)
distributed.gather_text('x')
"""
  found = job(body, stopped)
  assert found[stopped][2] == -9 and found[1 - stopped][2] == 70, found
  (line,) = errors(found[1 - stopped][1])
  assert 'waited for the state to start from longer than config.train.hang_seconds = 9' in line
  assert re.search(f', and process {stopped} on {socket.gethostname()} does not answer; its', line)


# ----- several processes


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """The folder of a run of one process x 4 devices, 'one', and of two x 2, 'two'."""
  folder = tmp_path_factory.mktemp('runs')
  experiment = tiny_run.write_experiment(folder)
  command = lambda name: tiny_run.train(experiment, folder / name, '--config.train.sample_every=12')
  two = subprocess.Popen(
    tiny_run.local(2, 2, command('two')),
    stdout=(folder / 'two.out').open('w'),
    stderr=(folder / 'two.err').open('w'),
    env=os.environ | tiny_run.VARIABLES,
  )
  one = tiny_run.run(command('one'), devices=4)
  assert one.returncode == 0, one.stderr
  assert two.wait() == 0, (folder / 'two.err').read_text()
  return folder


def final(workdir, step=None):
  config = workdir_lib.read_config(workdir)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  abstract = training.abstract_state(config, 257, mesh)
  return checkpoint.Checkpoints(workdir).restore(abstract, step)


def assert_same_losses(a, b):
  assert a.keys() == b.keys()
  np.testing.assert_allclose(list(a.values()), [b[step] for step in a], rtol=1e-5)


def test_two_processes_train_as_one(runs):
  one, two = tiny_run.losses(runs / 'one'), tiny_run.losses(runs / 'two')
  assert list(one) == list(range(1, 13))
  assert_same_losses(one, two)
  (state, index), (expected, expected_index) = final(runs / 'two'), final(runs / 'one')
  assert index == expected_index == 12 * 8
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, state.params, expected.params)


def test_two_processes_evaluate_and_sample_as_one(runs):
  """After the last step."""
  one, two = (history.read(runs / name / 'metrics.jsonl')[12] for name in ('one', 'two'))
  assert one['held_out'] == pytest.approx(two['held_out'], rel=1e-5)
  assert one['sample'] == two['sample'] != ''


def test_process_0_alone_reports(runs):
  out, err = ((runs / f'two.{name}').read_text() for name in ('out', 'err'))
  table = [
    line.split() for line in out.splitlines() if line.startswith('[0] ') and ' x cpu' in line
  ]
  assert [[row[1], *row[3:6]] for row in table[:2]] == [
    ['0', '2', 'x', 'cpu'],
    ['1', '2', 'x', 'cpu'],
  ]
  assert out.count('precision') == out.count('learning rate') == 1
  assert out.count('[0] step 12/12  loss') == 1 and '[1] step' not in out and not err


def test_two_processes_checkpoint_goes_on_in_one(runs, tmp_path):
  """Step 6 as two processes wrote it, then 7 to 12 on one device."""
  step_6, _ = final(runs / 'two', 6)
  assert int(step_6.step) == 6
  tiny_run.copy_at(runs / 'two', tmp_path / 'run', 6)
  done = tiny_run.run(tiny_run.train(runs / 'experiment.py', tmp_path / 'run'))
  assert 'going on from step 6' in done.stdout, done.stderr
  assert_same_losses(tiny_run.losses(tmp_path / 'run'), tiny_run.losses(runs / 'one'))


def test_one_processes_checkpoint_goes_on_in_two_and_both_stop_together(runs, tmp_path):
  """Step 6 as one process wrote it, then two processes, of which one gets SIGTERM."""
  workdir = tmp_path / 'run'
  tiny_run.copy_at(runs / 'one', workdir, 6)
  command = tiny_run.train(runs / 'experiment.py', workdir, '--config.train.steps=100000')
  processes = tiny_run.start(2, 2, command)
  deadline = time.time() + 300
  while 12 not in tiny_run.losses(workdir):
    assert all(p.poll() is None for p in processes) and time.time() < deadline
    time.sleep(0.1)
  processes[1].send_signal(signal.SIGTERM)
  out = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [75, 75]
  losses = tiny_run.losses(workdir)
  last = max(losses)
  assert f'step {last} is saved' in out[0] and 'saved' not in out[1]
  assert int(final(workdir)[0].step) == last
  expected = tiny_run.losses(runs / 'one')
  assert_same_losses({step: losses[step] for step in expected}, expected)


def test_an_error_of_one_process_ends_all_with_one_sentence(runs, tmp_path):
  """The work directory holds another run, which only process 0 looks at."""
  tiny_run.copy_at(runs / 'one', tmp_path / 'run', 6)
  command = tiny_run.train(runs / 'experiment.py', tmp_path / 'run', '--config.seed=1')
  done = tiny_run.run(tiny_run.local(2, 2, command))
  assert done.returncode == 1
  errors = [line for line in done.stderr.splitlines() if 'error: ' in line]
  assert len(errors) == 1 and errors[0].startswith('[0] error: ') and 'config.seed' in errors[0]


def test_processes_with_other_configs_are_told(runs, tmp_path):
  """Before the text is read or the work directory made."""
  train_command = tiny_run.train(runs / 'experiment.py', tmp_path / 'run')
  script = 'case "$*" in *process_id=1*) set -- "$@" --config.seed=5;; esac; exec "$@"'
  done = tiny_run.run(tiny_run.local(2, 2, ['sh', '-c', script, 'sh', *train_command]))
  assert done.returncode == 1
  (line,) = [line for line in done.stderr.splitlines() if 'error: ' in line]
  assert line.startswith('[0] error: the processes differ in the config: ')
  assert 'config.seed is 0 on process 0 and config.seed is 5 on process 1; start all' in line
  assert not (tmp_path / 'run').exists()


def test_processes_with_unequal_devices_are_told(runs, tmp_path):
  """Process 1 sees one device of two."""
  train_command = tiny_run.train(runs / 'experiment.py', tmp_path / 'run')
  script = 'case "$*" in *process_id=1*) export JAX_NUM_CPU_DEVICES=1;; esac; exec "$@"'
  done = tiny_run.run(tiny_run.local(2, 2, ['sh', '-c', script, 'sh', *train_command]))
  assert done.returncode == 1
  errors = [line for line in done.stderr.splitlines() if 'error: ' in line]
  assert len(errors) == 1 and '[1] error: process 1 on ' in errors[0], done.stderr
  assert 'sees 1 cpu devices, not 2; check' in errors[0]
  assert not (tmp_path / 'run').exists()

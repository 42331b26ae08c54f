"""Jobs one of whose processes gives itself a signal at a moment of a run, and how they end."""

import os
import signal
import socket
import subprocess
import time

import tiny_run
from finished import last_step

LAST = 18  # step
CHANGES = [f'--config.train.steps={LAST}', '--config.train.eval_every=6']
CHANGES += ['--config.train.sample_every=6', '--config.train.checkpoint_every=6']
HANG_SECONDS = 90  # longer than four processes take to compile on two busy cores
SECONDS_TO_END = 20

# The program, one of whose processes gives itself a signal at a moment, once.
_SIGNALS_ITSELF = """
import os, pathlib, signal, sys
import jax
import orbax.checkpoint as ocp
from armd_jax import cli, train, training
from armd_jax.decode import requests
from armd_jax.evaluation import likelihood
from armd_jax.training import checkpoint

moment, name, process, flag, last = sys.argv[1:6]
del sys.argv[1:6]
flag, steps, is_compiling = pathlib.Path(flag), 0, False

def now():
  if f'--process_id={process}' in sys.argv and not flag.exists():
    flag.touch()
    os.kill(os.getpid(), getattr(signal, name))

def before(owner, called, condition=lambda *_: True):
  original = getattr(owner, called)

  def wrapped(*args, **more):
    if condition(*args):
      now()
    return original(*args, **more)

  setattr(owner, called, wrapped)

make = training.train_step

def with_moments(*args):
  step_fn = make(*args)

  def step(state, text):
    global steps, is_compiling
    steps += 1
    is_compiling = steps == 1
    result = step_fn(state, text)
    is_compiling = False
    if moment == 'a step' and steps == 4:
      now()
    return result

  return step

training.train_step = with_moments
if moment == 'the first compile':  # lowered, and not compiled yet
  told = lambda event, *_, **__: is_compiling and 'mlir_module' in event and now()
  jax.monitoring.register_event_duration_secs_listener(told)
elif moment == 'a restore':
  before(ocp.StandardCheckpointer, 'restore')
elif moment == 'a save':
  before(checkpoint.Checkpoints, '_finish')
elif moment == 'the last save':
  before(checkpoint.Checkpoints, '_finish', lambda _, part, seal, *__: seal['step'] == int(last))
elif moment == 'an evaluation':
  before(likelihood, 'mean_nats')
elif moment == 'a sample':
  before(requests.Decoder, 'complete')
cli.run(train.main, train.Options)
"""


def begun(folder, workdir, processes, *more):
  """The command of a run, whose text is in `folder`, that has done six steps."""
  experiment = tiny_run.write_experiment(folder)
  command = tiny_run.train(experiment, workdir, *CHANGES, *more)
  first = [*command, '--config.train.steps=6']
  done = tiny_run.run(tiny_run.local(processes, 2, first))
  assert done.returncode == 0, done.stderr
  return command


def with_signal(command, moment, name, process, flag):
  """The command, one of whose processes gives itself a signal."""
  arguments = [moment, name, str(process), str(flag), str(LAST)]
  return [*tiny_run.PYTHON, '-c', _SIGNALS_ITSELF, *arguments, *command[3:]]


def wait_for(flag, processes):
  deadline = time.time() + 300
  while not flag.exists():
    if time.time() > deadline or all(process.poll() is not None for process in processes):
      for process in processes:
        process.kill()
      raise AssertionError([process.communicate() for process in processes])
    time.sleep(0.1)
  return time.time()


def stands_still(command, moment, stopped, processes, flag):
  """One process stops: the others end soon, each with a sentence that names it."""
  stalls = with_signal(command, moment, 'SIGSTOP', stopped, flag)
  job = tiny_run.start(processes, 2, stalls, stderr=subprocess.PIPE)
  since = wait_for(flag, job)
  left = {index: process for index, process in enumerate(job) if index != stopped}
  found = {index: process.communicate(timeout=300) for index, process in left.items()}
  seconds = time.time() - since
  os.kill(job[stopped].pid, signal.SIGKILL)
  job[stopped].communicate()
  for index, (_, errors) in found.items():
    (line,) = (line for line in errors.splitlines() if line.startswith('error: '))
    print(line)
    assert f'process {stopped} on {socket.gethostname()} does not answer' in line
    assert job[index].returncode == 70, errors
  print(f'{seconds:.1f} s')
  assert seconds < HANG_SECONDS + SECONDS_TO_END


def is_told(command, moment, told, flag, workdir):
  """One of two processes gets SIGTERM: both end with 75, and say how long it took.

  Returns:
    The step that is saved, which is the last one.
  """
  job = tiny_run.start(
    2, 2, with_signal(command, moment, 'SIGTERM', told, flag), stderr=subprocess.PIPE
  )
  since = wait_for(flag, job)
  found = [process.communicate(timeout=300) for process in job]
  print(f'{time.time() - since:.1f} s', *found, sep='\n')
  assert [process.returncode for process in job] == [75, 75]
  saved = last_step(workdir)
  if moment in ('a restore', 'the first compile'):
    assert saved == 6
    assert 'stopped by SIGTERM at once' in found[told][1]
  else:
    assert saved == LAST if moment == 'the last save' else saved in (13, 14)
    assert f'stopped by SIGTERM; step {saved} is saved' in found[0][0]
    assert ' s after the signal)' in found[0][0]
  return saved

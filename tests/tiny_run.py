"""A tiny training run as a command, run directly or by a launcher."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import ml_collections
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = [sys.executable]
LOCAL = [*PYTHON, str(ROOT / 'launch' / 'local.py')]

# Compiling is most of the time that such a run takes.
VARIABLES = {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}

_EXPERIMENT = """
from armd_jax.config import default_config

def get_config():
  config = default_config()
  config.model.update(
    length=16, num_layers=2, embed_dim=16, num_heads=2, dtype='float32', dropout=0.1, position_dim=4
  )
  config.order.update(ar_steps=2, perm_steps=6, max_shuffled=4)
  config.optimizer.update(warmup_steps=2, learning_rate=1e-2)
  config.data.update(source='{text}', held_out=0.2)
  config.train.update(
    steps=12, batch_size=8, loss_chunk=16, log_every=1, eval_every=12, eval_windows=12,
    checkpoint_every=6, keep_last=5,
  )
  return config
"""


def write_experiment(folder: pathlib.Path) -> pathlib.Path:
  """A text and an experiment file in the folder."""
  rng = np.random.RandomState(0)
  words = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta']
  text = '\n\n'.join(' '.join(rng.choice(words, 30)) for _ in range(40))
  (folder / 'text.txt').write_text(text)
  path = folder / 'experiment.py'
  path.write_text(_EXPERIMENT.format(text=folder / 'text.txt'))
  return path


def config(folder: pathlib.Path) -> ml_collections.ConfigDict:
  """The experiment's config; writes its text, too."""
  experiment = {}
  exec(write_experiment(folder).read_text(), experiment)
  return experiment['get_config']()


def train(experiment: pathlib.Path, workdir: pathlib.Path, *flags: str) -> list[str]:
  """The command."""
  return [*PYTHON, '-m', 'armd_jax.train', f'--config={experiment}', f'--workdir={workdir}', *flags]


def local(processes: int, devices: int, command: list[str], *flags: str) -> list[str]:
  """The command that runs it on several processes of this machine."""
  sizes = [f'--processes={processes}', f'--devices-per-process={devices}']
  return [*LOCAL, *sizes, *flags, '--', *command]


def run(command: list[str], devices: int = 1) -> subprocess.CompletedProcess:
  """Runs a command to its end; a program run directly sees `devices` CPU devices."""
  variables = os.environ | VARIABLES | {'JAX_NUM_CPU_DEVICES': str(devices)}
  return subprocess.run(command, capture_output=True, text=True, env=variables)


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """Loss by step, as logged; every step once, and the one being written not yet."""
  complete = (workdir / 'metrics.jsonl').read_text().split('\n')[:-1]
  lines = [json.loads(line) for line in complete]
  pairs = [(line['step'], line['loss']) for line in lines if 'loss' in line]
  assert len(dict(pairs)) == len(pairs), pairs
  return dict(pairs)


def copy_at(run: pathlib.Path, workdir: pathlib.Path, step: int) -> None:
  """Copies a run as it was after `step`, whose checkpoint it still holds."""
  shutil.copytree(run, workdir)
  for folder in (workdir / 'checkpoints').iterdir():
    if int(folder.name) > step:
      shutil.rmtree(folder)
  log = workdir / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  log.write_text(''.join(line for line in lines if json.loads(line)['step'] <= step))


def start(
  processes: int, devices: int, command: list[str], stderr: int = subprocess.DEVNULL
) -> list[subprocess.Popen]:
  """Starts the processes of a job by hand, with explicit flags."""
  coordinator = f'--coordinator=127.0.0.1:{free_port()}'
  variables = os.environ | VARIABLES | {'JAX_NUM_CPU_DEVICES': str(devices)}
  return [
    subprocess.Popen(
      [*command, coordinator, f'--num_processes={processes}', f'--process_id={index}'],
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
      env=variables,
    )
    for index in range(processes)
  ]


def free_port() -> int:
  """A port that nothing listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def kill_child(launcher: int, flag: str, number: signal.Signals) -> None:
  """Sends a signal to the process that a running launcher started with this flag."""
  (found,) = (
    int(pid)
    for pid in pathlib.Path(f'/proc/{launcher}/task/{launcher}/children').read_text().split()
    if flag in pathlib.Path(f'/proc/{pid}/cmdline').read_text().split('\0')
  )
  os.kill(found, number)

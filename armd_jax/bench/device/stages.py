"""What is measured, in order of worth, and how long it may take.

Limits are for an H100 and add up to more than there is: a stage that is as quick as expected leaves
its time to those behind it.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping

from armd_jax.bench.device import rows as rows_lib
from armd_jax.bench.device.cases import SMOKE
from armd_jax.bench.device.environment import Cuda

# Small programs side by side: each takes a part of the memory, and compiles for itself.
_SHARED = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
PARTS = 10  # processes of `numerics`
_MOST = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.9'}
_UNTUNED = '--xla_gpu_autotune_level=0'
_PRODUCTS = '--xla_disable_hlo_passes=dot-strength-reduction'
_GRAPHS = (
  '--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,WHILE,CONDITIONAL,'
  'DYNAMIC_SLICE_FUSION'
)


@dataclasses.dataclass(frozen=True)
class Process:
  """A process of a stage.

  Attributes:
    name: its own within the stage.
    command: what is run, before the arguments of its `rows.Job`.
    arguments: after them.
    variables: of its environment.
    label: of its rows; see `rows.Job`.
    stage: that its rows are filed under; '': the one that it is of.
  """

  name: str
  command: tuple[str, ...]
  arguments: tuple[str, ...] = ()
  variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
  label: str = ''
  stage: str = ''


@dataclasses.dataclass(frozen=True)
class Stage:
  """Processes that run side by side, as many as there are cores, and the seconds of each."""

  name: str
  limit: float
  processes: tuple[Process, ...]


@dataclasses.dataclass(frozen=True)
class Place:
  """What the stages depend on.

  Attributes:
    out: folder of rows and all other results.
    carried: a newer ptxas to compare with, if there is one.
    texts: a folder of texts to train on, if there is one.
    xla_flags: that processes inherit.
  """

  out: pathlib.Path
  carried: Cuda | None
  texts: pathlib.Path | None
  xla_flags: str = ''


def _ours(module):
  return sys.executable, '-m', f'armd_jax.bench.device.{module}'


def _alone(name, limit, module=None, *arguments, **more):
  """A stage of one process."""
  process = Process(name, _ours(module or name), arguments, **more)
  return [Stage(name, limit, (process,))]


def _share(part):
  return _SHARED | {'XLA_PYTHON_CLIENT_MEM_FRACTION': part}


def _checks(place, part):
  """Of processes that time nothing: XLA need not look for the quickest form of a product."""
  return _share(part) | {'XLA_FLAGS': f'{place.xla_flags} {_UNTUNED}'.strip()}


def ptxas_label(cuda: Cuda) -> str:
  """Added to the keys of rows that were compiled with another ptxas than the others."""
  return f', ptxas {cuda.version}'


def _smoke(place):
  variables = _checks(place, '.1')
  processes = [Process(name, _ours('smoke'), (name,), variables) for name in SMOKE]
  if place.carried:
    label, other = ptxas_label(place.carried), variables | place.carried.variables()
    processes += [
      Process(name + label, _ours('smoke'), (name,), other, label)
      for name in ('both 64', 'both 128')
    ]
  return [Stage('smoke', 50, tuple(processes))]


def _numerics(place):
  variables = _checks(place, '.08')
  processes = (
    Process(f'part {part} of {PARTS}', _ours('numerics'), (str(part), str(PARTS)), variables)
    for part in range(PARTS)
  )
  return [Stage('numerics', 110, tuple(processes))]


def _again(place):
  """What was wrong, with the other ptxas: whose fault is it?"""
  wrong = [
    key
    for (stage, key), row in rows_lib.read(place.out).items()
    if stage == 'numerics' and row.get('ok') is False
  ]
  if not wrong or place.carried is None:
    return []
  variables = _checks(place, '.4') | place.carried.variables()
  label = ptxas_label(place.carried)
  return _alone('again', 40, 'numerics', '0', '1', *wrong, variables=variables, label=label)


def _models(place):
  """Both compile at the same time, and measure one after the other."""
  del place
  processes = (
    Process('train', _ours('train'), variables=_MOST, stage='train'),
    Process('decode', _ours('decode'), stage='decode'),
  )
  return [Stage('models', 240, processes)]


def _flags(place):
  """Is AR quicker as plain products, or anything with its whole loop as one CUDA graph?

  XLA fails on ARMD at S = 1 under the first flag: the products of its seed have no rows there.
  """
  made = []
  for name, flag, limit, runs in (
    ('plain products', _PRODUCTS, 45, ('ar 1 1',)),
    ('whole loop as a graph', _GRAPHS, 60, ('ar 1 1', 'armd 1 1', 'armd 4 1')),
  ):
    variables = {'XLA_FLAGS': f'{place.xla_flags} {flag}'.strip()}
    process = Process(name, _ours('decode'), runs, variables, f', {name}')
    made.append(Stage('flags', limit, (process,)))
  return made


def _learn(place):
  return _alone('learn', 300, None, *([str(place.texts)] if place.texts else []))


STAGES: dict[str, Callable[[Place], list[Stage]]] = {
  'smoke': _smoke,
  'ceilings': lambda place: _alone('ceilings', 25),
  'numerics': _numerics,
  'again': _again,
  'times': lambda place: _alone('times', 100),
  'torch': lambda place: _alone('torch', 30, 'torch_times'),
  'models': _models,
  'peers': lambda place: _alone('peers', 45, 'hf'),
  'flags': _flags,
  'suite': lambda place: _alone('suite', 80, variables=_share('.07')),
  'learn': _learn,
}

# The stages that rows of a stage are filed under, if not its own.
FILED = {'models': ('train', 'decode', 'kernels')}


def filed(names: Iterable[str]) -> list[str]:
  """The stages that rows of these are filed under."""
  return [stage for name in names for stage in FILED.get(name, (name,))]

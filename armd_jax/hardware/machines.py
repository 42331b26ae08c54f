"""The machine that a measurement was taken on."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax


def machine() -> dict[str, Any]:
  """Where the numbers were taken."""
  device = jax.devices()[0]
  kind = device.device_kind
  if device.platform == 'cpu':
    kind = _cpu_name() or kind
  return {
    'platform': device.platform,
    'device': kind,
    'devices': jax.device_count(),
    'cpu_cores': len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count(),
    'load_average': os.getloadavg()[0],
    'jax': jax.__version__,
  }


def _cpu_name():
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text('utf-8').splitlines()
  except OSError:
    return None
  return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), None)


def machine_line(machine: Mapping[str, Any]) -> str:
  return (
    '{platform} {device}, {devices} device(s), {cpu_cores} CPU cores, load {load_average:.1f}, '
    'jax {jax}'.format(**machine)
  )

"""Where the launchers are, scripts that import each other by name, and these tests' own modules."""

import pathlib
import sys

import pytest
import tiny_run

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / 'launch')]


@pytest.fixture
def compiled_alike(monkeypatch):
  """Every run of a drill, by whichever launcher, with the same compiler settings."""
  for name, value in tiny_run.VARIABLES.items():
    monkeypatch.setenv(name, value)

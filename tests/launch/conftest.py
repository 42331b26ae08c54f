"""Where the launchers are, scripts that import each other by name, and these tests' own modules."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / 'launch')]

"""Few rows and a long cache: keys split over the grid, and the parts added up by their weights.

The shapes of `test_hopper` are shrunk to fewer keys than one split takes.
"""

import numpy as np
import pytest
from attention import test_hopper
from attention import test_prefix_attention as suite

from armd_jax.attention import hopper, hopper_blocks

KEYS = hopper.MIN_SPLIT_CALL_TILES * hopper_blocks.choose(1, 64).forward_keys


@pytest.mark.parametrize(
  'lengths',
  [
    np.stack([np.arange(KEYS - 7, KEYS + 1), np.arange(KEYS - 8, KEYS)]),
    np.array([[0, 1, 100, 511], [512, 513, 700, KEYS]]),  # rows that see nothing of the second
  ],
)
def test_splits_add_up(lengths):
  test_hopper.check(suite.Case(lengths[None].astype(np.int32), KEYS, dtype='bfloat16'))

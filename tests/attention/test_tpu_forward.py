"""What only the forward kernels of TPUs can get wrong; their numerics are in the common suite."""

import numpy as np
from attention import test_prefix_attention as suite


def test_diagonal_tile_of_which_few_rows_see_little_is_masked():
  """Row units see as much as on a causal diagonal, but rows 256 to 299 no more than 100 keys."""
  lengths = np.repeat([0, 100, 300], [100, 200, 212]).astype(np.int32)
  case = suite.Case(lengths[None, None], 512, dtype='bfloat16')
  suite.check((suite._stairs, suite._on_tpu), case)

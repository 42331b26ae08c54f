"""The flags that benchmarks share."""

import pytest
from absl import flags

from armd_jax.bench import timing
from armd_jax.hardware import device


@pytest.fixture
def shape_flags():
  before = set(flags.FLAGS)
  defined = timing.ShapeFlags.define()

  def parse(*arguments):
    for name in set(flags.FLAGS) - before:
      flags.FLAGS[name].unparse()
    flags.FLAGS(['program', *arguments])
    return defined.values()

  yield parse
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


def test_benchmarks_compute_in_what_the_device_is_used_with(shape_flags):
  assert shape_flags()[0]['dtype'] == 'float32'
  for chip in (device.HOPPER, 'v5e'):
    with device.compiling_for(chip):
      assert shape_flags()[0]['dtype'] == 'bfloat16'
      assert shape_flags('--dtype=float32')[0]['dtype'] == 'float32'
  assert shape_flags('--dtype=bfloat16')[0]['dtype'] == 'bfloat16'


def test_flags_change_parts_of_a_shape(shape_flags):
  sizes, vocab_size = shape_flags('--shape=gpt2_small', '--length=64', '--vocab_size=100')
  expected = timing.SHAPES['gpt2_small'] | {'length': 64, 'dtype': 'float32'}
  assert vocab_size == 100 and sizes | {'vocab_size': 50257} == expected

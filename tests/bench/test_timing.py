"""The flags that benchmarks share."""

from armd_jax.bench import timing
from armd_jax.hardware import device


def test_benchmarks_compute_in_what_the_device_is_used_with():
  dtype = lambda **given: timing.ModelShape(**given).values()[0]['dtype']
  assert dtype() == 'float32'
  for chip in (device.HOPPER, 'v5e'):
    with device.compiling_for(chip):
      assert dtype() == 'bfloat16'
      assert dtype(dtype='float32') == 'float32'
  assert dtype(dtype='bfloat16') == 'bfloat16'


def test_flags_change_parts_of_a_shape():
  sizes, vocab_size = timing.ModelShape(shape='gpt2_small', length=64, vocab_size=100).values()
  expected = timing.SHAPES['gpt2_small'] | {'length': 64, 'dtype': 'float32'}
  assert vocab_size == 100 and sizes | {'vocab_size': 50257} == expected
  assert {'shape', 'dtype', *timing.SHAPES['small']} == vars(timing.ModelShape()).keys()

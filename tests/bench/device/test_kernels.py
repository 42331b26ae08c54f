"""Which kernels take the time."""

import jax
import jax.numpy as jnp
import pytest

from armd_jax.bench.device import kernels

PROGRAM = """
  %input_fusion.3 = f32[8] fusion(%a), metadata={op_name="jit(step)/layer_3/mean" stack_frame_id=5}
  ROOT %custom.1 = f32[8] custom-call(%b), metadata={op_name="jit(step)/layer_0/attend"}
"""


def test_layers_are_added_up_under_the_part_of_the_model():
  found = [
    ('input_fusion_3', '', 2.0),  # called as its instruction is
    ('prefix_forward', 'custom.1', 4.0),
    ('prefix_forward', 'custom.1', 4.0),
    ('gemm_128x64', '', 1.0),
  ]
  row = kernels.summed(found, 2, PROGRAM)
  assert row['busy_ms'] == 11 / 2
  assert row['launches'] == 2
  assert row['ms'] == {
    'prefix_forward jit(step)/layer_#/attend': 4.0,
    'input_fusion_# jit(step)/layer_#/mean': 1.0,
    'gemm_#x#': 0.5,
  }


def test_only_those_that_take_the_most_are_named():
  letters = [chr(ord('a') + i % 26) * (1 + i // 26) for i in range(kernels.MOST + 5)]
  row = kernels.summed([(name, '', i + 1.0) for i, name in enumerate(letters)], 1, '')
  assert list(row['ms']) == letters[: -kernels.MOST - 1 : -1]
  assert row['busy_ms'] == sum(range(1, len(letters) + 1))


def test_a_trace_of_a_real_program():
  step = jax.jit(lambda x: jnp.sin(x @ x))
  x = jnp.eye(256)
  program = step.lower(x).compile()
  row = kernels.traced(lambda: [program(x) for _ in range(3)], 3, program.as_text(), dry=True)
  assert row['wall_ms'] > 0 and 0 < row['busy_ms'] == pytest.approx(
    sum(row['ms'].values()), rel=0.1
  )
  assert any('jit(<lambda>)' in label for label in row['ms'])

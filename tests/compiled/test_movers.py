"""What moves most bytes is found with its line, its pass and its layers taken together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from armd_jax.compiled import hlo, movers

ROWS, WIDTH, LAYERS = 64, 4096, 3


@pytest.fixture(scope='module')
def text():
  @jax.checkpoint
  def wide(x):
    return jnp.sin(jnp.sort(x, axis=-1))

  def loss(x):
    for layer in range(LAYERS):
      with jax.named_scope(f'layer_{layer}'):
        x = wide(x)
    return jnp.sum(x)

  one = NamedSharding(Mesh(np.asarray(jax.devices()[:1]), ('one',)), PartitionSpec())
  x = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
  step = jax.jit(jax.grad(loss), in_shardings=one, out_shardings=one)
  return step.lower(x).compile().as_text()


def test_layers_are_one_and_passes_are_told_apart(text):
  found = movers.movers(text, {'one': 1})
  moved = [mover.moved for mover in found]
  assert moved == sorted(moved, reverse=True)
  assert sum(moved) == hlo.Program(text, {'one': 1}).cost.hbm_bytes
  sorts = [mover for mover in found if mover.opcode.startswith('sort')]
  # Each reads and writes an array of its own, and the last layer's has no index beside it.
  for mover in sorts:
    assert mover.line.startswith('test_movers.py:'), mover
    assert 'layer_*' in mover.scope and f'[{ROWS},{WIDTH}]' in mover.shapes, mover
    assert mover.moved >= mover.instructions * 2 * 4 * ROWS * WIDTH
  by_pass = {mover.scope.split()[0]: mover.instructions for mover in sorts}
  assert by_pass['again'] == LAYERS, by_pass


def test_the_table_holds_all_bytes(text):
  total = hlo.Program(text, {'one': 1}).cost.hbm_bytes
  *lines, others = movers.table(text, {'one': 1}, 1e12, 2).splitlines()
  assert len(lines) == 2 and others.endswith('others')
  gigabytes = [float(line.split()[0]) for line in (*lines, others)]
  np.testing.assert_allclose(sum(gigabytes), total / 1e9, atol=2e-3)
  milliseconds = [float(line.split()[2]) for line in (*lines, others)]
  np.testing.assert_allclose(milliseconds, gigabytes, atol=2e-3)


def test_lines_as_older_compilers_write_them():
  program = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %y = f32[8]{0} negate(%x), metadata={op_name="jit(f)/neg" source_file="/b.py" source_line=7}
}
"""
  (mover,) = movers.movers(program, {'one': 1})
  assert mover == movers.Mover(64, 1, 'negate', 'b.py:7', 'neg', 'f32[8]')
